//! Reading keepalived.conf: from a path to a [`Config`] and everything there is to say about the text.

mod diagnostic;
mod include;
mod keywords;
mod lexer;
pub mod model;
mod read;
mod source;
#[cfg(test)]
mod tests;
mod tree;

use std::path::{Path, PathBuf};

pub use diagnostic::{Class, Diagnostic, Severity};
pub use model::Config;
pub use source::ReadError;

use diagnostic::{Diagnostics, Reports};
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

/// Reads `path` and all it includes. Mistakes in the text are in [`Loaded::diagnostics`].
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    match source::read(path) {
        Ok(text) => Ok(interpret(path, text)),
        Err(cause) => Err(LoadError { path: path.to_owned(), cause }),
    }
}

fn interpret(path: &Path, text: String) -> Loaded {
    let mut files = Files::default();
    let mut reports = Reports::default();
    let tokens = include::flatten(path, text, &mut files, &mut reports);
    let statements = tree::build(tokens, &mut reports);
    let config = read::config(&statements, &mut reports);
    let Diagnostics { list, omitted, errors } = reports.resolve(&files);
    Loaded { config, diagnostics: list, omitted, files: files.into_paths(), errors }
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
