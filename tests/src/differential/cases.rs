//! Cases: listed by hand, or generated from a seed.

use super::commands::{of_environment, of_exit, of_output};
use super::expressions::template;
use super::operators::{of_docker, of_pod};
use super::schemas::{of_params, of_trigger};
use crate::lots::Lots;
use anyhow::Context;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// One task and the run that it is in.
#[derive(Debug, Clone)]
pub struct Case {
    /// The name of a listed case, or the number of a generated one.
    pub name: String,
    /// What it is, as `python_side.py` reads it.
    pub body: Value,
}

impl Case {
    /// A case of that name.
    pub fn new(name: String, mut body: Value) -> Self {
        body["dag_id"] = json!(format!("case_{name}"));
        Self { name, body }
    }

    /// What is compared: a task that runs (`bash`), what its templates come to (`docker`, `pod`), or whether a run is
    /// refused (`trigger`).
    pub fn kind(&self) -> &str {
        self.body["kind"].as_str().unwrap_or("bash")
    }

    /// The options of `airflow.cfg` that it sets, as variables.
    pub fn options(&self) -> BTreeMap<String, String> {
        let set = self.body["options"].as_object().into_iter().flatten();
        set.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()))
            .collect()
    }
}

/// The cases of `tests/differential/listed.json`.
///
/// # Errors
/// When the file is no list of cases.
pub fn listed() -> anyhow::Result<Vec<Case>> {
    let cases: Map<String, Value> = serde_json::from_str(include_str!("../../differential/listed.json"))
        .context("tests/differential/listed.json")?;
    Ok(cases
        .into_iter()
        .map(|(name, body)| Case::new(name, body))
        .collect())
}

/// The generated case of this number.
pub fn generated(seed: u64, number: u64) -> Case {
    let mut lots = Lots::new(seed.wrapping_mul(1_000_003).wrapping_add(number));
    let mut body = match lots.below(40) {
        0..=15 => of_template(&mut lots),
        16..=20 => of_output(&mut lots),
        21..=24 => of_environment(&mut lots),
        25..=28 => of_params(&mut lots),
        29 | 30 => of_exit(&mut lots),
        31..=33 => of_docker(&mut lots),
        34 | 35 => of_pod(&mut lots),
        _ => of_trigger(&mut lots),
    };
    if lots.below(4) == 0 {
        body["options"] = options(&mut lots);
    }
    Case::new(number.to_string(), body)
}

/// Options of `airflow.cfg` that both ways heed, each with some of its values.
const OPTIONS: [(&str, &[&str]); 7] = [
    (
        "CORE__MAX_TEMPLATED_FIELD_LENGTH",
        &["0", "-1", "1", "60", "90", "100", "200", "1000", "1000000"],
    ),
    ("CORE__HIDE_SENSITIVE_VAR_CONN_FIELDS", &["False", "True"]),
    (
        "CORE__SENSITIVE_VAR_CONN_NAMES",
        &["", "a", "host", "b_1, x.y", "bash_command", "IMAGE,k"],
    ),
    ("CORE__DAG_RUN_CONF_OVERRIDES_PARAMS", &["False", "True"]),
    ("LOGGING__MIN_LENGTH_MASKED_SECRET", &["1", "5", "20"]),
    ("CORE__DEFAULT_TIMEZONE", &["Asia/Seoul", "America/New_York"]),
    ("SCHEDULER__CREATE_CRON_DATA_INTERVALS", &["True"]),
];

/// One or two of them, set.
fn options(lots: &mut Lots) -> Value {
    let mut set = Map::new();
    for _ in 0..=lots.below(2) {
        let (name, values) = *lots.one(&OPTIONS);
        set.insert(format!("AIRFLOW__{name}"), (*lots.one(values)).into());
    }
    set.into()
}

pub(super) fn usual_params() -> Value {
    json!({
        "n": 3, "f": 2.5, "s": "a-b c", "u": "Grüße", "t": true, "z": null, "l": [1, "x", 2.5, null, "it's"],
        "d": {"k": "v", "n": [1], "b": false}, "e": "",
    })
}

fn of_template(lots: &mut Lots) -> Value {
    // What it prints is seen in the rendered fields and in the log; nothing needs to be run for that.
    json!({
        "bash_command": format!(": <<'XEOF'\n{}", template(lots)),
        "params": usual_params(), "conf": {"c": "blue", "l": [1.0, true]},
        "try_number": 1 + lots.below(3), "run_id": lots.one(&["r", "manual__2025-03-01T16:30:00+00:00"]),
        "logical_date": lots.one(&["2025-03-01T16:30:00Z", "2024-12-31T23:59:59.123456Z", "2025-03-30T00:30:00Z"]),
    })
}
