//! From configuration to adapters.

use crate::examples;
use anyhow::Context;
use broker::{Broker, RabbitBroker};
use config::{Config, DagBundle, DatabaseUrl, Secret};
use identity::{JoinToken, Tokens};
use lifecycle::{Kind, Lifecycle};
use python::{Bundle, ForkServer, ForkServerConfig};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use store::{Cipher, Store};

/// Name of the bundle of example DAGs.
pub const EXAMPLES_BUNDLE: &str = "updraft-examples";
/// Pause between two looks at a database that is not there (yet), and how often it is told.
const DATABASE_PAUSE: Duration = Duration::from_secs(1);
const TELL_EVERY: u32 = 30;

/// Opens the configured store and checks its schema. A database that cannot be reached, or takes no more connections, is
/// waited for until it can be had or the component is stopped.
///
/// # Errors
/// When it refuses us for good (wrong password, no such database), or has another schema.
pub async fn open_store(config: &Config) -> anyhow::Result<Store> {
    let mut turn = 0;
    loop {
        let opened = async {
            let store = connect(config).await?;
            store.check_schema().await?;
            Ok::<_, store::StoreError>(store)
        };
        match opened.await {
            Ok(store) => return Ok(store),
            Err(error) if error.is_transient() => {
                if turn % TELL_EVERY == 0 {
                    tracing::warn!("waiting for the database: {error}");
                }
            }
            Err(error) => return Err(error).context("check [database] sql_alchemy_conn"),
        }
        turn += 1;
        tokio::time::sleep(DATABASE_PAUSE).await;
    }
}

async fn connect(config: &Config) -> Result<Store, store::StoreError> {
    match &config.database.url {
        DatabaseUrl::Sqlite(path) => Store::open_sqlite(path).await,
        DatabaseUrl::MariaDb(url) => Store::open_mariadb(url.expose(), config.database.pool_size).await,
    }
}

/// The configured broker. It is connected to when it is first needed, so one that is down is no error here.
///
/// # Errors
/// When its URL is not one of RabbitMQ.
pub fn open_broker(
    config: &Config,
    component: &str,
    lifecycle: &Lifecycle,
) -> anyhow::Result<Arc<dyn Broker>> {
    let broker = connect_broker(config, component)?;
    let (sending, end) = (broker.hint_sender().run(), lifecycle.stop().now().clone());
    lifecycle.spawn("hint sender", Kind::Background, async move {
        end.run_until_cancelled(sending).await;
    });
    Ok(Arc::new(broker))
}

/// The configured broker for a command that ends soon: it tells its hints when it is closed.
///
/// # Errors
/// As [`open_broker`].
pub fn open_broker_for_command(config: &Config) -> anyhow::Result<Arc<dyn Broker>> {
    Ok(Arc::new(connect_broker(config, "cli")?))
}

fn connect_broker(config: &Config, component: &str) -> Result<RabbitBroker, broker::BrokerError> {
    let name = format!("updraft-{component}@{}", crate::hostname());
    RabbitBroker::new(config.celery.broker_url.expose(), &name)
}

/// The cipher for variables and connections. An installation on one machine that has no key configured makes itself one.
///
/// # Errors
/// When a key is not a Fernet key, or the key's file cannot be read or written.
pub fn open_cipher(config: &Config) -> anyhow::Result<Cipher> {
    let keys = &config.core.fernet_keys;
    match config.database.url {
        DatabaseUrl::Sqlite(_) if keys.is_empty() => {
            let key = kept_secret(&config.home, "fernet_key.generated", Cipher::new_key)?;
            Ok(Cipher::new(key.expose())?)
        }
        DatabaseUrl::Sqlite(_) | DatabaseUrl::MariaDb(_) => Ok(Cipher::new(keys.expose())?),
    }
}

/// Signs and checks tokens with the configured secret.
///
/// # Errors
/// When none is configured, or one that is known to everyone.
pub fn tokens(config: &Config) -> anyhow::Result<Tokens> {
    let secret = &config.api_auth.jwt_secret;
    anyhow::ensure!(
        !secret.is_empty(),
        "[api_auth] jwt_secret is not set; all API servers need the same, for example from `openssl rand -base64 48`"
    );
    anyhow::ensure!(
        secret.expose().len() >= 16,
        "[api_auth] jwt_secret is shorter than 16 characters; make one with `openssl rand -base64 48`"
    );
    Ok(Tokens::new(secret, &config.api_auth.jwt_audience))
}

/// The pool of workers whose join token is made from `[api_auth] jwt_secret` where none is configured.
pub const DEFAULT_POOL: &str = "default";

