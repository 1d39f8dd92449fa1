//! How long what clients give may be, and what happens when many create the same: on both databases.

use harness::{Api, Installation, Process};
use serde_json::{Value, json};

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

/// A text field of a request that creates something, and how many characters it takes.
struct Field {
    path: &'static str,
    name: &'static str,
    /// The rest of the body; the field and what makes the thing another one are added.
    body: Value,
    most: usize,
}

fn field(path: &'static str, name: &'static str, most: usize, body: Value) -> Field {
    Field {
        path,
        name,
        body,
        most,
    }
}

fn fields() -> Vec<Field> {
    let connection = json!({"connection_id": "c", "conn_type": "t"});
    let variable = json!({"key": "v", "value": "x"});
    let pool = json!({"name": "p", "slots": 1});
    let run = json!({"logical_date": null});
    let xcom = json!({"key": "x", "value": 1});
    let entries = "/api/v2/dags/one/dagRuns/z/taskInstances/give/xcomEntries";
    vec![
        field("/api/v2/variables", "key", 250, variable.clone()),
        field("/api/v2/variables", "description", 16_383, variable),
        field("/api/v2/pools", "name", 256, pool.clone()),
        field("/api/v2/pools", "description", 16_383, pool),
        field("/api/v2/connections", "connection_id", 200, connection.clone()),
        field("/api/v2/connections", "conn_type", 500, connection.clone()),
        field("/api/v2/connections", "host", 500, connection.clone()),
        field("/api/v2/connections", "schema", 500, connection.clone()),
        field("/api/v2/connections", "login", 16_383, connection.clone()),
        field("/api/v2/connections", "password", 16_383, connection.clone()),
        field("/api/v2/connections", "description", 16_383, connection),
        field("/api/v2/dags/one/dagRuns", "note", 1000, run),
        field(entries, "key", 512, xcom),
    ]
}

/// Walks the fields of everything that can be created, at their limit and one beyond it.
fn walk_limits(url: Option<&str>) {
    let Some(python) = harness::python() else {
        return;
    };
    let mut installation = Installation::new(&python);
    if let Some(url) = url {
        installation.set("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", url);
    }
    installation.dag(
        "one.py",
        "from airflow.sdk import DAG, task\nwith DAG('one', schedule=None):\n    @task\n    def give():\n        return 1\n    give()\n",
    );
    let _process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("one");
    api.trigger("one", &json!({"logical_date": null, "dag_run_id": "z"}));
    for (at, field) in fields().into_iter().enumerate() {
        for (count, expected) in [(field.most, [200, 201]), (field.most + 1, [422, 422])] {
            let mut body = field.body.clone();
            // What is made by each of these requests has a name of its own.
            for name in ["key", "name", "connection_id"] {
                if body.get(name).is_some() {
                    body[name] = json!(format!("n{at}_{count}"));
                }
            }
            body[field.name] = json!("a".repeat(count));
            let (status, answer) = call(&api, "POST", field.path, &body);
            let shown: String = answer.to_string().chars().take(300).collect();
            assert!(
                expected.contains(&status),
                "{} {} {count}: {status} {shown}",
                field.path,
                field.name
            );
            if status == 422 {
                let problem = &answer["detail"][0];
                assert_eq!(problem["type"], json!("string_too_long"), "{shown}");
                assert_eq!(problem["loc"], json!(["body", field.name]));
                assert_eq!(problem["ctx"], json!({"max_length": field.most}));
            }
        }
    }
    // A large value is stored whole; one that is too large is refused, and says why.
    let large = |count: usize| {
        let body = json!({"key": "large", "value": "v".repeat(count)});
        call(&api, "PATCH", "/api/v2/variables/large", &body)
    };
    assert_eq!(
        call(
            &api,
            "POST",
            "/api/v2/variables",
            &json!({"key": "large", "value": ""})
        )
        .0,
        201
    );
    assert_eq!(large(10 << 20).0, 200);
    let refused = large(15_000_000);
    assert_eq!(refused.0, 413, "{}", refused.1);
    assert!(
        refused.1["detail"]
            .as_str()
            .is_some_and(|text| text.contains("variable.value"))
    );
    let refused = large(17 << 20);
    assert_eq!(refused.0, 413);
    assert!(refused.1["detail"].is_string(), "{}", refused.1);
    let kept = api.get("/api/v2/variables/large");
    assert_eq!(kept["value"].as_str().map(str::len), Some(10 << 20));
}

#[test]
fn every_text_has_its_limit_on_sqlite() {
    walk_limits(None);
}

#[test]
fn every_text_has_its_limit_on_mariadb() {
    if let Some(url) = harness::mariadb_database() {
        walk_limits(Some(&url));
    }
}

/// Statuses of the same request sent by twenty clients at once, sorted.
fn at_once(api: &Api, method: &str, path: &str, body: impl Fn(usize) -> Value + Sync) -> Vec<u16> {
    let barrier = std::sync::Barrier::new(20);
    let mut statuses: Vec<u16> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..20)
            .map(|n| {
                let (barrier, body) = (&barrier, body(n));
                scope.spawn(move || {
                    barrier.wait();
                    call(api, method, path, &body).0
                })
            })
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("a client"))
            .collect()
    });
    statuses.sort_unstable();
    statuses
}

#[test]
fn of_many_clients_who_create_the_same_one_succeeds() {
    let Some((_installation, _process, api)) = server() else {
        return;
    };
    let run_id = api.trigger("one", &json!({"logical_date": null, "dag_run_id": "z"}));
    api.wait_for_end("one", &run_id);
    let entries = "/api/v2/dags/one/dagRuns/z/taskInstances/give/xcomEntries";
    for (path, made, body) in [
        ("/api/v2/variables", 201, json!({"key": "k", "value": "v"})),
        ("/api/v2/pools", 201, json!({"name": "k", "slots": 1})),
        (
            "/api/v2/connections",
            201,
            json!({"connection_id": "k", "conn_type": "t"}),
        ),
        (entries, 201, json!({"key": "k", "value": 1})),
        (
            "/api/v2/dags/one/dagRuns",
            200,
            json!({"dag_run_id": "k", "logical_date": null}),
        ),
    ] {
        let statuses = at_once(&api, "POST", path, |_| body.clone());
        let mut expected = vec![409; 19];
        expected.insert(0, made);
        assert_eq!(statuses, expected, "{path}");
    }
    // Each changes one of two fields: none undoes the other's change.
    let patched = at_once(
        &api,
        "PATCH",
        "/api/v2/variables/k?update_mask=value",
        |n| json!({"key": "k", "value": format!("v{n}"), "description": "not this"}),
    );
    assert_eq!(patched, [200; 20]);
    let variable = api.get("/api/v2/variables/k");
    assert_eq!(variable["description"], Value::Null);
    assert!(
        variable["value"]
            .as_str()
            .is_some_and(|value| value.starts_with('v') && value.len() > 1)
    );
}
