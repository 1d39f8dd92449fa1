//! What the server does about those who mean it no good, and about those who ask for what is not there.

use harness::{Answer, Api, Installation, Process};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

fn server(set: &[(&str, &str)]) -> Option<(Installation, Process)> {
    let mut installation = Installation::new(&harness::python()?);
    for (name, value) in set {
        installation.set(name, value);
    }
    let process = installation.start("updraft", &["standalone"], &[]);
    Some((installation, process))
}

fn ask(api: &Api, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let headers: Vec<(String, String)> = headers
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    api.exchange(method, path, &headers, body).expect("an answer")
}

#[test]
fn what_is_not_there_is_not_a_page() {
    let Some((installation, _process)) = server(&[]) else {
        return;
    };
    let api = installation.api();
    for path in [
        "/ui/config",
        "/static/x.js",
        "/openapi.json",
        "/docs",
        "/auth/static/y.css",
    ] {
        let answer = ask(&api, "GET", path, &[], "");
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.content_type.as_deref(), Some("application/json"), "{path}");
    }
    let page = ask(&api, "GET", "/", &[], "");
    assert_eq!(page.status, 200);
    for answer in [&page, &ask(&api, "GET", "/api/v2/version", &[], "")] {
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(
            answer.header("content-security-policy"),
            Some("frame-ancestors 'self'")
        );
    }
    // The database, and what SQLite keeps beside it, are for its owner alone.
    for name in ["airflow.db", "airflow.db-wal", "airflow.db-shm"] {
        let file = installation.path().join(name);
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(file).expect("the database").permissions(),
        );
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn who_guesses_passwords_waits() {
    let Some((installation, _process)) = server(&[]) else {
        return;
    };
    let api = installation.api();
    let guess = |name: &str| {
        let body = json!({"username": name, "password": "wrong"});
        ask(
            &api,
            "POST",
            "/auth/token",
            &[("Content-Type", "application/json")],
            &body.to_string(),
        )
    };
    let statuses: Vec<u16> = (0..8).map(|_| guess("admin").status).collect();
    assert!(statuses.starts_with(&[401; 5]), "{statuses:?}");
    let refused = guess("admin");
    assert_eq!(refused.status, 429, "{statuses:?}");
    let wait: u64 = refused
        .header("retry-after")
        .and_then(|wait| wait.parse().ok())
        .expect("a wait");
    assert!((1..=60).contains(&wait));
    assert_eq!(guess("somebody else").status, 401);
}

