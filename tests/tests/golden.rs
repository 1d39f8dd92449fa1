//! Request/response pairs recorded from Airflow 3.3.2, replayed against us: status, content type and body must be the same
//! but for what differs from run to run.

use harness::{Api, Installation};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// Recordings of these groups are replayed; the rest belongs to parts that are not there yet.
const GROUPS: [&str; 28] = [
    "hitl_",
    "api_",
    "asset_",
    "backfill_",
    "backfills_",
    "auth_token",
    "dag_",
    "dagrun_",
    "dagruns_",
    "dags_",
    "err_",
    "head_",
    "health_",
    "import_",
    "log_",
    "old_",
    "pool_",
    "task_",
    "tasks_",
    "ti_",
    "trailing_",
    "trigger_",
    "var_",
    "vars_",
    "xcom_",
    "conn_",
    "conns_",
    "spa_",
];

/// Recordings that are not replayed, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    ("auth_token_login_all_admins_403", "login pages come with the UI"),
    ("auth_token_form_201", "holds a password of the recording"),
    ("dag_favorite_204", "favourites are not there yet"),
    ("dag_favorite_again_409", "favourites are not there yet"),
    ("dag_unfavorite_204", "favourites are not there yet"),
    ("dag_warnings_200", "recorded with Airflow's example DAGs"),
    ("dag_tags_200", "recorded with Airflow's example DAGs"),
    (
        "dagrun_delete_running_204",
        "recorded while the run was still queued",
    ),
    (
        "dagruns_cursor_next_200",
        "a cursor means something only to the server that gave it",
    ),
    ("asset_events_200", "names an asset of Airflow's example DAGs"),
    (
        "asset_materialize_200",
        "names an asset of Airflow's example DAGs",
    ),
    (
        "asset_queued_delete_204",
        "names an asset of Airflow's example DAGs",
    ),
    (
        "asset_queued_events_200",
        "names an asset of Airflow's example DAGs",
    ),
    ("import_errors_200", "recorded before the broken file was there"),
    (
        "import_errors_after_200",
        "recorded before the broken file was looked at",
    ),
    ("log_external_url_400", "remote log stores are not there yet"),
    ("spa_deep_html_200", "the UI is not there yet"),
    ("ti_dependencies_200", "explanations are not there yet"),
    ("ti_mapped_dependencies_200", "explanations are not there yet"),
    ("ti_links_404", "extra links are not there yet"),
    ("ti_list_tilde_200", "its order depends on which task was faster"),
    (
        "xcom_list_tilde_200",
        "recorded with a run that an asset triggered",
    ),
    (
        "conn_bulk_200",
        "a connection created and deleted in one request is found here, and not there",
    ),
    (
        "dagrun_clear_dry_200",
        "mapped instances are made when they can run, so their ids come later",
    ),
    ("dags_list_limit_0_200", "recorded with Airflow's example DAGs"),
    (
        "ti_list_default_200",
        "recorded between two changes that are not among the recordings",
    ),
    (
        "dagruns_list_naive_date_500",
        "a date without a zone is taken as UTC",
    ),
];

/// Recordings of an untouched installation.
const AT_FIRST: &[&str] = &[
    "dag_details_200",
    "dag_details_timetable_200",
    "dag_get_200",
    "dag_stats_200",
    "dags_list_tags_200",
];

/// A backfill, whose runs must not be faster than the requests: its DAG is paused meanwhile.
const WHILE_PAUSED: &[&str] = &[
    "backfill_create_200",
    "backfill_create_409",
    "backfill_get_200",
    "backfills_list_200",
    "backfill_pause_200",
    "backfill_cancel_200",
];

/// What changes something comes after what only looks, in this order.
const AT_LAST: &[&str] = &[
    "ti_bulk_200",
    "ti_bulk_delete_200",
    "ti_patch_state_200",
    "ti_patch_same_state_409",
    "ti_patch_mapped_200",
    "ti_list_multi_order_200",
    "dagrun_patch_note_200",
    "dagrun_patch_mask_200",
    "dagrun_patch_state_200",
    "dagrun_create_del_200",
    "dagrun_delete_204",
    "dagrun_delete_404",
    "pool_create_201",
    "pool_create_409",
    "pool_create_gp5_201",
    "pool_patch_full_200",
    "pool_delete_204",
    "pool_delete_404",
    "var_create_secretlike_201",
    "var_get_masked_200",
    "var_get_200",
    "vars_list_200",
    "var_patch_200",
    "var_bulk_200",
    "xcom_create_201",
    "xcom_delete_204",
    "xcom_delete_404",
    "conn_create_201",
    "conn_create_dup_409",
    "conns_list_bad_orderby_200",
    "var_delete_404",
    "dag_patch_mask_200",
    "dag_patch_unpause_200",
    "dags_patch_nopattern_200",
];

