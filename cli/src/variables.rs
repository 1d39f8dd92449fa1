//! `variables`

use crate::arguments::VariablesCommand;
use crate::database::open;
use crate::output::{Format, print, rows};
use anyhow::Context;
use config::Config;
use model::json::{self, Text};
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
        let value = json::read(&value).with_context(|| format!("the value of {key} is not JSON"))?;
        print(&format!("{}\n", json::write(&value)));
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
        json::read(value).context("the value is not JSON")?;
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
    let not_json = || format!("{} is not a JSON object", file.display());
    let Value::Object(values) = json::read(&text).with_context(not_json)? else {
        anyhow::bail!(not_json());
    };
    let mut count = 0;
    for (key, value) in &values {
        // Airflow writes {"value": ..., "description": ...} for variables with a description.
        let description = value.get("description").and_then(Value::as_str);
        let inner = value
            .get("value")
            .filter(|_| description.is_some())
            .unwrap_or(value);
        let text = match inner {
            Value::String(text) => match Text::of(text) {
                Text::Plain(text) | Text::Integer(text) => text.to_owned(),
            },
            other => json::write(other),
        };
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
        let value = json::read(&variable.value).unwrap_or_else(|_| json::text(variable.value));
        let value = match variable.description {
            Some(description) => json!({"value": value, "description": description}),
            None => value,
        };
        values.insert(variable.key, value);
    }
    let count = values.len();
    let text = format!("{}\n", json::write_pretty(&Value::Object(values)));
    if file == Path::new("-") {
        print(&text);
        return Ok(());
    }
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    print(&format!(
        "{} variables successfully exported to {}\n",
        count,
        file.display()
    ));
    Ok(())
}
