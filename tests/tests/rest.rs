//! What REST clients can do beyond single requests: page, list by body, change in bulk, wait.

use harness::{Api, Installation, Process, eventually};
use serde_json::{Value, json};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
const RUNS: usize = 7;

fn server() -> Option<(Installation, Process, Api)> {
    let installation = Installation::new(&harness::python()?);
    installation.dag(
        "one.py",
        "from airflow.sdk import DAG, Param, task\n\
         with DAG('one', schedule=None, params={'n': Param(1, type='integer', maximum=10)}):\n\
         \x20   @task\n    def give(params=None):\n        return [params['n'], params['n']]\n\
         \x20   @task\n    def fail_first(ti=None):\n        assert ti.try_number > 1\n\
         \x20   give()\n    fail_first()\n",
    );
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("one");
    Some((installation, process, api))
}

fn call(api: &Api, method: &str, path: &str, body: &Value) -> (u16, Value) {
    api.call(method, path, Some(body)).expect("an answer")
}

fn ids(page: &Value) -> Vec<String> {
    let runs = page["dag_runs"].as_array().into_iter().flatten();
    runs.map(|run| run["dag_run_id"].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn pages_meet_every_run_once_while_new_ones_come() {
    let Some((_installation, _process, api)) = server() else {
        return;
    };
    call(&api, "PATCH", "/api/v2/dags/one", &json!({"is_paused": true}));
    for n in 0..RUNS {
        api.trigger(
            "one",
            &json!({"logical_date": null, "dag_run_id": format!("r{n}")}),
        );
    }
    let path = |cursor: &str| {
        format!("/api/v2/dags/~/dagRuns?order_by=-start_date&order_by=run_id&limit=3&cursor={cursor}")
    };
    let first = api.get(&path(""));
    assert_eq!(first["previous_cursor"], Value::Null);
    assert_eq!(first["total_entries"], json!(RUNS));
    let mut seen = ids(&first);
    let mut page = first;
    while let Some(next) = page["next_cursor"].as_str().map(str::to_owned) {
        // It comes before what was shown already, so it must not push anything onto the next page again.
        api.trigger(
            "one",
            &json!({"logical_date": null, "dag_run_id": format!("a{}", seen.len())}),
        );
        page = api.get(&path(&next));
        seen.extend(ids(&page));
    }
    let expected: Vec<String> = (0..RUNS).map(|n| format!("r{n}")).collect();
    assert_eq!(seen, expected);
    let back = api.get(&path(page["previous_cursor"].as_str().unwrap_or_default()));
    assert_eq!(ids(&back), ["r3", "r4", "r5"]);
    let bad = api.call("GET", &path("nonsense"), None).expect("an answer");
    assert_eq!(bad.0, 400, "{}", bad.1);

    let listed = call(
        &api,
        "POST",
        "/api/v2/dags/~/dagRuns/list",
        &json!({"dag_ids": ["one"], "states": ["queued"], "page_limit": 2, "order_by": "-run_after"}),
    );
    assert_eq!((listed.0, &listed.1["total_entries"]), (200, &json!(RUNS + 2)));
    assert_eq!(ids(&listed.1), ["a6", "a3"]);
}

#[test]
fn variables_and_pools_are_changed_in_bulk() {
    let Some((_installation, _process, api)) = server() else {
        return;
    };
    let act = |path: &str, actions: Value| call(&api, "PATCH", path, &json!({"actions": actions}));
    let made = act(
        "/api/v2/variables",
        json!([
            {"action": "create", "entities": [{"key": "a", "value": {"b": 1}}, {"key": "c", "value": "x", "description": "kept"}]},
            {"action": "create", "entities": [{"key": "a", "value": "2"}, {"key": "d", "value": "3"}]},
            {"action": "create", "entities": [{"key": "c", "value": "y"}], "action_on_existence": "overwrite"},
            {"action": "update", "entities": [{"key": "nobody", "value": "2"}]},
            {"action": "update", "entities": [{"key": "c", "value": "z", "description": "not this"}], "update_mask": ["value"]},
            {"action": "delete", "entities": ["a", "nobody"], "action_on_non_existence": "skip"},
        ]),
    );
    assert_eq!(made.0, 200);
    assert_eq!(made.1["create"]["success"], json!(["a", "c", "c"]));
    assert_eq!(
        made.1["create"]["errors"],
        json!([{"error": "The variables with these keys: {'a'} already exist.", "status_code": 409}])
    );
    assert_eq!(made.1["update"]["success"], json!(["c"]));
    assert_eq!(made.1["update"]["errors"][0]["status_code"], json!(404));
    assert_eq!(made.1["delete"], json!({"success": ["a"], "errors": []}));
    let left = api.get("/api/v2/variables");
    assert_eq!(left["total_entries"], json!(1));
    assert_eq!(
        (
            &left["variables"][0]["value"],
            &left["variables"][0]["description"]
        ),
        (&json!("z"), &json!("kept"))
    );

    let pools = act(
        "/api/v2/pools",
        json!([{"action": "create", "entities": [{"name": "p", "slots": 2}]},
               {"action": "delete", "entities": ["default_pool"]}]),
    );
    assert_eq!(pools.1["create"]["success"], json!(["p"]));
    assert_eq!(pools.1["delete"]["errors"][0]["status_code"], json!(400));
    assert_eq!(api.get("/api/v2/pools/p")["slots"], json!(2));

    let broken = act(
        "/api/v2/variables",
        json!([{"action": "create", "entities": [{"value": "no key"}]}]),
    );
    assert_eq!(broken.0, 422);
    assert_eq!(
        broken.1["detail"][0]["loc"],
        json!(["body", "actions", 0, "create", "entities", 0, "key"])
    );
}

#[test]
fn a_client_waits_for_a_run_reads_its_result_and_clears_it() {
    let Some((_installation, _process, api)) = server() else {
        return;
    };
    let refused = call(
        &api,
        "POST",
        "/api/v2/dags/one/dagRuns",
        &json!({"logical_date": null, "conf": {"n": 11}}),
    );
    assert_eq!(refused.0, 400);
    assert!(
        refused.1["detail"]
            .to_string()
            .contains("Invalid input for param n: 11 is greater than"),
        "{}",
        refused.1
    );

    let run_id = api.trigger(
        "one",
        &json!({"logical_date": null, "dag_run_id": "w", "conf": {"n": 4}}),
    );
    let (status, lines) = api
        .raw(
            "GET",
            "/api/v2/dags/one/dagRuns/w/wait?interval=0.1&result=give",
            "",
            "application/json",
        )
        .expect("an answer");
    assert_eq!(status, 200);
    let last: Value = serde_json::from_str(lines.lines().last().unwrap_or_default()).expect("JSON");
    assert_eq!(last, json!({"state": "failed", "results": {"give": [4, 4]}}));

    let entries = "/api/v2/dags/one/dagRuns/w/taskInstances/give/xcomEntries";
    let left = call(
        &api,
        "POST",
        entries,
        &json!({"key": "mine", "value": {"z": [1]}}),
    );
    assert_eq!((left.0, &left.1["value"]), (201, &json!({"z": [1]})));
    assert_eq!(
        call(&api, "POST", entries, &json!({"key": "mine", "value": 1})).0,
        409
    );
    let changed = call(
        &api,
        "PATCH",
        &format!("{entries}/mine"),
        &json!({"value": "new"}),
    );
    assert_eq!((changed.0, &changed.1["value"]), (200, &json!("new")));

    let clear = "/api/v2/dags/one/dagRuns/w/clear";
    let dry = call(&api, "POST", clear, &json!({"only_failed": true}));
    assert_eq!(dry.1["task_instances"][0]["task_id"], json!("fail_first"));
    assert_eq!(api.run_state("one", &run_id).as_deref(), Some("failed"));
    let cleared = call(
        &api,
        "POST",
        clear,
        &json!({"dry_run": false, "only_failed": true, "note": "again"}),
    );
    assert_eq!((cleared.0, &cleared.1["note"]), (200, &json!("again")));
    eventually("the cleared run succeeds", PATIENCE, || {
        match api.run_state("one", &run_id).as_deref() {
            Some("success") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let tries: Vec<Value> = api
        .tasks("one", &run_id)
        .iter()
        .map(|ti| ti["try_number"].clone())
        .collect();
    assert_eq!(tries, [json!(1), json!(2)], "only what had failed ran again");
}

#[test]
fn lines_reach_clients_that_take_gzip_and_those_that_do_not() {
    let Some((_installation, _process, api)) = server() else {
        return;
    };
    let run_id = api.trigger(
        "one",
        &json!({"logical_date": null, "dag_run_id": "z", "conf": {"n": 3}}),
    );
    assert_eq!(api.wait_for_end("one", &run_id), "failed");
    let log = "/api/v2/dags/one/dagRuns/z/taskInstances/give/logs/1";
    for path in [log, "/api/v2/dags/one/dagRuns/z/wait?interval=0.1&result=give"] {
        let mut answers = Vec::new();
        for encoding in ["identity", "gzip", "gzip, deflate, br, zstd"] {
            let headers = [
                ("Authorization", format!("Bearer {}", api.token())),
                ("Accept", "application/x-ndjson".to_owned()),
                ("Accept-Encoding", encoding.to_owned()),
            ];
            let headers = headers.map(|(key, value)| (key.to_owned(), value));
            let answer = api.exchange("GET", path, &headers, "").expect("an answer");
            assert_eq!(answer.status, 200, "{path} {encoding}: {}", answer.body);
            let lines = answer.body.lines();
            let parsed: Vec<Value> = lines
                .map(|line| serde_json::from_str(line).expect("JSON"))
                .collect();
            assert!(!parsed.is_empty(), "{path} {encoding}");
            answers.push(parsed);
        }
        assert!(
            answers.iter().all(|answer| *answer == answers[0]),
            "{path}: {answers:?}"
        );
    }
}

/// Every parameter that takes a pattern, by list.
const PATTERNS: &[(&str, &[&str])] = &[
    ("/api/v2/assets", &["name", "uri"]),
    ("/api/v2/assets/aliases", &["name"]),
    ("/api/v2/assets/events", &["name"]),
    (
        "/api/v2/dags/~/dagRuns",
        &["run_id", "dag_id", "triggering_user_name", "partition_key"],
    ),
    (
        "/api/v2/dags/~/dagRuns/~/taskInstances",
        &["task_display_name", "dag_id", "run_id"],
    ),
    (
        "/api/v2/dags/~/dagRuns/~/taskInstances/~/xcomEntries",
        &["xcom_key", "run_id", "task_id"],
    ),
    (
        "/api/v2/dags/~/dagRuns/~/hitlDetails",
        &["subject", "body", "dag_id", "task_id"],
    ),
    ("/api/v2/dags", &["dag_id", "dag_display_name"]),
    ("/api/v2/variables", &["variable_key"]),
    ("/api/v2/pools", &["pool_name"]),
    ("/api/v2/connections", &["connection_id"]),
    ("/api/v2/importErrors", &["filename"]),
];

/// Patterns of the letters that mean something, and those that found faults: each once, then more by chance.
fn odd_patterns() -> Vec<String> {
    let letters = ['|', '%', '_', '\\', '~', '*', '\'', '"', '!', 'a', 'e', 'R', ' '];
    let mut patterns: Vec<String> = letters.iter().map(char::to_string).collect();
    for a in letters {
        patterns.extend(letters.map(|b| format!("{a}{b}")));
    }
    patterns.push("a|".repeat(2000));
    patterns.push((0..3000).map(|n| format!("{n}|")).collect());
    patterns.push("%a".repeat(2000));
    patterns
}

fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric();
    let escape = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

#[test]
fn no_pattern_breaks_a_list() {
    let Some((_installation, _process, api)) = server() else {
        return;
    };
    let run_id = api.trigger("one", &json!({"logical_date": null, "dag_run_id": "z"}));
    assert_eq!(api.wait_for_end("one", &run_id), "failed");
    for pattern in odd_patterns() {
        for (path, names) in PATTERNS {
            for kind in ["pattern", "prefix_pattern"] {
                // All parameters of a list at once: one of them that breaks is enough.
                let query: Vec<String> = names
                    .iter()
                    .map(|name| format!("{name}_{kind}={}", escaped(&pattern)))
                    .collect();
                let asked = format!("{path}?limit=1&{}", query.join("&"));
                let (status, body) = api.call("GET", &asked, None).expect("an answer");
                assert!(matches!(status, 200 | 414), "{asked}: {status} {body}");
            }
        }
    }
}

#[test]
fn patterns_mean_what_they_mean_in_airflow() {
    let Some((_installation, _process, api)) = server() else {
        return;
    };
    let run_id = api.trigger("one", &json!({"logical_date": null, "dag_run_id": "z"}));
    assert_eq!(api.wait_for_end("one", &run_id), "failed");
    let entries = "/api/v2/dags/one/dagRuns/z/taskInstances/fail_first/xcomEntries";
    let mut all = ["Alpha", "alp_ha", "100%", "a\\b", "it's", "b|c", "!x", "~t"];
    all.sort_unstable();
    for key in all {
        let made = call(&api, "POST", entries, &json!({"key": key, "value": 1}));
        assert_eq!(made.0, 201, "{}", made.1);
    }
    let found = |name: &str, pattern: &str| -> Vec<String> {
        let page = api.get(&format!("{entries}?{name}={}", escaped(pattern)));
        let keys = page["xcom_entries"].as_array().into_iter().flatten();
        keys.map(|xcom| xcom["key"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    for (pattern, expected) in [
        ("alp", vec!["Alpha", "alp_ha"]),
        ("ALPHA|it", vec!["Alpha", "it's"]),
        (" ALPHA ", vec![]),
        (" ALPHA | IT ", vec!["Alpha", "it's"]),
        ("|", vec!["b|c"]),
        ("||alpha", vec!["Alpha"]),
        ("a%h%a", vec!["Alpha", "alp_ha"]),
        ("p_h", vec!["alp_ha"]),
        ("\\", vec!["a\\b"]),
        ("!", vec!["!x"]),
        ("'", vec!["it's"]),
        ("~", all.to_vec()),
        ("", all.to_vec()),
        ("~|x", vec!["!x", "~t"]),
    ] {
        assert_eq!(found("xcom_key_pattern", pattern), expected, "{pattern:?}");
    }
    for (pattern, expected) in [
        ("alp_", vec!["alp_ha"]),
        ("Alp|i", vec!["Alpha", "it's"]),
        ("|", all.to_vec()),
        ("~", all.to_vec()),
        ("100%", vec!["100%"]),
    ] {
        assert_eq!(found("xcom_key_prefix_pattern", pattern), expected, "{pattern:?}");
    }
}
