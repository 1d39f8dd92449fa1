//! The test engine's command line: what a person would look at.

use crate::parts;
use std::path::Path;
use std::process::{Command, Stdio};

/// The Docker engine of `cargo xtask services`.
pub struct Engine {
    address: String,
}

impl Engine {
    /// `None` where it is absent and not required.
    pub fn find() -> Option<Self> {
        Some(Self {
            address: parts::docker()?,
        })
    }

    /// What `DOCKER_HOST` is to be.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// `docker ARGUMENTS`: what it printed, if it succeeded.
    pub fn try_run(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("docker")
            .args(["--host", &self.address])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stderr))
        }
    }

    /// `docker ARGUMENTS`, which must succeed.
    ///
    /// # Panics
    /// When it does not.
    pub fn run(&self, arguments: &[&str]) -> String {
        self.try_run(arguments)
            .unwrap_or_else(|error| panic!("docker {}: {error}", arguments.join(" ")))
    }

    /// Ids of the running containers with a label.
    pub fn running(&self, label: &str) -> Vec<String> {
        let text = self.run(&[
            "ps",
            "--quiet",
            "--no-trunc",
            "--filter",
            &format!("label={label}"),
        ]);
        text.lines().map(str::to_owned).collect()
    }

    /// A label of a container.
    pub fn label(&self, id: &str, name: &str) -> String {
        let format = format!("{{{{index .Config.Labels \"{name}\"}}}}");
        self.run(&["inspect", "--format", &format, id])
    }

    /// Makes an image: the one of busybox with these programs in `/bin`.
    pub fn make_image(&self, name: &str, programs: &[(&str, &str)], scratch: &Path) {
        use std::os::unix::fs::PermissionsExt;
        let id = self.run(&["create", parts::IMAGE, "true"]);
        for (program, text) in programs {
            let file = scratch.join(program);
            std::fs::write(&file, text).expect("a program");
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("a program");
            self.run(&["cp", &file.to_string_lossy(), &format!("{id}:/bin/{program}")]);
        }
        self.run(&["commit", &id, name]);
        self.run(&["rm", &id]);
    }
}
