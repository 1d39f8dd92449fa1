//! Tables, JSON, YAML.

use clap::ValueEnum;
use model::json;
use serde_json::{Map, Value};
use std::io::Write;
use std::process::ExitCode;

/// Form of the output, with Airflow's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns with headings
    Table,
    /// A JSON list
    Json,
    /// A YAML list
    Yaml,
    /// Columns with spaces between them
    Plain,
}

/// Prints a line; whoever closed our output does not want it.
pub(crate) fn line(text: &str) -> ExitCode {
    print(&format!("{text}\n"));
    ExitCode::SUCCESS
}

pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).ok();
}

/// Prints rows; `columns` gives their order and the headings.
pub(crate) fn rows(format: Format, columns: &[&str], rows: &[Value]) {
    match format {
        Format::Json => print(&format!("{}\n", json::write(&Value::from(rows.to_vec())))),
        Format::Yaml => print(&yaml(rows)),
        Format::Table => print(&table(columns, rows, " | ", true)),
        Format::Plain => print(&table(columns, rows, "  ", false)),
    }
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "None".to_owned(),
        Some(Value::String(text)) => text.replace('\n', "\\n"),
        Some(Value::Bool(true)) => "True".to_owned(),
        Some(Value::Bool(false)) => "False".to_owned(),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| cell(Some(item)))
            .collect::<Vec<_>>()
            .join(", "),
        Some(other) => json::write(other),
    }
}

fn table(columns: &[&str], rows: &[Value], between: &str, ruled: bool) -> String {
    if rows.is_empty() {
        return "No data found\n".to_owned();
    }
    let mut lines = vec![
        columns
            .iter()
            .map(|column| (*column).to_owned())
            .collect::<Vec<_>>(),
    ];
    lines.extend(
        rows.iter()
            .map(|row| columns.iter().map(|column| cell(row.get(*column))).collect()),
    );
    let width = |at: usize| {
        lines
            .iter()
            .map(|line| line[at].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut out = String::new();
    for (number, line) in lines.iter().enumerate() {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .map(|(text, width)| format!("{text:<width$}"))
            .collect();
        out.push_str(cells.join(between).trim_end());
        out.push('\n');
        if ruled && number == 0 {
            let rule: Vec<String> = widths.iter().map(|width| "=".repeat(*width)).collect();
            out.push_str(&rule.join("=+="));
            out.push('\n');
        }
    }
    out
}

fn yaml(rows: &[Value]) -> String {
    if rows.is_empty() {
        return "[]\n".to_owned();
    }
    let empty = Map::new();
    let mut out = String::new();
    for row in rows {
        for (number, (key, value)) in row.as_object().unwrap_or(&empty).iter().enumerate() {
            // JSON is YAML, so every value may be written as JSON.
            out.push_str(&format!(
                "{}{key}: {value}\n",
                if number == 0 { "- " } else { "  " }
            ));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_same_rows_in_three_forms() {
        let rows = [
            json!({"dag_id": "a", "is_paused": true}),
            json!({"dag_id": "longer", "is_paused": null}),
        ];
        assert_eq!(
            table(&["dag_id", "is_paused"], &rows, " | ", true),
            "dag_id | is_paused\n=======+==========\na      | True\nlonger | None\n"
        );
        assert_eq!(yaml(&rows[..1]), "- dag_id: \"a\"\n  is_paused: true\n");
    }
}
