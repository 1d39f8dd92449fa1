//! Templates, rendered exactly as Airflow's Jinja would, or not at all.
//!
//! minijinja reads them; what the tree that it makes comes to is evaluated here with Python's semantics, so that nothing
//! prints, compares or counts as Rust would have it. Whatever is not known exactly is declined: the task runs in Python.

mod arguments;
mod eval;
mod filters;
mod methods;
mod names;
mod operators;
mod value;

pub(super) use arguments::Arguments;
pub(super) use value::{Outcome, Py};

use super::Settings;
use crate::run::Facts;
use eval::Evaluation;
use minijinja::machinery::parse;
use minijinja::syntax::SyntaxConfig;
use names::{Names, names};

/// Renders templates of one try.
pub(super) struct Renderer {
    /// The names that templates use, or why there are none that we know.
    names: Outcome<Names>,
}

impl Renderer {
    /// A renderer for a task with this side document.
    pub(super) fn new(settings: &Settings, facts: &Facts, document: &serde_json::Value) -> Self {
        Self {
            names: names(settings, facts, document),
        }
    }

    /// Renders one template.
    ///
    /// # Errors
    /// When anything in it is not known here.
    pub(super) fn render(&self, template: &str) -> Outcome<String> {
        // Jinja writes every line end as one newline, and drops one at the end.
        let mut source = template.replace("\r\n", "\n").replace('\r', "\n");
        if source.ends_with('\n') {
            source.pop();
        }
        // Params are checked even where no template asks for them.
        let names = self.names.as_ref().map_err(Clone::clone)?;
        if !source.contains('{') {
            return Ok(source);
        }
        let tree =
            parse(&source, "<template>", SyntaxConfig::default()).map_err(|error| error.to_string())?;
        Evaluation::new(&source, names).render(&tree)
    }

    /// Renders every text in a value, but no key of an object, as Airflow's templater does.
    ///
    /// # Errors
    /// When anything in it is not known here.
    pub(super) fn render_all(&self, value: &serde_json::Value) -> Outcome<serde_json::Value> {
        use serde_json::Value;
        Ok(match value {
            Value::String(text) => self.render(text)?.into(),
            Value::Array(items) => Value::Array(
                items
                    .iter()
                    .map(|item| self.render_all(item))
                    .collect::<Outcome<_>>()?,
            ),
            Value::Object(fields) => Value::Object(
                fields
                    .iter()
                    .map(|(key, item)| Ok((key.clone(), self.render_all(item)?)))
                    .collect::<Outcome<_>>()?,
            ),
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        })
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
            witness: crate::permission::Witness::default(),
            rendered: std::sync::OnceLock::new(),
        }
    }

    fn render(template: &str) -> Result<String, String> {
        let document =
            json!({"params": {"color": "red", "n": 3, "x": 2.5, "l": [1, "a"]}, "checked_params": []});
        let facts = facts(Some("2025-03-01T16:30:00Z"));
        Renderer::new(&Settings::default(), &facts, &document).render(template)
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
            (
                "{{ true }} {{ none }} {{ params }}",
                "True None {'color': 'blue', 'n': 3, 'x': 2.5, 'l': [1, 'a']}",
            ),
            (
                "{{ 7 // -2 }} {{ -7 % 3 }} {{ 1 / 4 }} {{ 1e16 }} {{ 2 * 'ab' }} {{ 1 < 2 < 2 }}",
                "-4 2 0.25 1e+16 abab False",
            ),
            (
                "{{ ds[-2:] }} {{ 'abc'[::-1] }} {{ [1, 2][-1] }} {{ params.nope | default('d') }}",
                "01 cba 2 d",
            ),
            (
                "{{ 'a-b-c' | replace('-', '', 1) }} {{ 'xay' | trim('xy') }}",
                "ab-c a",
            ),
            ("a\r\nb\rc\n\n", "a\nb\nc\n"),
            (
                "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{{ loop.last }}{% endfor %}",
                "a1True",
            ),
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
            "{{ ti }}",
            "{{ params.items }}",
            "{{ params.items() }}",
            "{{ 'b' if dag_run.state == 'failed' else 'n' }}",
            "{{ 9223372036854775807 + 1 }}",
            "{{ '\\x41' }}",
            "{{ 'x'.replace('x') }}",
            "{{ ds | trim('-', 1) }}",
            "{{ logical_date.diff_for_humans() }}",
            "{{ macros.uuid.uuid4() }}",
            "{% include 'x' %}",
            "{{ ds",
            "{{ ti.xcom_pull('a') }}",
            "{% for i in range(100000000) %}x{% endfor %}",
        ] {
            assert!(render(template).is_err(), "{template}: {:?}", render(template));
        }
        let undated = Renderer::new(&Settings::default(), &facts(None), &json!({}));
        assert!(undated.render("{{ ds }}").is_err());
    }
}
