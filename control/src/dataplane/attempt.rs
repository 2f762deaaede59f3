//! What does a start leave behind that fails?

use std::path::{Path, PathBuf};

use super::unload;

/// A start that may fail. Unless it succeeds it leaves nothing pinned that was not there before: tables that were made for one
/// file may be too small for the next.
pub struct Attempt {
    /// None once there is nothing to undo.
    run_dir: Option<PathBuf>,
}

impl Attempt {
    /// Without a directory there is nothing to undo.
    pub(super) fn new(run_dir: Option<&Path>) -> Self {
        Self { run_dir: run_dir.map(Path::to_owned) }
    }

    pub fn succeed(mut self) {
        self.run_dir = None;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.run_dir.take().map(|run_dir| unload(&run_dir)) {
            tracing::warn!(%error, "pinned objects are left behind");
        }
    }
}
