//! A private Docker engine for tests: own socket, own folders, no change to the machine's network; and the one image that
//! they use, made of busybox, because nothing is pulled.

use crate::services::launch;
use anyhow::{Context, ensure};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Sockets have short paths, and the engine needs root anyway.
const FOLDER: &str = "/run/updraft-test-docker";
/// The bridge of the network that tests make.
const BRIDGE: &str = "updraft-test";
/// The image.
const IMAGE: &str = "updraft-test/busybox:1";
const PATIENCE: Duration = Duration::from_secs(60);
const APPLETS: [&str; 18] = [
    "sh", "echo", "sleep", "true", "seq", "cat", "printf", "ls", "mkdir", "httpd", "wget", "kill", "date",
    "id", "awk", "yes", "touch", "env",
];

/// Where it listens.
pub(crate) fn address() -> String {
    format!("unix://{FOLDER}/docker.sock")
}

fn docker(arguments: &[&str]) -> anyhow::Result<bool> {
    let status = Command::new("docker")
        .args(["--host", &address()])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("the docker client cannot be started; install docker.io")?;
    Ok(status.success())
}

/// Starts it, unless it runs, with its image.
pub(crate) fn start(folder: &Path) -> anyhow::Result<()> {
    if !docker(&["version"])? {
        std::fs::create_dir_all(FOLDER).with_context(|| format!("cannot make {FOLDER}; tests need root"))?;
        let log = folder.join("docker.log");
        let at = |name: &str| format!("{FOLDER}/{name}");
        launch(
            Command::new("dockerd")
                .args([
                    "--host",
                    &address(),
                    "--exec-root",
                    &at("exec"),
                    "--pidfile",
                    &at("docker.pid"),
                ])
                .arg("--data-root")
                .arg(folder.join("docker"))
                .args([
                    "--bridge=none",
                    "--iptables=false",
                    "--ip6tables=false",
                    "--ip-forward=false",
                ]),
            &log,
        )?;
        let begin = Instant::now();
        while !docker(&["version"])? {
            ensure!(
                begin.elapsed() < PATIENCE,
                "the Docker engine did not start; see {}",
                log.display()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    // Another engine on this machine may have forbidden all traffic over bridges that are not its own.
    if !rule("-C") {
        rule("-I");
    }
    if !docker(&["image", "inspect", IMAGE])? {
        make_image(folder)?;
    }
    Ok(())
}

/// Changes the rule that lets containers on our bridge talk to each other. Whether that succeeded.
fn rule(change: &str) -> bool {
    let status = Command::new("iptables")
        .args([change, "FORWARD", "-i", BRIDGE, "-o", BRIDGE, "-j", "ACCEPT"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

fn make_image(folder: &Path) -> anyhow::Result<()> {
    let root = folder.join("image");
    if root.exists() {
        std::fs::remove_dir_all(&root)?;
    }
    for part in ["bin", "tmp", "data"] {
        std::fs::create_dir_all(root.join(part))?;
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox"))
        .context("the image is made of /bin/busybox; install busybox-static")?;
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    let archive = folder.join("image.tar");
    let path = |path: &PathBuf| path.to_string_lossy().into_owned();
    let made = Command::new("tar")
        .args(["-C", &path(&root), "-cf", &path(&archive), "."])
        .status()?;
    ensure!(made.success(), "tar failed");
    ensure!(
        docker(&["import", &path(&archive), IMAGE])?,
        "docker import failed"
    );
    Ok(())
}

/// Stops it, with all its containers.
pub(crate) fn stop() {
    docker(&["container", "prune", "--force"]).ok();
    rule("-D");
    let Ok(text) = std::fs::read_to_string(format!("{FOLDER}/docker.pid")) else {
        return;
    };
    let signal = |signal: &str| {
        let status = Command::new("kill")
            .args([signal, text.trim()])
            .stderr(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    };
    // Ended by force it would leave its containers behind.
    let begin = Instant::now();
    signal("-TERM");
    while signal("-0") && begin.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(100));
    }
    signal("-KILL");
}