/// The join token that a worker registers with: the configured one, or that of the pool `default`.
///
/// # Errors
/// When there is nothing to make it from, or the configured one is none.
pub fn join_token(config: &Config) -> anyhow::Result<JoinToken> {
    let (own, secret) = (&config.updraft.join_token, &config.api_auth.jwt_secret);
    if !own.is_empty() {
        if !secret.is_empty() {
            tracing::warn!(
                "[api_auth] jwt_secret is set on this worker, which does not need it: whoever reads it here can make himself an admin; take it away"
            );
        }
        return JoinToken::read(own.expose()).context("[updraft] join_token");
    }
    anyhow::ensure!(
        !secret.is_empty(),
        "[updraft] join_token is not set; `updraft workers join-token` on an API server's machine prints it"
    );
    tracing::warn!(
        "[updraft] join_token is not set: this worker joins with a token made from [api_auth] jwt_secret, with which whoever reads it here can make himself an admin. Set the join token that `updraft workers join-token` prints instead, and take jwt_secret away from workers"
    );
    Ok(JoinToken::of_pool(secret, DEFAULT_POOL)?)
}

/// The secret for tokens of an installation on one machine.
///
/// # Errors
/// When its file cannot be read or written.
pub fn shared_secret(home: &Path) -> anyhow::Result<Secret> {
    kept_secret(home, "jwt_secret.generated", || {
        let half = || uuid::Uuid::new_v4().simple();
        format!("{}{}", half(), half())
    })
}

/// A secret kept in a file of `home` that only its owner can read; made at first use.
fn kept_secret(home: &Path, name: &str, make: impl Fn() -> String) -> anyhow::Result<Secret> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let path = home.join(name);
    let read = || std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()));
    if path.exists() {
        return Ok(Secret::new(read()?.trim()));
    }
    std::fs::create_dir_all(home).with_context(|| format!("cannot make {}", home.display()))?;
    // Whole or not at all, and the first of two wins.
    let draft = home.join(format!("{name}.{}", std::process::id()));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| file.write_all(make().as_bytes()));
    written.with_context(|| format!("cannot write {}", draft.display()))?;
    let linked = std::fs::hard_link(&draft, &path);
    std::fs::remove_file(&draft).ok();
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot write {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(Secret::new(read()?.trim())),
    }
}

/// The fork server for that interpreter, with the configured bundles and, if wanted, the examples. `env` goes to it and
/// all its children.
///
/// # Errors
/// When the examples cannot be written.
pub fn fork_server(
    config: &Config,
    python: PathBuf,
    env: &[(String, String)],
    lifecycle: &Lifecycle,
) -> anyhow::Result<ForkServer> {
    let mut bundles: Vec<Bundle> = config.dag_processor.bundles.iter().map(bundle).collect();
    if config.core.load_examples {
        bundles.push(Bundle::local(EXAMPLES_BUNDLE, examples::write(&config.home)?));
    }
    let hidden = std::env::vars()
        .map(|(name, _)| name)
        .filter(|name| is_secret_variable(name))
        .collect();
    let timeout = config.core.dagbag_import_timeout.as_secs_f64().to_string();
    let own = [
        (
            "AIRFLOW__CORE__DAGS_FOLDER".to_owned(),
            config.core.dags_folder.to_string_lossy().into_owned(),
        ),
        ("AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT".to_owned(), timeout),
        (
            "AIRFLOW__LOGGING__LOGGING_LEVEL".to_owned(),
            config.logging.level.clone(),
        ),
    ];
    let config = ForkServerConfig {
        python,
        home: config.home.clone(),
        bundles,
        env: own.into_iter().chain(env.iter().cloned()).collect(),
        hidden_env: hidden,
    };
    Ok(ForkServer::new(config, lifecycle.clone()))
}

fn bundle(configured: &DagBundle) -> Bundle {
    Bundle {
        name: configured.name.clone(),
        path: configured.folder.clone().unwrap_or_default(),
        classpath: configured.classpath.clone(),
        kwargs: Value::Object(configured.kwargs.clone()),
        version: None,
        is_local: configured.folder.is_some(),
    }
}

/// Environment variables that tasks and parsers must not see.
pub fn is_secret_variable(name: &str) -> bool {
    const SECTIONS: [&str; 4] = [
        "AIRFLOW__DATABASE__",
        "AIRFLOW__CELERY__",
        "AIRFLOW__API_AUTH__",
        "AIRFLOW__UPDRAFT__",
    ];
    SECTIONS.iter().any(|section| name.starts_with(section)) || name.starts_with("AIRFLOW__CORE__FERNET_KEY")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_the_components_are_hidden_from_user_code() {
        for hidden in [
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
            "AIRFLOW__API_AUTH__JWT_SECRET",
            "AIRFLOW__CORE__FERNET_KEY_CMD",
        ] {
            assert!(is_secret_variable(hidden), "{hidden}");
        }
        assert!(!is_secret_variable("AIRFLOW_VAR_GREETING"));
    }
}
