//! What the command line changes and shows.

use harness::Installation;
use serde_json::json;

#[test]
fn variables_and_pools_go_through_the_command_line() {
    let Some(python) = harness::python() else { return };
    let installation = Installation::new(&python);
    let _process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    let run = |arguments: &[&str]| installation.run("updraft", arguments);
    let path = |name: &str| installation.path().join(name).to_string_lossy().into_owned();

    assert!(run(&["variables", "set", "greeting", "hello"]).0);
    assert_eq!(
        run(&["variables", "get", "greeting"]),
        (true, "hello\n".to_owned())
    );
    let file = path("variables.json");
    assert!(run(&["variables", "export", &file]).0);
    assert!(run(&["variables", "delete", "greeting"]).0);
    assert!(!run(&["variables", "get", "greeting"]).0);
    assert!(run(&["variables", "import", &file]).0);
    assert_eq!(api.get("/api/v2/variables/greeting")["value"], json!("hello"));

    let (ok, text) = run(&["pools", "set", "narrow", "2", "for few"]);
    assert_eq!((ok, text.as_str()), (true, "Pool narrow created\n"));
    assert!(run(&["pools", "set", "narrow", "3", "for some", "--include-deferred"]).0);
    let pool = api.get("/api/v2/pools/narrow");
    assert_eq!(
        (&pool["slots"], &pool["include_deferred"]),
        (&json!(3), &json!(true))
    );
    let (ok, text) = run(&["pools", "get", "narrow", "-o", "plain"]);
    assert!(
        ok && text.contains("narrow") && text.contains("for some"),
        "{text}"
    );
    let file = path("pools.json");
    assert!(run(&["pools", "export", &file]).0);
    assert!(run(&["pools", "delete", "narrow"]).0);
    assert!(!run(&["pools", "get", "narrow"]).0);
    assert!(!run(&["pools", "delete", "default_pool"]).0);
    assert_eq!(
        run(&["pools", "import", &file]),
        (true, "Uploaded 2 pool(s)\n".to_owned())
    );
    installation.dag(
        "d.py",
        "from airflow.sdk import DAG\ndag = DAG('d', schedule=None, max_active_runs=3)\n",
    );
    api.wait_for_dag("d");
    let (ok, text) = run(&["dags", "details", "d", "-o", "plain"]);
    let line = text.lines().find(|line| line.starts_with("max_active_runs"));
    assert!(ok && line.is_some_and(|line| line.ends_with('3')), "{text}");
    assert!(!run(&["dags", "details", "nothing"]).0);

    let (ok, text) = run(&["pools", "list", "-o", "json"]);
    let pools: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert!(ok && pools[1]["slots"] == json!(3), "{text}");
}