fn recordings(folder: &Path) -> HashMap<String, Value> {
    let mut all = HashMap::new();
    for entry in std::fs::read_dir(folder).expect("recordings").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(name) = name.strip_suffix(".json") else {
            continue;
        };
        let left_out = LEFT_OUT.iter().any(|(left_out, _)| *left_out == name);
        if !left_out && GROUPS.iter().any(|group| name.starts_with(group)) {
            let text = std::fs::read_to_string(entry.path()).expect("a recording");
            all.insert(name.to_owned(), serde_json::from_str(&text).expect("JSON"));
        }
    }
    all
}

/// Fields whose values differ from run to run.
const VARYING: [&str; 24] = [
    "access_token",
    "continuation_token",
    "duration",
    "file_token",
    "fileloc",
    "git_version",
    "hostname",
    "id",
    "import_error_id",
    "last_parse_duration",
    "last_parsed",
    "message",
    "next_cursor",
    "pid",
    "previous_cursor",
    "stack_trace",
    "timestamp",
    "unixname",
    "url",
    "version",
    "content",
    "last_parsed_time",
    "created_at",
    "updated_at",
];

fn is_instant(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 19 && bytes[4] == b'-' && bytes[10] == b'T' && bytes[13] == b':'
}

/// Replaces what differs from run to run by what kind of thing it is.
fn mask(key: &str, value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| (key.clone(), mask(key, value)))
            .collect(),
        Value::Array(items) => items.iter().map(|item| mask("", item)).collect(),
        Value::Null => Value::Null,
        _ if VARYING.contains(&key) => json!("<varies>"),
        Value::String(text) if is_instant(text) => json!("<instant>"),
        other => other.clone(),
    }
}

fn differences(path: &str, theirs: &Value, ours: &Value, out: &mut Vec<String>) {
    match (theirs, ours) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                match (a.get(key), b.get(key)) {
                    (Some(a), Some(b)) => differences(&format!("{path}.{key}"), a, b, out),
                    (Some(a), None) => out.push(format!("{path}.{key} is missing, was {a}")),
                    (None, b) => out.push(format!("{path}.{key} is new: {b:?}")),
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (at, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}[{at}]"), a, b, out);
            }
        }
        (a, b) if a == b => {}
        (a, b) => out.push(format!("{path}: theirs {a}, ours {b}")),
    }
}

struct Replay {
    api: Api,
    tokens: HashMap<String, String>,
    password: String,
    /// Headers that are sent with every request.
    more: &'static [(&'static str, &'static str)],
    problems: Vec<String>,
}

impl Replay {
    /// Sends a recorded request; compares the answer.
    fn replay(&mut self, name: &str, recording: &Value) {
        let request = &recording["request"];
        let mut headers: Vec<(String, String)> = Vec::new();
        headers.extend(
            self.more
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned())),
        );
        for (key, value) in request["headers"].as_object().into_iter().flatten() {
            let mut value = value.as_str().unwrap_or_default().to_owned();
            for (user, token) in &self.tokens {
                value = value.replace(&format!("<{user}>"), token);
            }
            // What stood here was another scheme, with credentials.
            if name == "err_401_basic_scheme_401" {
                value = value.replace("Bearer <custom>", "Basic YWRtaW46YWRtaW4=");
            }
            headers.push((key.clone(), value.replace("<jwt>", &self.tokens["admin"])));
        }
        let body = match (&request["body"], &request["raw_body"]) {
            (Value::Null, Value::String(raw)) => raw.clone(),
            (Value::Null, _) => String::new(),
            (body, _) => {
                if !headers.iter().any(|(key, _)| key == "content-type") {
                    headers.push(("content-type".to_owned(), "application/json".to_owned()));
                }
                body.to_string()
            }
        };
        let body = if name == "auth_token_bad_password_401" {
            body
        } else {
            body.replace("<password>", &self.password)
        };
        let method = request["method"].as_str().unwrap_or("GET");
        let path = request["path"].as_str().unwrap_or_default();
        let answer = self
            .api
            .exchange(method, path, &headers, &body)
            .expect("an answer");
        self.compare(name, &recording["response"], &answer);
    }

    fn compare(&mut self, name: &str, theirs: &Value, ours: &harness::Answer) {
        let mut out = Vec::new();
        let status = theirs["status"].as_u64().unwrap_or(0);
        // Where the real server breaks, ours says what is wrong with the request.
        let expected = if status == 500 { 422 } else { status };
        if u64::from(ours.status) != expected {
            out.push(format!("status {expected}, ours {}: {}", ours.status, ours.body));
        } else if status != 500 {
            let body: Value = serde_json::from_str(&ours.body).unwrap_or_else(|_| ours.body.as_str().into());
            let (theirs_masked, ours_masked) = (mask("", &theirs["body"]), mask("", &body));
            let empty = |value: &Value| value.is_null() || value == "";
            if !(empty(&theirs_masked) && empty(&ours_masked)) {
                differences("", &theirs_masked, &ours_masked, &mut out);
            }
            let kind = theirs["headers"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|header| header[0] == "content-type")
                .and_then(|header| header[1].as_str());
            // Neither an answer without content nor one to HEAD needs a type.
            if !ours.body.is_empty() && kind != ours.content_type.as_deref() {
                out.push(format!("content type {kind:?}, ours {:?}", ours.content_type));
            }
        }
        if !out.is_empty() {
            self.problems.push(format!("{name}:\n    {}", out.join("\n    ")));
        }
    }
}

