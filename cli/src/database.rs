//! `db`, and opening the database for other commands.

use crate::arguments::DbCommand;
use crate::output::print;
use anyhow::Context;
use config::{Config, DatabaseUrl};
use std::io::{BufRead, IsTerminal, Write};
use store::Store;

/// The configured database, whatever its schema.
pub(crate) async fn connect(config: &Config) -> anyhow::Result<Store> {
    let store = match &config.database.url {
        DatabaseUrl::Sqlite(path) => Store::open_sqlite(path).await,
        DatabaseUrl::MariaDb(url) => Store::open_mariadb(url.expose(), 2).await,
    };
    store.context("check [database] sql_alchemy_conn")
}

/// The configured database with the right schema.
pub(crate) async fn open(config: &Config) -> anyhow::Result<Store> {
    let store = connect(config).await?;
    store.check_schema().await?;
    Ok(store)
}

/// Migrates, and makes what a new installation needs.
pub(crate) async fn migrate(store: &Store, config: &Config) -> anyhow::Result<Vec<&'static str>> {
    let applied = store.migrate().await?;
    let slots = config.core.default_pool_task_slot_count;
    store::transact!(store, "default pool", |tx| tx.ensure_default_pool(slots).await)?;
    Ok(applied)
}

pub(crate) async fn run(command: DbCommand, config: Config) -> anyhow::Result<()> {
    let store = connect(&config).await?;
    match command {
        DbCommand::Migrate => {
            let applied = migrate(&store, &config).await?;
            let told = if applied.is_empty() {
                "nothing to do".to_owned()
            } else {
                applied.join(", ")
            };
            print(&format!("Database migrated: {told}\n"));
        }
        DbCommand::Check => {
            store.check_schema().await?;
            print("Connection successful.\n");
        }
        DbCommand::Reset { yes } => {
            if !yes && !confirmed("This will drop existing tables if they exist. Proceed? (y/n)")? {
                anyhow::bail!("Cancelled");
            }
            store.reset().await?;
            migrate(&store, &config).await?;
            print("Database reset.\n");
        }
    }
    store.close().await;
    Ok(())
}

fn confirmed(question: &str) -> anyhow::Result<bool> {
    anyhow::ensure!(
        std::io::stdin().is_terminal(),
        "{question} There is nobody to ask; use --yes"
    );
    print(question);
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim().eq_ignore_ascii_case("y"))
}
