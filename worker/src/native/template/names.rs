//! The names that templates may use. Everything else is left to Python.

use super::super::Settings;
use super::super::datetime::Pendulum;
use super::value::{Outcome, Py};
use crate::run::Facts;
use chrono::{DateTime, Datelike, Utc};
use chrono_tz::Tz;
use serde_json::Value;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Names and their values.
pub(super) type Names = BTreeMap<&'static str, Py>;

fn object<const N: usize>(fields: [(&'static str, Py); N]) -> Py {
    Py::Object(Rc::new(fields.into()))
}

/// An instant of the run. Years that Python writes without leading zeros are none that we know.
fn instant(facts: &Facts, key: &str) -> Option<Pendulum> {
    let at = DateTime::parse_from_rfc3339(facts.run(key)?).ok()?;
    let at = at.with_timezone(&Utc).with_timezone(&Tz::UTC);
    (1000..=9999).contains(&at.year()).then_some(Pendulum(at))
}

/// The names of one try.
///
/// # Errors
/// When a value is one that is not known here.
pub(super) fn names(settings: &Settings, facts: &Facts, document: &Value) -> Outcome<Names> {
    let mut names = Names::new();
    if let Some(date) = instant(facts, "logical_date") {
        let at = date.0;
        names.insert("logical_date", Py::Instant(date));
        names.insert("ds", Py::text(at.format("%Y-%m-%d").to_string()));
        names.insert("ds_nodash", Py::text(at.format("%Y%m%d").to_string()));
        names.insert("ts", Py::text(date.iso('T')));
        names.insert("ts_nodash", Py::text(at.format("%Y%m%dT%H%M%S").to_string()));
        names.insert(
            "ts_nodash_with_tz",
            Py::text(date.iso('T').replace(['-', ':'], "")),
        );
        old_names(
            &mut names,
            facts,
            document,
            date,
            instant(facts, "data_interval_end"),
        );
        for key in ["data_interval_start", "data_interval_end"] {
            if let Some(at) = instant(facts, key) {
                names.insert(key, Py::Instant(at));
            }
        }
    }
    names.insert("run_id", Py::text(facts.ti("run_id")));
    let partition = facts.run("partition_key").map_or(Py::None, Py::text);
    names.insert("partition_key", partition);
    names.insert(
        "partition_date",
        instant(facts, "partition_date").map_or(Py::None, Py::Instant),
    );
    let ti = object([
        ("task_id", Py::text(facts.ti("task_id"))),
        ("dag_id", Py::text(facts.ti("dag_id"))),
        ("run_id", Py::text(facts.ti("run_id"))),
        (
            "try_number",
            Py::Int(i64::try_from(facts.try_number()).map_err(|error| error.to_string())?),
        ),
        ("map_index", Py::Int(-1)),
    ]);
    names.insert("ti", ti.clone());
    names.insert("task_instance", ti);
    names.insert("dag", object([("dag_id", Py::text(facts.ti("dag_id")))]));
    names.insert("task", object([("task_id", Py::text(facts.ti("task_id")))]));
    let conf = facts.startup.pointer("/ti_context/dag_run/conf");
    let conf = conf.filter(|conf| !conf.is_null());
    names.insert("params", params(settings, document, conf)?);
    let mut run = vec![
        ("run_id", Py::text(facts.ti("run_id"))),
        ("dag_id", Py::text(facts.ti("dag_id"))),
    ];
    if let Some(conf) = conf {
        run.push(("conf", Py::of_json(conf)?));
    }
    names.insert("dag_run", Py::Object(Rc::new(run)));
    names.insert("macros", Py::Macros);
    Ok(names)
}

/// Params with the run's conf over them. Whether a value is one that a param takes only Python decides.
fn params(settings: &Settings, document: &Value, conf: Option<&Value>) -> Outcome<Py> {
    let params = document.get("params").and_then(Value::as_object);
    let mut params = params.cloned().unwrap_or_default();
    let conf = conf.and_then(Value::as_object);
    if let Some(conf) = conf.filter(|_| settings.conf_overrides_params) {
        let checked = document.get("checked_params").and_then(Value::as_array);
        let is_checked = |name: &String| {
            checked.is_none_or(|checked| checked.iter().any(|other| other.as_str() == Some(name)))
        };
        if let Some(name) = conf.keys().find(|name| is_checked(name)) {
            return Err(format!("param {name} has a schema"));
        }
        params.extend(conf.clone());
    }
    Py::of_json(&Value::Object(params))
}

/// Names that Airflow 2 had around a run's logical date, as far as they follow from the run itself.
fn old_names(
    names: &mut Names,
    facts: &Facts,
    document: &Value,
    date: Pendulum,
    interval_end: Option<Pendulum>,
) {
    let at = date.0;
    let day = chrono::Duration::days(1);
    let mut dated = |name: &'static str, nodash: &'static str, at: DateTime<Tz>| {
        names.insert(name, Py::text(at.format("%Y-%m-%d").to_string()));
        names.insert(nodash, Py::text(at.format("%Y%m%d").to_string()));
    };
    if let (Some(after), Some(before)) = (at.checked_add_signed(day), at.checked_sub_signed(day)) {
        dated("tomorrow_ds", "tomorrow_ds_nodash", after);
        dated("yesterday_ds", "yesterday_ds_nodash", before);
    }
    let is_manual = facts.run("run_type") == Some("manual");
    let follows = document.get("intervals_follow") == Some(&true.into());
    let next = if is_manual {
        Some(date)
    } else {
        interval_end.filter(|end| follows && end.0 > at)
    };
    if let Some(next) = next {
        dated("next_ds", "next_ds_nodash", next.0);
        names.insert("next_execution_date", Py::Instant(next));
    }
    names.insert("execution_date", Py::Instant(date));
}