#[test]
fn a_token_is_good_no_more_after_logging_out() {
    let Some((installation, _process)) = server(&[]) else {
        return;
    };
    let (api, other) = (installation.api(), installation.api());
    let me = |api: &Api| api.call("GET", "/api/v2/dags", None).expect("an answer").0;
    assert_eq!((me(&api), me(&other)), (200, 200));
    let token = format!("Bearer {}", api.token());
    let out = ask(
        &api,
        "GET",
        "/api/v2/auth/logout",
        &[("Authorization", &token)],
        "",
    );
    assert_eq!((out.status, out.header("location")), (307, Some("/auth/login")));
    let cookie = out.header("set-cookie").unwrap_or_default();
    for part in ["_token=", "Max-Age=0", "SameSite=lax", "HttpOnly"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert_eq!((me(&api), me(&other)), (403, 200));
    let cookie = format!("_token={}", api.token());
    assert_eq!(
        ask(&api, "GET", "/api/v2/dags", &[("Cookie", &cookie)], "").status,
        403
    );
    let unsafe_next = ask(&api, "GET", "/api/v2/auth/login?next=//evil.example", &[], "");
    assert_eq!(unsafe_next.status, 400);
    let next = ask(&api, "GET", "/api/v2/auth/login?next=/dags?x=1", &[], "");
    assert_eq!(next.header("location"), Some("/auth/login?next=%2Fdags%3Fx%3D1"));
}

#[test]
fn where_everyone_is_an_admin_everyone_gets_a_token() {
    let set = [
        ("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS", "True"),
        ("AIRFLOW__API__BASE_URL", "https://flow.example"),
        ("AIRFLOW__UPDRAFT__FRAME_ANCESTORS", "https://portal.example"),
    ];
    let Some((installation, _process)) = server(&set) else {
        return;
    };
    let api = Api::new(installation.port);
    let made = harness::eventually("a token", Duration::from_secs(60), || {
        let body = json!({"username": "x", "password": "y"});
        match api.call("POST", "/auth/token", Some(&body)) {
            Ok((201, made)) => Ok(made),
            other => Err(format!("{other:?}")),
        }
    });
    assert!(made["access_token"].is_string());
    let login = ask(&api, "GET", "/auth/token/login?next=/dags", &[], "");
    assert_eq!((login.status, login.header("location")), (307, Some("/dags")));
    let cookie = login.header("set-cookie").unwrap_or_default();
    assert!(cookie.ends_with("; Secure"), "{cookie}");
    assert_eq!(
        login.header("content-security-policy"),
        Some("frame-ancestors 'self' https://portal.example")
    );
}

/// Sends the beginning of a request, and waits until the server has had enough.
fn half(port: u16, text: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("a time limit");
    stream.write_all(text.as_bytes()).expect("half a request");
    let mut answer = Vec::new();
    // A connection that is reset is closed, too; one that stays open is a time-out.
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{text:?}"),
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_request_that_does_not_come_keeps_no_connection() {
    let Some((installation, _process)) = server(&[]) else {
        return;
    };
    installation.api();
    let port = installation.port;
    let (head, body) = std::thread::scope(|scope| {
        let head = scope.spawn(move || half(port, "GET / HTTP/1.1\r\nHost: localhost\r\n"));
        let text = "POST /auth/token HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                    Content-Length: 100\r\n\r\n{\"user";
        let body = scope.spawn(move || half(port, text));
        (head.join().expect("no panic"), body.join().expect("no panic"))
    });
    assert!(head.is_empty() || head.starts_with("HTTP/1.1 408"), "{head}");
    assert!(body.starts_with("HTTP/1.1 408"), "{body}");
}

#[test]
fn what_is_cleared_and_what_tasks_default_to_is_told_as_it_is() {
    let set = [
        ("AIRFLOW__CORE__DEFAULT_TASK_RETRIES", "2"),
        ("AIRFLOW__OPERATORS__DEFAULT_OWNER", "bob"),
        ("AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY", "1"),
    ];
    let Some((installation, _process)) = server(&set) else {
        return;
    };
    installation.dag(
        "two.py",
        "from airflow.sdk import DAG, Asset, task\n\
         with DAG('two', schedule=None):\n    @task\n    def bad(n):\n        raise ValueError(n)\n    bad.expand(n=[1, 2])\n\
         with DAG('three', schedule=[Asset('a'), Asset('b')]):\n    @task\n    def good():\n        pass\n    good()\n",
    );
    let api = installation.api();
    api.wait_for_dag("three");
    let task = api.get("/api/v2/dags/three/tasks/good");
    assert_eq!((&task["retries"], &task["owner"]), (&json!(2.0), &json!("bob")));
    let details = api.get("/api/v2/dags/three/details");
    let assets = details["asset_expression"]["all"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    assert_eq!(assets.len(), 2);
    for asset in assets {
        let id = asset["asset"]["id"].as_i64().expect("an id");
        assert_eq!(
            api.get(&format!("/api/v2/assets/{id}"))["name"],
            asset["asset"]["name"]
        );
    }
    let run = api.trigger("two", &json!({"logical_date": null, "dag_run_id": "r"}));
    assert_eq!(api.wait_for_end("two", &run), "failed");
    let cli = |arguments: &[&str]| installation.run("updraft", arguments);
    let (ok, text) = cli(&["tasks", "failed-deps", "two", "bad", "r", "--map-index", "0"]);
    assert!(
        ok && text.contains("Dagrun Running") && text.contains("Task is in the 'failed' state."),
        "{text}"
    );
    let (ok, text) = cli(&["tasks", "states-for-dag-run", "two", "r", "-o", "json"]);
    let start = text.find('[').unwrap_or_default();
    let rows: Vec<Value> = serde_json::from_str(text[start..].trim()).expect("JSON");
    let mut indexes: Vec<&str> = rows.iter().filter_map(|row| row["map_index"].as_str()).collect();
    indexes.sort_unstable();
    assert_eq!((ok, indexes), (true, vec!["0", "1"]));
    assert!(!cli(&["dags", "state", "nope", "r"]).0);
    let (ok, text) = cli(&["dags", "trigger", "two", "-c", "{\"x\": 1}", "-o", "json"]);
    assert!(ok && text.contains("\"conf\":{\"x\":1}"), "{text}");

    for order in ["last_run_state", "-last_run_start_date"] {
        assert_eq!(
            api.get(&format!("/api/v2/dags?order_by={order}"))["total_entries"],
            json!(2)
        );
    }
    let names = [
        "dag_id",
        "run_id",
        "task_display_name",
        "run_after",
        "rendered_map_index",
        "task_instance_operator",
        "task_instance_state",
        "created_at",
    ];
    let order: Vec<String> = names.iter().map(|name| format!("order_by={name}")).collect();
    api.get(&format!(
        "/api/v2/dags/~/dagRuns/~/hitlDetails?{}",
        order.join("&")
    ));

    call_clear(&api);
}

fn call_clear(api: &Api) {
    assert_eq!(
        api.call("PATCH", "/api/v2/dags/two", Some(&json!({"is_paused": true})))
            .expect("an answer")
            .0,
        200
    );
    let before = api.tasks("two", "r");
    let tries = |ti: &Value| ti["try_number"].as_i64().unwrap_or_default();
    let body = json!({"dry_run": false, "dag_run_id": "r", "reset_dag_runs": false});
    let (status, cleared) = api
        .call("POST", "/api/v2/dags/two/clearTaskInstances", Some(&body))
        .expect("an answer");
    assert_eq!(status, 200, "{cleared}");
    let cleared = cleared["task_instances"].as_array().cloned().unwrap_or_default();
    assert_eq!(cleared.len(), before.len());
    for (ti, before) in cleared.iter().zip(&before) {
        // Two retries more than the tries that there were.
        let most = json!(tries(before) + 2);
        assert_eq!((&ti["state"], &ti["max_tries"]), (&Value::Null, &most), "{ti}");
    }
}
