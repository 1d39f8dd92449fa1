//! A small file system of its own for the tasks' logs, which can be made full and free again.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SIZE: &str = "size=512m";

/// The file system; it is unmounted when this is dropped.
pub(super) struct Disk {
    folder: PathBuf,
}

fn mount(options: &str, folder: &Path) -> bool {
    let mut command = Command::new("mount");
    command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

impl Disk {
    /// Mounts one; `None` where that is not allowed.
    pub(super) fn mount(folder: &Path) -> Option<Self> {
        std::fs::create_dir_all(folder).ok()?;
        mount(SIZE, folder).then(|| Self {
            folder: folder.to_owned(),
        })
    }

    /// Makes it full: from now on it is as large as what it holds.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn fill(&self) -> anyhow::Result<()> {
        for _ in 0..50 {
            let facts = nix::sys::statvfs::statvfs(&self.folder)?;
            let used = (facts.blocks() - facts.blocks_free()) * facts.fragment_size();
            // Refused if it has grown meanwhile.
            if mount(&format!("remount,size={}", used.max(4096)), &self.folder) {
                return Ok(());
            }
        }
        anyhow::bail!("{} cannot be made smaller", self.folder.display())
    }

    /// Makes room again.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn free(&self) -> anyhow::Result<()> {
        let done = mount(&format!("remount,{SIZE}"), &self.folder);
        anyhow::ensure!(done, "{} cannot be made larger", self.folder.display());
        Ok(())
    }

    /// Copies what it holds to another folder, which outlives it.
    pub(super) fn copy_to(&self, folder: &Path) {
        let mut command = Command::new("cp");
        command
            .arg("-r")
            .arg(&self.folder)
            .arg(folder)
            .stderr(Stdio::null());
        // Only whoever looks for the reason of a failure wants it.
        command.status().ok();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut command = Command::new("umount");
        command
            .arg("-l")
            .arg(&self.folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status().ok();
    }
}
