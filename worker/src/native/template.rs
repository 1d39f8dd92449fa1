//! Templates, rendered exactly as Airflow's Jinja would, or not at all.

use super::datetime::{Pendulum, ds_add};
use crate::run::Facts;
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use minijinja::value::{Object, Serde, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior, Value, context};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Steps that rendering one template may take.
const FUEL: u64 = 1_000_000;

/// Renders templates of one try.
pub(super) struct Renderer {
    environment: Environment<'static>,
    context: Value,
}

impl Renderer {
    pub(super) fn new(facts: &Facts, params: Option<&serde_json::Value>) -> Self {
        let mut environment = Environment::empty();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_formatter(format_value);
        environment.add_function("range", minijinja::functions::range);
        add_filters(&mut environment);
        Self {
            environment,
            context: context(facts, params),
        }
    }

    /// Renders one template.
    ///
    /// # Errors
    /// When anything in it is not known here.
    pub(super) fn render(&self, template: &str) -> Result<String, String> {
        if !template.contains('{') {
            // Jinja drops one newline at the end of every template.
            return Ok(template.strip_suffix('\n').unwrap_or(template).to_owned());
        }
        let template = self
            .environment
            .template_from_str(template)
            .map_err(|error| error.to_string())?;
        template
            .render(self.context.clone())
            .map_err(|error| error.to_string())
    }
}

impl Renderer {
    /// Renders every text in a value, but no key of an object, as Airflow's templater does.
    ///
    /// # Errors
    /// When anything in it is not known here.
    pub(super) fn render_all(&self, value: &serde_json::Value) -> Result<serde_json::Value, String> {
        use serde_json::Value;
        Ok(match value {
            Value::String(text) => self.render(text)?.into(),
            Value::Array(items) => Value::Array(
                items
                    .iter()
                    .map(|item| self.render_all(item))
                    .collect::<Result<_, _>>()?,
            ),
            Value::Object(fields) => Value::Object(
                fields
                    .iter()
                    .map(|(key, item)| Ok((key.clone(), self.render_all(item)?)))
                    .collect::<Result<_, String>>()?,
            ),
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        })
    }
}

/// Values print as in Python; those that could print otherwise are refused.
fn format_value(out: &mut minijinja::Output<'_>, _: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::String | ValueKind::Bool | ValueKind::None | ValueKind::Plain => write!(out, "{value}")?,
        ValueKind::Number if value.is_integer() => write!(out, "{value}")?,
        kind => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("how Python prints a {kind} is not known here"),
            ));
        }
    }
    Ok(())
}

fn add_filters(environment: &mut Environment<'static>) {
    fn instant(value: &Value) -> Result<&Pendulum, Error> {
        value
            .downcast_object_ref()
            .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "not an instant"))
    }
    environment.add_filter("ds", |value: &Value| {
        instant(value).map(|at| at.0.format("%Y-%m-%d").to_string())
    });
    environment.add_filter("ds_nodash", |value: &Value| {
        instant(value).map(|at| at.0.format("%Y%m%d").to_string())
    });
    environment.add_filter("ts", |value: &Value| instant(value).map(|at| at.iso('T')));
    environment.add_filter("ts_nodash", |value: &Value| {
        instant(value).map(|at| at.0.format("%Y%m%dT%H%M%S").to_string())
    });
    environment.add_filter("upper", |text: &str| text.to_uppercase());
    environment.add_filter("lower", |text: &str| text.to_lowercase());
    environment.add_filter("trim", |text: &str| text.trim().to_owned());
    environment.add_filter("replace", |text: &str, from: &str, to: &str| {
        text.replace(from, to)
    });
}

