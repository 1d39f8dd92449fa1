//! Numbers as Python has them, whole ones of any size, all the way from a client to a task and back.

use harness::{Api, Installation};
use model::json;
use serde_json::{Value, json};

const DAG: &str = r#"
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Variable, task

with DAG("numbers", schedule=None, params={"declared": 2**70, "x": None}):
    @task
    def conf(dag_run=None):
        return dag_run.conf["x"]

    @task
    def passed_on(value):
        return [value, str(value)]

    @task
    def param(params=None):
        return [params["declared"], 2**200, -(10**4000) + 1]

    @task
    def variable():
        return Variable.get("large", deserialize_json=True)

    BashOperator(task_id="bash", bash_command="cat <<'E'\n{{ dag_run.conf['x'] }}\nE")
    BashOperator(task_id="floats", bash_command="echo '{{ dag_run.conf[\"floats\"] | join(\";\") }}'")
    passed_on(conf())
    param()
    variable()
"#;

/// JSON with numbers that a seed gives, as Python would write it.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }

    fn whole(&mut self) -> Value {
        let length = self.next(60) + 1;
        let digits: String = (0..length)
            .map(|at| {
                let digit = if at == 0 { self.next(9) + 1 } else { self.next(10) };
                char::from(b'0' + u8::try_from(digit).expect("a digit"))
            })
            .collect();
        json::integer(&format!("{}{digits}", if self.next(2) == 0 { "-" } else { "" }))
    }

    fn float(&mut self) -> Value {
        let exponent = i32::try_from(self.next(60)).expect("small") - 30;
        #[expect(clippy::cast_precision_loss, reason = "any number will do")]
        let digits = self.next(1 << 30) as f64;
        json!(digits * 10f64.powi(exponent))
    }

    fn value(&mut self, depth: u64) -> Value {
        match self.next(if depth == 0 { 3 } else { 5 }) {
            0 | 1 => self.whole(),
            2 => self.float(),
            3 => (0..self.next(5)).map(|_| self.value(depth - 1)).collect(),
            _ => {
                let fields = (0..self.next(5)).map(|at| (format!("k{at}"), self.value(depth - 1)));
                Value::Object(fields.collect())
            }
        }
    }
}

/// What a task returned, as it stands in the answer.
fn returned(api: &Api, task: &str) -> Value {
    let path = format!("/api/v2/dags/numbers/dagRuns/r/taskInstances/{task}/xcomEntries/return_value");
    let (status, answer) = api.raw("GET", &path, "", "application/json").expect("an answer");
    assert_eq!(status, 200, "{task}: {}", answer);
    json::read(&answer).expect("JSON")["value"].clone()
}

#[test]
fn numbers_stay_as_they_are_from_a_client_through_tasks_and_back() {
    let Some(python) = harness::python() else { return };
    let seed = std::process::id().into();
    eprintln!("seed {seed}");
    let mut numbers = Numbers(seed);
    let x: Value = (0..40).map(|_| numbers.value(3)).collect();
    let floats: Vec<Value> = (0..20).map(|_| numbers.float()).collect();
    assert!(json::has_large(&x));

    let installation = Installation::new(&python);
    installation.dag("numbers.py", DAG);
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("numbers");
    let post = |path: &str, body: &Value| {
        let (status, answer) = api
            .raw("POST", path, &json::write(body), "application/json")
            .expect("an answer");
        assert!(status < 300, "{status} {answer}");
        answer
    };
    let large = json::integer(&"9".repeat(40));
    post(
        "/api/v2/variables",
        &json!({"key": "large", "value": {"n": large}}),
    );
    let body = json!({"logical_date": null, "dag_run_id": "r", "conf": {"x": x, "floats": floats}});
    let run = json::read(&post("/api/v2/dags/numbers/dagRuns", &body)).expect("JSON");
    assert_eq!(
        json::write(&run["conf"]["x"]),
        json::write(&x),
        "in the answer to the trigger"
    );
    let state = api.wait_for_end("numbers", "r");
    assert_eq!(state, "success", "{}", process.output());

    assert_eq!(
        json::write(&returned(&api, "conf")),
        json::write(&x),
        "conf of a task"
    );
    let passed_on = returned(&api, "passed_on");
    assert_eq!(
        json::write(&passed_on[0]),
        json::write(&x),
        "XCom of another task"
    );
    let shown = model::python_text::str(&x);
    assert_eq!(passed_on[1], json!(shown), "str() in Python");
    // The last line of the output is what the template printed.
    assert_eq!(returned(&api, "bash"), json!(shown), "in a template");
    let shown: Vec<String> = floats.iter().map(model::python_text::str).collect();
    assert_eq!(
        returned(&api, "floats"),
        json!(shown.join(";")),
        "floats in a native template"
    );
    let param = returned(&api, "param");
    assert_eq!(
        json::write(&param[0]),
        "1180591620717411303424",
        "a default of a param"
    );
    assert_eq!(json::write(&param[2]), format!("-{}", "9".repeat(4000)));
    assert_eq!(json::write(&returned(&api, "variable")["n"]), "9".repeat(40));
    let (_, details) = api
        .raw("GET", "/api/v2/dags/numbers/details", "", "application/json")
        .expect("an answer");
    assert!(details.contains("\"value\":1180591620717411303424"), "{details}");
}
