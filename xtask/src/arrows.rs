//! Which crate may use which: arrows go down only, and heavy clients stay in their room.

use anyhow::{Context, ensure};
use serde_json::Value;
use std::process::Command;

/// Crates from the ground up: each may use only those before it.
const LAYERS: [&str; 20] = [
    "updraft-backoff",
    "updraft-model",
    "updraft-scheduling",
    "updraft-lifecycle",
    "updraft-sensitive",
    "updraft-config",
    "updraft-proto",
    "updraft-broker",
    "updraft-store",
    "updraft-identity",
    "updraft-telemetry",
    "updraft-processes",
    "updraft-python",
    "updraft-kubernetes",
    "updraft-bootstrap",
    "updraft-scheduler",
    "updraft-worker",
    "updraft-dag-processor",
    "updraft-api-server",
    "updraft",
];
/// Services, which know nothing of each other.
const SERVICES: [&str; 4] = [
    "updraft-scheduler",
    "updraft-worker",
    "updraft-dag-processor",
    "updraft-api-server",
];
/// Who alone may use these.
const ROOMS: [(&str, &[&str]); 6] = [
    ("sqlx", &["updraft-store"]),
    ("lapin", &["updraft-broker"]),
    ("minijinja", &["updraft-worker"]),
    ("rmpv", &["updraft-python"]),
    ("bollard", &["updraft-worker"]),
    // Tasks that are pods, and pods that run tasks.
    (
        "kube",
        &["updraft-kubernetes", "updraft-worker", "updraft-scheduler"],
    ),
];
/// What the pure crates must not use.
const IMPURE: [&str; 6] = ["tokio", "sqlx", "tonic", "lapin", "tracing", "async-trait"];

pub(crate) fn check() -> anyhow::Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()?;
    ensure!(output.status.success(), "cargo metadata failed");
    let facts: Value = serde_json::from_slice(&output.stdout)?;
    let packages = facts["packages"]
        .as_array()
        .context("cargo metadata has no packages")?;
    let mut broken = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let uses = package["dependencies"].as_array().into_iter().flatten();
        let uses = uses
            .filter(|used| used["kind"].as_str() != Some("dev"))
            .filter_map(|used| used["name"].as_str());
        broken.extend(
            uses.filter(|used| !may_use(name, used))
                .map(|used| format!("{name} must not use {used}")),
        );
    }
    ensure!(broken.is_empty(), "{}", broken.join("\n"));
    Ok(())
}

fn may_use(name: &str, used: &str) -> bool {
    let place = |name: &str| LAYERS.iter().position(|layer| *layer == name);
    let upward = place(name)
        .zip(place(used))
        .is_some_and(|(own, other)| own <= other);
    let across = SERVICES.contains(&name) && SERVICES.contains(&used);
    let room = ROOMS
        .iter()
        .any(|(client, owners)| *client == used && !owners.contains(&name));
    let impure = matches!(name, "updraft-model" | "updraft-scheduling") && IMPURE.contains(&used);
    !(upward || across || room || impure)
}