/// Names that Airflow 2 had around a run's logical date, as far as they follow from the run itself.
fn old_names(
    names: &mut BTreeMap<&str, Value>,
    facts: &Facts,
    date: Pendulum,
    interval_end: Option<Pendulum>,
) {
    let at = date.0;
    let day = chrono::Duration::days(1);
    let mut dated = |name: &'static str, nodash: &'static str, at: DateTime<Tz>| {
        names.insert(name, at.format("%Y-%m-%d").to_string().into());
        names.insert(nodash, at.format("%Y%m%d").to_string().into());
    };
    if let (Some(after), Some(before)) = (at.checked_add_signed(day), at.checked_sub_signed(day)) {
        dated("tomorrow_ds", "tomorrow_ds_nodash", after);
        dated("yesterday_ds", "yesterday_ds_nodash", before);
    }
    let is_manual = facts.run("run_type") == Some("manual");
    let follows = facts
        .native
        .as_ref()
        .is_some_and(|document| document.get("intervals_follow") == Some(&true.into()));
    let next = if is_manual {
        Some(date)
    } else {
        interval_end.filter(|end| follows && end.0 > at)
    };
    if let Some(next) = next {
        dated("next_ds", "next_ds_nodash", next.0);
        names.insert("next_execution_date", Value::from_object(next));
    }
    names.insert("execution_date", Value::from_object(date));
}

/// The names that templates may use. Everything else is undefined, and so sends the task to Python.
fn context(facts: &Facts, params: Option<&serde_json::Value>) -> Value {
    let mut names: BTreeMap<&str, Value> = BTreeMap::new();
    let instant = |key: &str| {
        let at = DateTime::parse_from_rfc3339(facts.run(key)?)
            .ok()?
            .with_timezone(&Utc)
            .with_timezone(&Tz::UTC);
        Some(Pendulum(at))
    };
    if let Some(date) = instant("logical_date") {
        let at = date.0;
        names.insert("logical_date", Value::from_object(date));
        names.insert("ds", at.format("%Y-%m-%d").to_string().into());
        names.insert("ds_nodash", at.format("%Y%m%d").to_string().into());
        names.insert("ts", date.iso('T').into());
        names.insert("ts_nodash", at.format("%Y%m%dT%H%M%S").to_string().into());
        names.insert("ts_nodash_with_tz", date.iso('T').replace(['-', ':'], "").into());
        old_names(&mut names, facts, date, instant("data_interval_end"));
        for key in ["data_interval_start", "data_interval_end"] {
            if let Some(at) = instant(key) {
                names.insert(key, Value::from_object(at));
            }
        }
    }
    names.insert("run_id", facts.ti("run_id").into());
    names.insert(
        "partition_key",
        facts
            .run("partition_key")
            .map_or_else(|| Value::from(()), Value::from),
    );
    let date = instant("partition_date").map_or_else(|| Value::from(()), Value::from_object);
    names.insert("partition_date", date);
    let ti = context! {
        task_id => facts.ti("task_id"), dag_id => facts.ti("dag_id"), run_id => facts.ti("run_id"),
        try_number => facts.try_number(), map_index => -1,
    };
    names.insert("ti", ti.clone());
    names.insert("task_instance", ti);
    names.insert("dag", context! { dag_id => facts.ti("dag_id") });
    names.insert("task", context! { task_id => facts.ti("task_id") });
    let conf = facts
        .startup
        .pointer("/ti_context/dag_run/conf")
        .cloned()
        .filter(|conf| !conf.is_null());
    let conf = conf.unwrap_or_else(|| serde_json::json!({}));
    let mut merged = params
        .and_then(serde_json::Value::as_object)
        .cloned()
        .unwrap_or_default();
    if let Some(conf) = conf.as_object() {
        merged.extend(conf.clone());
    }
    names.insert("params", Value::from(Serde(&merged)));
    let run_type = facts.run("run_type").unwrap_or_default();
    names.insert("dag_run", context! { run_id => facts.ti("run_id"), dag_id => facts.ti("dag_id"), conf => Value::from(Serde(&conf)), is_manual => run_type == "manual" });
    names.insert("macros", Value::from_object(Macros));
    Value::from_pairs(names)
}

/// `macros`
#[derive(Debug)]
struct Macros;

