//! Reading keepalived.conf: from a path to a [`Config`] and everything there is to say about the text.

pub mod codes;
mod diagnostic;
mod expand;
pub mod explain;
mod format;
mod keywords;
mod lexer;
pub mod model;
pub mod outline;
mod read;
mod room;
mod source;
#[cfg(test)]
mod tests;
mod tree;

use std::path::{Path, PathBuf};

pub use codes::Class;
pub use diagnostic::{Diagnostic, Severity};
pub use model::Config;
pub use source::ReadError;

use diagnostic::{Diagnostics, Reports};
use room::Room;
use source::Files;

/// What one run over a file and its includes yields.
#[derive(Debug)]
pub struct Loaded {
    /// Only to be used without errors.
    pub config: Config,
    /// In the order of the text, file by file.
    pub diagnostics: Vec<Diagnostic>,
    /// Diagnostics beyond those listed: hopeless input is not answered with a million messages.
    pub omitted: usize,
    /// Every file that was read, the named one first.
    pub files: Vec<PathBuf>,
    /// Length of the text that the files make with all that stands for several of its kind.
    pub bytes: usize,
    errors: usize,
}

/// There is no text to talk about.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {cause}", path.display())]
pub struct LoadError {
    pub path: PathBuf,
    #[source]
    pub cause: ReadError,
}

/// Reads `path` and all it includes, with the lines that are for `config_id`. Mistakes in the text are in
/// [`Loaded::diagnostics`].
pub fn load(path: &Path, config_id: &str) -> Result<Loaded, LoadError> {
    match source::read(path) {
        Ok(text) => Ok(interpret(path, text, config_id)),
        Err(cause) => Err(LoadError { path: path.to_owned(), cause }),
    }
}

/// The text of a file, and the same text as `lvsd fmt` writes it.
pub fn format(path: &Path) -> Result<(String, String), LoadError> {
    let text = source::read(path).map_err(|cause| LoadError { path: path.to_owned(), cause })?;
    let formatted = format::format(&text);
    Ok((text, formatted))
}

/// Whose `@ID` lines count where nobody says it: the host's name up to the first dot.
pub fn default_config_id() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    name.split('.').next().unwrap_or_default().to_owned()
}

fn interpret(path: &Path, text: String, config_id: &str) -> Loaded {
    let mut files = Files::default();
    let mut reports = Reports::default();
    let text = expand::expand(path, text, config_id, &mut files, &mut reports);
    let mut room = Room::of(text.as_str().len());
    let tree = tree::build(text.as_str(), &mut room, &mut reports);
    let config = read::config(&tree, &mut room, &mut reports);
    let Diagnostics { list, omitted, errors } = reports.resolve(&files, &text);
    Loaded { config, diagnostics: list, omitted, files: files.into_paths(), bytes: room.text(), errors }
}

impl Loaded {
    pub fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// All diagnostics for a terminal or a log, each with its line and a caret.
    pub fn render_text(&self) -> String {
        let mut text: String = self.diagnostics.iter().map(ToString::to_string).collect();
        if self.omitted > 0 {
            text.push_str(&format!("... and {} more\n", self.omitted));
        }
        text
    }
}
