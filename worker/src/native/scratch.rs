//! A folder for what a task writes, gone with the task.

use std::path::{Path, PathBuf};

/// A folder that goes with its task.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// Makes one in this folder, or where temporary files go.
    pub(super) fn new(within: Option<&str>) -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let within = within.map_or_else(std::env::temp_dir, PathBuf::from);
        let path = within.join(format!("airflowtmp{}", uuid::Uuid::new_v4().simple()));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Usually it is empty. What a task left behind may take longer to remove than we can block here.
        if std::fs::remove_dir(&self.0).is_err() {
            let path = std::mem::take(&mut self.0);
            std::thread::spawn(move || std::fs::remove_dir_all(path));
        }
    }
}
