//! Requests that nobody would make by hand: every operation of Airflow's API document with odd values in its path, its query
//! and its body. Whatever comes, there is an answer, it is no failure of the server, and errors have Airflow's form.
//!
//! Ten seconds' worth, or `UPDRAFT_TEST_HOSTILE_SECONDS`; `UPDRAFT_TEST_SEED` repeats a run.

use harness::{Answer, Api, Installation};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Where Airflow has the document, within its environment.
const DOCUMENT: &str = "import json, yaml, pathlib, airflow.api_fastapi.core_api as api\n\
    folder = pathlib.Path(api.__file__).parent / 'openapi'\n\
    print(json.dumps(yaml.safe_load((folder / 'v2-rest-api-generated.yaml').read_text())))";

const DAG: &str = "from airflow.sdk import DAG, Asset, task\n\
    with DAG('one', schedule=None, tags=['t'], params={'n': 1}):\n\
    \x20   @task(outlets=[Asset('a')])\n    def give():\n        return {'a': [1, 'x']}\n\
    \x20   @task\n    def mapped(x):\n        return x\n\
    \x20   give()\n    mapped.expand(x=[1, 2])\n";

/// Numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap_or(0) % below.max(1)
    }

    fn one<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// Texts that go wrong somewhere, for paths and queries: as they stand there.
fn odd_texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "",
        "~",
        "*",
        "%25",
        "_",
        "%7C",
        "%7C%7C",
        "a%7C",
        "!",
        "%5C",
        "%5C%25",
        "'",
        "%22",
        "%27%20OR%201%3D1--",
        "%00",
        "%FF",
        "%C3",
        "%zz",
        "%",
        "..",
        "%2e%2e%2f",
        "%2F",
        "a%2Fb",
        "%0A",
        "+",
        "%20",
        "x%20",
        "%F0%9D%94%9E",
        "%EF%BF%BE",
        "null",
        "None",
        "true",
        "-1",
        "0",
        "1",
        "-0",
        "1.5",
        "1e400",
        "NaN",
        "Infinity",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775809",
        "123456789012345678901234567890",
        "0x10",
        "1_000",
        "%D9%A1",
        "2025-01-01",
        "2025-01-01T00:00:00Z",
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59.999999Z",
        "10000-01-01",
        "2025-13-45",
        "2025-01-01T00:00:00%2B99:99",
        "state",
        "-state",
        "-",
        "--id",
        "id;drop",
        "running",
        "no_status",
        "success",
        "{}",
        "%7B%22a%22:1%7D",
        "[]",
        "e30",
        "~e30",
        "W1siaWQiXSxbMV1d",
        "give",
        "mapped",
        "one",
        "return_value",
    ]
    .map(str::to_owned)
    .into();
    texts.extend([
        "a".repeat(251),
        "a".repeat(5000),
        "%F0%9D%94%9E".repeat(250),
        "%25".repeat(300),
        "a%7C".repeat(500),
    ]);
    texts
}

/// Values for fields of bodies.
fn odd_values() -> Vec<Value> {
    let mut values = vec![
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1.5),
        json!(1e300),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(""),
        json!("~"),
        json!("\u{0}"),
        json!("\u{fdd0}1"),
        json!("\u{1d51e}".repeat(300)),
        json!("a".repeat(70_000)),
        json!("%"),
        json!("|"),
        json!("2025-01-01"),
        json!("2025-01-01T00:00:00Z"),
        json!("9999-12-31T23:59:59Z"),
        json!("success"),
        json!("failed"),
        json!("queued"),
        json!([]),
        json!([null]),
        json!([[["x"]]]),
        json!({}),
        json!({"a": null}),
        json!({"": {"": []}}),
        json!("one"),
        json!("give"),
        json!(["give"]),
        json!([["mapped", 0]]),
        json!([["mapped", 99_999_999_999_i64]]),
        json!("{\"a\": 1}"),
        json!("overwrite"),
        json!("create"),
        json!("delete"),
        json!("update"),
    ];
    values.push((0..100).fold(json!(1), |inner, _| json!([inner])));
    values.push(model::json::integer("123456789012345678901234567890"));
    values
}