impl Object for Macros {
    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        match method {
            "ds_add" => {
                let (ds, days): (&str, i64) = from_args(args)?;
                ds_add(ds, days).map(Value::from)
            }
            _ => Err(ErrorKind::UnknownMethod.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::StartTask;
    use serde_json::json;

    fn facts(logical_date: Option<&str>) -> Facts {
        let startup = json!({
            "ti": {"id": "i", "dag_id": "d", "task_id": "t", "run_id": "r", "try_number": 2},
            "ti_context": {"dag_run": {
                "logical_date": logical_date, "data_interval_start": logical_date, "data_interval_end": logical_date,
                "run_type": "manual", "conf": {"color": "blue"},
            }},
        });
        Facts {
            permit: processes::lease::Lease::new().unwrap().permit(),
            start: StartTask::default(),
            startup,
            native: None,
            should_retry: false,
            rendered: std::sync::OnceLock::new(),
        }
    }

    fn render(template: &str) -> Result<String, String> {
        Renderer::new(
            &facts(Some("2025-03-01T16:30:00Z")),
            Some(&json!({"color": "red", "n": 3})),
        )
        .render(template)
    }

    #[test]
    fn the_template_of_a_course_gives_the_lines_of_the_local_date() {
        let template = "\n{% set kst_ds = data_interval_start.in_timezone('Asia/Seoul').to_date_string() %}\n\
            {% for i in range(2) %}\n    echo \"ds = {{ kst_ds }}\"\n    echo \"macros.ds_add(ds, {{ i }}) = {{ macros.ds_add(kst_ds, i) }}\"\n{% endfor %}\n";
        let text = render(template).unwrap();
        let lines: Vec<&str> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        assert_eq!(
            lines,
            [
                "echo \"ds = 2025-03-02\"",
                "echo \"macros.ds_add(ds, 0) = 2025-03-02\"",
                "echo \"ds = 2025-03-02\"",
                "echo \"macros.ds_add(ds, 1) = 2025-03-03\"",
            ]
        );
    }

    #[test]
    fn names_filters_and_instants_print_as_in_airflow() {
        for (template, expected) in [
            ("{{ ds }} {{ ds_nodash }}", "2025-03-01 20250301"),
            ("{{ ts }}", "2025-03-01T16:30:00+00:00"),
            ("{{ ts_nodash_with_tz }}", "20250301T163000+0000"),
            ("{{ logical_date }}", "2025-03-01 16:30:00+00:00"),
            ("{{ logical_date | ts_nodash }}", "20250301T163000"),
            (
                "{{ data_interval_end.strftime('%Y/%m/%d %H:%M') }}",
                "2025/03/01 16:30",
            ),
            ("{{ logical_date.add(days=-1) | ds }}", "2025-02-28"),
            ("{{ params.color }} {{ params['n'] + 1 }}", "blue 4"),
            (
                "{{ dag_run.conf['color'] }} {{ ti.task_id }} {{ ti.try_number }}",
                "blue t 2",
            ),
            ("{{ true }} {{ none }}", "True None"),
            (
                "{{ execution_date | ds }} {{ next_ds }} {{ tomorrow_ds_nodash }} {{ yesterday_ds }}",
                "2025-03-01 2025-03-01 20250302 2025-02-28",
            ),
            ("plain\n", "plain"),
        ] {
            assert_eq!(render(template).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn whatever_is_not_known_exactly_is_left_to_python() {
        for template in [
            "{{ var.value.x }}",
            "{{ conn.c.host }}",
            "{{ nope }}",
            "{{ ds | tojson }}",
            "{{ params }}",
            "{{ 1 / 3 }}",
            "{{ logical_date.diff_for_humans() }}",
            "{{ macros.uuid.uuid4() }}",
            "{% include 'x' %}",
            "{{ ds",
            "{{ ti.xcom_pull('a') }}",
            "{% for i in range(100000000) %}x{% endfor %}",
        ] {
            assert!(render(template).is_err(), "{template}: {:?}", render(template));
        }
        assert!(Renderer::new(&facts(None), None).render("{{ ds }}").is_err());
    }
}
