//! `variables`

use crate::arguments::VariablesCommand;
use crate::database::open;
use crate::output::{Format, print, rows};
use anyhow::Context;
use config::Config;
use serde_json::{Map, Value, json};
use std::path::Path;
use store::{Cipher, Store};

pub(crate) async fn run(command: VariablesCommand, config: Config) -> anyhow::Result<()> {
    let store = open(&config).await?;
    let cipher = bootstrap::open_cipher(&config)?;
    let outcome = match command {
        VariablesCommand::List(options) => list(&store, &cipher, options.output).await,
        VariablesCommand::Get { key, default, json } => get(&store, &cipher, &key, default, json).await,
        VariablesCommand::Set {
            key,
            value,
            description,
            json,
        } => set(&store, &cipher, &key, &value, description.as_deref(), json).await,
        VariablesCommand::Delete { key } => delete(&store, &key).await,
        VariablesCommand::Import {
            file,
            action_on_existing_key,
        } => import(&store, &cipher, &file, &action_on_existing_key).await,
        VariablesCommand::Export { file } => export(&store, &cipher, &file).await,
    };
    store.close().await;
    outcome
}

async fn list(store: &Store, cipher: &Cipher, format: Format) -> anyhow::Result<()> {
    let variables = store.reader().await?.variables(cipher).await?;
    let shown: Vec<Value> = variables
        .iter()
        .map(|variable| json!({"key": variable.key}))
        .collect();
    rows(format, &["key"], &shown);
    Ok(())
}

async fn get(
    store: &Store,
    cipher: &Cipher,
    key: &str,
    default: Option<String>,
    json: bool,
) -> anyhow::Result<()> {
    let found = store
        .reader()
        .await?
        .variable(key, cipher)
        .await?
        .map(|variable| variable.value);
    let value = found
        .or(default)
        .with_context(|| format!("Variable {key} does not exist"))?;
    if json {
        let value: Value =
            serde_json::from_str(&value).with_context(|| format!("the value of {key} is not JSON"))?;
        print(&format!("{value}\n"));
    } else {
        print(&format!("{value}\n"));
    }
    Ok(())
}

async fn set(
    store: &Store,
    cipher: &Cipher,
    key: &str,
    value: &str,
    description: Option<&str>,
    json: bool,
) -> anyhow::Result<()> {
    if json {
        serde_json::from_str::<Value>(value).context("the value is not JSON")?;
    }
    store::transact!(*store, "set variable", |tx| tx
        .set_variable(key, value, description, cipher)
        .await)?;
    print(&format!("Variable {key} created\n"));
    Ok(())
}

async fn delete(store: &Store, key: &str) -> anyhow::Result<()> {
    store::transact!(*store, "delete variable", |tx| tx.delete_variable(key).await)?;
    print(&format!("Variable {key} deleted\n"));
    Ok(())
}

async fn import(store: &Store, cipher: &Cipher, file: &Path, action: &str) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let values: Map<String, Value> =
        serde_json::from_str(&text).with_context(|| format!("{} is not a JSON object", file.display()))?;
    let mut count = 0;
    for (key, value) in &values {
        // Airflow writes {"value": ..., "description": ...} for variables with a description.
        let description = value.get("description").and_then(Value::as_str);
        let inner = value
            .get("value")
            .filter(|_| description.is_some())
            .unwrap_or(value);
        let text = inner.as_str().map_or_else(|| inner.to_string(), str::to_owned);
        let exists = store.reader().await?.variable(key, cipher).await?.is_some();
        anyhow::ensure!(
            !(exists && action == "fail"),
            "Failed. The variable with key {key} already exists"
        );
        if exists && action == "skip" {
            continue;
        }
        store::transact!(*store, "import variable", |tx| tx
            .set_variable(key, &text, description, cipher)
            .await)?;
        count += 1;
    }
    print(&format!(
        "{count} of {} variables successfully updated.\n",
        values.len()
    ));
    Ok(())
}

async fn export(store: &Store, cipher: &Cipher, file: &Path) -> anyhow::Result<()> {
    let mut values = Map::new();
    for variable in store.reader().await?.variables(cipher).await? {
        let value = serde_json::from_str(&variable.value).unwrap_or(Value::String(variable.value));
        let value = match variable.description {
            Some(description) => json!({"value": value, "description": description}),
            None => value,
        };
        values.insert(variable.key, value);
    }
    let text = format!("{}\n", serde_json::to_string_pretty(&values)?);
    if file == Path::new("-") {
        print(&text);
        return Ok(());
    }
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    print(&format!(
        "{} variables successfully exported to {}\n",
        values.len(),
        file.display()
    ));
    Ok(())
}