/// Bodies that are no object of the expected kind, or no JSON.
fn odd_bodies() -> Vec<Vec<u8>> {
    let texts: [&[u8]; 22] = [
        b"",
        b" ",
        b"{",
        b"{}",
        b"[]",
        b"null",
        b"1",
        b"\"",
        b"\"x\"",
        b"{\"a\"",
        b"{\"a\":}",
        b"{a:1}",
        b"{\"a\":1,}",
        b"{\"a\":1}x",
        b"NaN",
        b"{\"a\":1e400}",
        b"\xff\xfe",
        b"{\"\xc3\xa9",
        b"\xc3\xa9",
        b"\xef\xbb\xbf{}",
        b"{\"a\":\"\\ud800\"}",
        b"a=b&c=d",
    ];
    let mut bodies: Vec<Vec<u8>> = texts.map(<[u8]>::to_vec).into();
    bodies.push("[".repeat(100_000).into_bytes());
    bodies.push(format!("{{\"a\":{}1{}}}", "[".repeat(1000), "]".repeat(1000)).into_bytes());
    bodies.push(format!("{{\"a\":{}}}", "9".repeat(50_000)).into_bytes());
    bodies
}

const KINDS: [&str; 7] = [
    "application/json",
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "application/json; charset=utf-16",
    "",
    "\u{e9}",
];

/// What each operation needs to know of the document.
struct Operation {
    method: String,
    path: String,
    query: Vec<String>,
    /// Names of fields of its body.
    fields: Vec<String>,
}

fn operations(document: &Value) -> Vec<Operation> {
    let resolve = |value: &Value| -> Value {
        let Some(place) = value["$ref"].as_str() else {
            return value.clone();
        };
        document
            .pointer(place.trim_start_matches('#'))
            .cloned()
            .unwrap_or_default()
    };
    let mut all = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, facts) in methods.as_object().expect("methods") {
            if !matches!(method.as_str(), "get" | "post" | "put" | "patch" | "delete") {
                continue;
            }
            let query = facts["parameters"].as_array().into_iter().flatten();
            let query = query
                .filter(|parameter| parameter["in"] == "query")
                .filter_map(|parameter| parameter["name"].as_str());
            let schema = resolve(&facts["requestBody"]["content"]["application/json"]["schema"]);
            let fields = schema["properties"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, _)| name.clone());
            all.push(Operation {
                method: method.to_uppercase(),
                path: path.clone(),
                query: query.map(str::to_owned).collect(),
                fields: fields.collect(),
            });
        }
    }
    all
}

struct Generator {
    random: Random,
    texts: Vec<String>,
    values: Vec<Value>,
    bodies: Vec<Vec<u8>>,
}

impl Generator {
    /// The path with something in place of each name, mostly what is there.
    fn path(&mut self, operation: &Operation) -> String {
        let mut path = String::new();
        for part in operation.path.split('/').skip(1) {
            path.push('/');
            if !part.starts_with('{') {
                path.push_str(part);
                continue;
            }
            let there = match part {
                "{dag_id}" => "one",
                "{dag_run_id}" => "z",
                "{task_id}" => "give",
                "{map_index}" => "-1",
                "{xcom_key}" => "return_value",
                "{pool_name}" => "default_pool",
                _ => "1",
            };
            let is_odd = self.random.below(3) == 0;
            path.push_str(if is_odd {
                self.random.one(&self.texts).as_str()
            } else {
                there
            });
        }
        let mut between = '?';
        for name in &operation.query {
            for _ in 0..[0, 0, 1, 1, 2][self.random.below(5)] {
                path.push(between);
                path.push_str(name);
                path.push('=');
                path.push_str(self.random.one(&self.texts).as_str());
                between = '&';
            }
        }
        // Longer ones are refused as such, which is tried often enough.
        path.truncate(path.len().min(40_000));
        path
    }

    fn body(&mut self, operation: &Operation) -> Vec<u8> {
        if operation.method == "GET" && self.random.below(10) > 0 {
            return Vec::new();
        }
        if operation.fields.is_empty() || self.random.below(4) == 0 {
            return self.random.one(&self.bodies).clone();
        }
        let mut body = serde_json::Map::new();
        for name in &operation.fields {
            if self.random.below(3) > 0 {
                body.insert(name.clone(), self.random.one(&self.values).clone());
            }
        }
        if self.random.below(10) == 0 {
            body.insert("unknown".to_owned(), self.random.one(&self.values).clone());
        }
        model::json::write(&body.into()).into_bytes()
    }

    fn headers(&mut self, api: &Api, operation: &Operation) -> Vec<(String, String)> {
        // Whoever logs out is known no more.
        let leaves = operation.path.ends_with("/auth/logout");
        let token = if leaves { "" } else { api.token() };
        let mut headers = vec![("Authorization".to_owned(), format!("Bearer {token}"))];
        let kind = if self.random.below(4) == 0 {
            *self.random.one(&KINDS)
        } else {
            KINDS[0]
        };
        headers.push(("Content-Type".to_owned(), kind.to_owned()));
        let accepted = ["gzip, deflate, br", "identity", "", "gzip;q=0", "*"];
        headers.push((
            "Accept-Encoding".to_owned(),
            (*self.random.one(&accepted)).to_owned(),
        ));
        let wanted = ["application/json", "application/x-ndjson", "*/*", "text/html"];
        headers.push(("Accept".to_owned(), (*self.random.one(&wanted)).to_owned()));
        if self.random.below(20) == 0 {
            headers.push(("Content-Encoding".to_owned(), "gzip".to_owned()));
        }
        headers
    }
}