fn installation(folder: &Path, python: &str) -> Installation {
    let mut installation = Installation::new(python);
    installation.set("AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION", "True");
    installation.set(
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS",
        "admin:admin,op:op,user:user,viewer:viewer",
    );
    installation.set(
        "AIRFLOW__CORE__FERNET_KEY",
        "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=",
    );
    for entry in std::fs::read_dir(folder.join("dags"))
        .expect("DAG files")
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".py") {
            installation.dag(&name, &std::fs::read_to_string(entry.path()).expect("a DAG file"));
        }
    }
    installation
}

#[test]
fn answers_are_those_of_the_real_server() {
    replay_all(&[]);
}

#[test]
fn answers_to_clients_that_take_gzip_are_those_of_the_real_server() {
    replay_all(&harness::ORDINARY);
}

/// Replays all recordings, with these headers sent along.
fn replay_all(more: &'static [(&'static str, &'static str)]) {
    let (Some(python), Some(folder)) = (harness::python(), harness::recordings()) else {
        return;
    };
    let installation = installation(&folder, &python);
    let _process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    for dag_id in ["simple_golden", "daily_golden", "consumer_golden"] {
        api.wait_for_dag(dag_id);
    }
    let text = std::fs::read_to_string(
        installation
            .path()
            .join("simple_auth_manager_passwords.json.generated"),
    );
    let passwords: HashMap<String, String> = serde_json::from_str(&text.expect("passwords")).expect("JSON");
    let tokens = passwords
        .iter()
        .map(|(user, password)| {
            let api = api.login(user, password).expect("a login");
            (user.clone(), api.token().to_owned())
        })
        .collect();
    let mut replay = Replay {
        api: api.without_token(),
        tokens,
        password: passwords["admin"].clone(),
        more,
        problems: Vec::new(),
    };
    let all = recordings(&folder);
    for name in AT_FIRST {
        replay.replay(name, &all[*name]);
    }
    for dag_id in ["simple_golden", "daily_golden"] {
        let path = format!("/api/v2/dags/{dag_id}");
        let patched = api.call("PATCH", &path, Some(&json!({"is_paused": false})));
        assert_eq!(patched.expect("an answer").0, 200);
    }
    api.trigger(
        "simple_golden",
        &json!({"dag_run_id": "golden_1", "logical_date": "2025-01-02T03:04:05Z", "conf": {"x": 5}, "note": "first"}),
    );
    replay.replay(
        "trigger_null_logical_date_200",
        &all["trigger_null_logical_date_200"],
    );
    for run_id in ["golden_1", "golden_2"] {
        api.wait_for_end("simple_golden", run_id);
    }
    for (key, value) in [("gk", json!("gv")), ("gj", json!({"a": 1}))] {
        let body =
            json!({"key": key, "value": value, "description": if key == "gk" { Some("d") } else { None }});
        assert_eq!(
            api.call("POST", "/api/v2/variables", Some(&body))
                .expect("an answer")
                .0,
            201
        );
    }
    let mut names: Vec<&str> = all
        .keys()
        .map(String::as_str)
        .filter(|name| ![AT_FIRST, WHILE_PAUSED, AT_LAST].concat().contains(name))
        .filter(|name| *name != "trigger_null_logical_date_200")
        .collect();
    names.sort_unstable();
    for name in names.iter().chain(WHILE_PAUSED).chain(AT_LAST) {
        if WHILE_PAUSED.contains(name) || AT_LAST.first() == Some(name) {
            let body = json!({"is_paused": WHILE_PAUSED.contains(name)});
            let patched = api.call("PATCH", "/api/v2/dags/daily_golden", Some(&body));
            assert_eq!(patched.expect("an answer").0, 200);
        }
        if *name == "var_delete_404" {
            let deleted = api
                .call("DELETE", "/api/v2/variables/gj", None)
                .expect("an answer");
            assert_eq!(deleted.0, 204);
        }
        if let Some(recording) = all.get(*name) {
            replay.replay(name, recording);
        }
        if *name == "dagrun_create_del_200" {
            api.wait_for_end("daily_golden", "to_delete");
        }
    }
    assert!(
        replay.problems.is_empty(),
        "{} of {} answers differ:\n{}",
        replay.problems.len(),
        all.len(),
        replay.problems.join("\n")
    );
}
