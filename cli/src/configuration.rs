//! `config` and `info`.

use crate::arguments::ConfigListOptions;
use crate::output::{self, Format, print};
use anyhow::Context;
use config::{Config, DatabaseUrl, OPTIONS, RawConfig};
use serde_json::json;

const HIDDEN: &str = "< hidden >";

pub(crate) fn list(options: &ConfigListOptions) -> anyhow::Result<()> {
    let raw = RawConfig::load()?;
    let mut out = String::new();
    let mut section = "";
    let wanted = |name: &str| options.section.as_deref().is_none_or(|wanted| wanted == name);
    if options.defaults {
        for option in OPTIONS.iter().filter(|option| wanted(option.section)) {
            if option.section != section {
                section = option.section;
                out.push_str(&format!("[{section}]\n"));
            }
            out.push_str(&format!(
                "# {}\n# {} = {}\n\n",
                option.description, option.key, option.default
            ));
        }
        print(&out);
        return Ok(());
    }
    for (name, key, value, source, _) in raw.all().filter(|(name, ..)| wanted(name)) {
        if name != section {
            section = name;
            out.push_str(&format!("[{section}]\n"));
        }
        let value = if config::is_secret(name, key, value) && !options.show_values {
            HIDDEN
        } else {
            value
        };
        if options.include_sources {
            out.push_str(&format!("# source: {}\n", source.as_str()));
        }
        out.push_str(&format!("{key} = {}\n", value.replace('\n', "\n    ")));
    }
    print(&out);
    Ok(())
}

pub(crate) fn get(section: &str, option: &str) -> anyhow::Result<()> {
    let raw = RawConfig::load()?;
    let (value, _) = raw
        .get(&section.to_lowercase(), &option.to_lowercase())
        .with_context(|| format!("The option [{section}/{option}] is not found in config."))?;
    print(&format!("{value}\n"));
    Ok(())
}

pub(crate) fn info(format: Format) -> anyhow::Result<()> {
    let config = Config::load()?;
    let database = match &config.database.url {
        DatabaseUrl::Sqlite(path) => format!("SQLite {}", path.display()),
        DatabaseUrl::MariaDb(_) => "MariaDB".to_owned(),
    };
    let python = config
        .updraft
        .python
        .as_ref()
        .map_or_else(|| "(made by standalone)".to_owned(), |p| p.display().to_string());
    let rows: Vec<_> = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("airflow_api", api_server::AIRFLOW_VERSION.to_owned()),
        ("airflow_home", config.home.display().to_string()),
        ("dags_folder", config.core.dags_folder.display().to_string()),
        (
            "base_log_folder",
            config.logging.base_log_folder.display().to_string(),
        ),
        ("database", database),
        ("python", python),
        (
            "system",
            format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        ),
        ("hostname", bootstrap::hostname()),
    ]
    .into_iter()
    .map(|(key, value)| json!({"key": key, "value": value}))
    .collect();
    output::rows(format, &["key", "value"], &rows);
    Ok(())
}
