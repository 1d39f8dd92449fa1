//! Who we are to image registries: the connection of a task, or what `docker login` left on this machine.

use super::connection;
use crate::Shared;
use crate::log::TryLog;
use crate::run::Facts;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard::auth::DockerCredentials;
use serde_json::Value;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// How long a credential helper may take.
const HELPER: Duration = Duration::from_secs(30);
/// How docker-py's configuration calls Docker Hub.
const HUB: &str = "https://index.docker.io/v1/";

/// Why there is no login.
pub(super) enum NoLogin {
    /// Nobody can tell the connection.
    Untold(String),
    /// The connection is not there, or not fit for it.
    Unfit(String),
}

/// A registry login from an Airflow connection.
pub(super) struct Login {
    /// Host and port, as the connection names them.
    pub(super) registry: String,
    credentials: DockerCredentials,
}

/// The host of the registry that an image comes from.
pub(super) fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// A registry's address as docker-py compares it: without scheme and path.
fn hostname(address: &str) -> &str {
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    match address.split('/').next().unwrap_or(address) {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

/// Reads a connection from the control plane.
///
/// # Errors
/// When there is none, or it lacks what a login needs; the text says what.
pub(super) async fn login(
    shared: &Shared,
    facts: &Facts,
    log: &TryLog,
    conn_id: &str,
) -> Result<Login, NoLogin> {
    let connection = connection::read(shared, facts, log, conn_id).await;
    let connection = connection.map_err(|why| NoLogin::Untold(why.0))?;
    let connection = connection.ok_or_else(|| format!("The conn_id `{conn_id}` isn't defined"));
    of_connection(&connection.map_err(NoLogin::Unfit)?).map_err(NoLogin::Unfit)
}

fn of_connection(connection: &Value) -> Result<Login, String> {
    let text = |key: &str| connection.get(key).and_then(Value::as_str).map(str::to_owned);
    let host = text("host").filter(|host| !host.is_empty());
    let host = host.ok_or("No Docker Registry URL provided.")?;
    let login = text("login").filter(|login| !login.is_empty());
    let login = login.ok_or("No Docker Registry username provided.")?;
    let registry = match connection.get("port").and_then(Value::as_u64) {
        Some(port) => format!("{host}:{port}"),
        None => host,
    };
    Ok(Login {
        credentials: DockerCredentials {
            username: Some(login),
            password: text("password"),
            serveraddress: Some(registry.clone()),
            ..DockerCredentials::default()
        },
        registry,
    })
}

/// The credentials for an image: of the connection if it is for that registry, else of this machine.
pub(super) async fn credentials(login: Option<Login>, image: &str) -> Option<DockerCredentials> {
    let registry = registry_of(image);
    if let Some(login) = login.filter(|login| hostname(&login.registry) == registry) {
        return Some(login.credentials);
    }
    let config = client_configuration();
    let helper = config
        .pointer("/credHelpers")
        .and_then(|helpers| helpers.get(registry))
        .or_else(|| config.get("credsStore"))
        .and_then(Value::as_str);
    if let Some(helper) = helper {
        return from_helper(helper, registry).await;
    }
    let known = config.get("auths")?.as_object()?;
    let (_, entry) = known.iter().find(|(address, _)| hostname(address) == registry)?;
    from_entry(entry)
}

/// What the Docker client on this machine is configured with.
pub(super) fn client_configuration() -> Value {
    let folder = match std::env::var_os("DOCKER_CONFIG") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".docker"),
    };
    let text = std::fs::read(folder.join("config.json")).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn from_entry(entry: &Value) -> Option<DockerCredentials> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
    if let Some(token) = text("identitytoken") {
        return Some(DockerCredentials {
            identitytoken: Some(token),
            ..DockerCredentials::default()
        });
    }
    let decoded = String::from_utf8(STANDARD.decode(text("auth")?).ok()?).ok()?;
    let (username, password) = decoded.split_once(':')?;
    Some(DockerCredentials {
        username: Some(username.to_owned()),
        password: Some(password.trim_end_matches('\0').to_owned()),
        ..DockerCredentials::default()
    })
}

/// Asks `docker-credential-HELPER`; the registry goes through its input, as the protocol has it.
async fn from_helper(helper: &str, registry: &str) -> Option<DockerCredentials> {
    let work = async {
        let mut child = tokio::process::Command::new(format!("docker-credential-{helper}"))
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .ok()?;
        let address = if registry == "docker.io" { HUB } else { registry };
        child.stdin.take()?.write_all(address.as_bytes()).await.ok()?;
        let output = child.wait_with_output().await.ok()?;
        let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
        let text = |key: &str| answer.get(key).and_then(Value::as_str).map(str::to_owned);
        let (username, secret) = (text("Username")?, text("Secret"));
        Some(if username == "<token>" {
            DockerCredentials {
                identitytoken: secret,
                ..DockerCredentials::default()
            }
        } else {
            DockerCredentials {
                username: Some(username),
                password: secret,
                ..DockerCredentials::default()
            }
        })
    };
    tokio::time::timeout(HELPER, work).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn images_name_their_registry_and_the_hub_has_many_names() {
        for (image, registry) in [
            ("busybox", "docker.io"),
            ("library/busybox:1", "docker.io"),
            ("localhost/a", "localhost"),
            ("r.example:5000/a/b@sha256:0", "r.example:5000"),
        ] {
            assert_eq!(registry_of(image), registry);
        }
        assert_eq!(hostname("https://index.docker.io/v1/"), "docker.io");
        assert_eq!(hostname("r.example:5000"), "r.example:5000");
    }

    #[test]
    fn what_docker_login_left_is_read() {
        let entry = json!({"auth": STANDARD.encode("me:pass:word")});
        let credentials = from_entry(&entry).unwrap();
        assert_eq!(credentials.username.as_deref(), Some("me"));
        assert_eq!(credentials.password.as_deref(), Some("pass:word"));
    }
}