/// What is wrong with an answer, if anything is.
fn problem(answer: &Answer) -> Option<String> {
    // 503 is said of what was not ready in time, and is no failure.
    if answer.status >= 500 && answer.status != 503 || answer.status < 200 {
        return Some("a failure of the server".to_owned());
    }
    if answer.status < 400 {
        return None;
    }
    let body: Value = match model::json::read(&answer.body) {
        Ok(body) => body,
        // Refused before anything of ours has seen it.
        Err(_) if answer.body.is_empty() && matches!(answer.status, 400 | 405 | 414 | 431) => return None,
        Err(error) => return Some(format!("an error that is no JSON: {error}")),
    };
    let has_form = body.get("detail").is_some() || body.get("error").is_some();
    (!has_form).then(|| "an error in another form".to_owned())
}

fn document(python: &str) -> Option<Value> {
    let output = Command::new(python)
        .args(["-c", DOCUMENT])
        .output()
        .expect("Python");
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!harness::required(), "Airflow's API document: {text}");
        return None;
    }
    Some(serde_json::from_slice(&output.stdout).expect("JSON"))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Asks until the time is over; each problem with the request that met it.
fn ask(api: &Api, python: &str, seed: u64, time: Duration) -> Option<(usize, Vec<String>)> {
    let operations = operations(&document(python)?);
    assert!(operations.len() > 100, "{}", operations.len());
    let mut generator = Generator {
        random: Random(seed | 1),
        texts: odd_texts(),
        values: odd_values(),
        bodies: odd_bodies(),
    };
    let (mut asked, mut problems) = (0, Vec::new());
    let end = Instant::now() + time;
    while Instant::now() < end && problems.len() < 20 {
        // Each of them as often as the others, however long the time.
        let operation = &operations[asked % operations.len()];
        let (path, headers) = (generator.path(operation), generator.headers(api, operation));
        let body = generator.body(operation);
        asked += 1;
        let shown = || -> String {
            let body: String = String::from_utf8_lossy(&body).chars().take(500).collect();
            let path: String = path.chars().take(700).collect();
            format!("{} {path} {:?} {body:?}", operation.method, &headers[1..])
        };
        match api.exchange_bytes(&operation.method, &path, &headers, &body) {
            Err(error) => problems.push(format!("{}: no answer: {error}", shown())),
            Ok(answer) => {
                if let Some(what) = problem(&answer) {
                    let body: String = answer.body.chars().take(300).collect();
                    problems.push(format!("{}: {what}: {} {body}", shown(), answer.status));
                }
            }
        }
    }
    Some((asked, problems))
}

fn attack(url: Option<&str>) {
    let Some(python) = harness::python().filter(|python| Path::new(python).exists()) else {
        return;
    };
    let seed = number("UPDRAFT_TEST_SEED").unwrap_or_else(|| u64::from(std::process::id()) * 7919);
    let seconds = number("UPDRAFT_TEST_HOSTILE_SECONDS").unwrap_or(10);
    writeln!(std::io::stderr(), "UPDRAFT_TEST_SEED={seed}").expect("a place to say it");
    let mut installation = Installation::new(&python);
    if let Some(url) = url {
        installation.set("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", url);
    }
    installation.dag("one.py", DAG);
    let mut process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("one");
    api.trigger("one", &json!({"logical_date": null, "dag_run_id": "z"}));
    assert_eq!(api.wait_for_end("one", "z"), "success", "{}", process.output());
    let Some((asked, problems)) = ask(&api, &python, seed, Duration::from_secs(seconds)) else {
        return;
    };
    writeln!(std::io::stderr(), "{asked} requests").expect("a place to say it");
    assert!(problems.is_empty(), "seed {seed}:\n{}", problems.join("\n"));
    assert!(process.is_running());
    let output = process.output();
    assert!(!output.contains("panicked"), "seed {seed}: {output}");
}

#[test]
fn odd_requests_get_an_answer_and_no_failure() {
    attack(None);
}

#[test]
fn odd_requests_get_an_answer_and_no_failure_on_mariadb() {
    if let Some(url) = harness::mariadb_database() {
        attack(Some(&url));
    }
}
