//! gRPC for clients: trigger, watch to the end, follow a log.

use harness::Installation;
use proto::v1::run_service_client::RunServiceClient;
use proto::v1::worker_service_client::WorkerServiceClient;
use proto::v1::{RegisterRequest, RunName, TailLogRequest, TriggerRequest};
use tonic::transport::Endpoint;
use tonic::{Code, Request};

fn signed<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(
        "authorization",
        format!("Bearer {token}").parse().expect("a header"),
    );
    request
}

#[test]
fn a_client_triggers_a_run_watches_it_and_reads_its_log() {
    let Some(python) = harness::python() else { return };
    let installation = Installation::new(&python);
    installation.dag(
        "g.py",
        "from airflow.sdk import DAG\nfrom airflow.providers.standard.operators.bash import BashOperator\nwith DAG('g', schedule=None):\n    BashOperator(task_id='t', bash_command='for i in 1 2 3; do echo line $i; sleep 0.3; done')\n",
    );
    let _process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("g");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let url = format!("http://127.0.0.1:{}", installation.control_port);
        let channel = Endpoint::from_shared(url)
            .expect("a URL")
            .connect()
            .await
            .expect("the control plane");
        let mut runs = RunServiceClient::new(channel.clone());
        let token = api.token();

        let wish = TriggerRequest {
            dag_id: "g".into(),
            conf: "{\"x\": 1}".into(),
            ..TriggerRequest::default()
        };
        assert_eq!(
            runs.trigger(wish.clone()).await.expect_err("no token").code(),
            Code::Unauthenticated
        );
        let run = runs
            .trigger(signed(wish, token))
            .await
            .expect("a run")
            .into_inner();
        let name = RunName {
            dag_id: "g".into(),
            run_id: run.run_id.clone(),
        };

        let tail = TailLogRequest {
            dag_id: "g".into(),
            run_id: run.run_id.clone(),
            task_id: "t".into(),
            map_index: -1,
            try_number: 0,
        };
        let mut log = runs
            .tail_log(signed(tail, token))
            .await
            .expect("a log")
            .into_inner();
        let mut watch = runs
            .watch(signed(name.clone(), token))
            .await
            .expect("updates")
            .into_inner();
        let mut seen = Vec::new();
        while let Some(update) = watch.message().await.expect("an update") {
            seen.push(update.run.expect("the run").state);
        }
        assert_eq!(seen.last().map(String::as_str), Some("success"), "{seen:?}");
        assert!(seen.len() >= 2, "{seen:?}");
        let mut text = String::new();
        while let Some(lines) = log.message().await.expect("lines") {
            text.push_str(&lines.lines.join("\n"));
        }
        assert!(text.contains("line 1") && text.contains("line 3"), "{text}");
        assert_eq!(
            runs.get(signed(name, token))
                .await
                .expect("the run")
                .into_inner()
                .state,
            "success"
        );

        // A user's token does not make a worker.
        let mut workers = WorkerServiceClient::new(channel);
        let refused = workers
            .register(signed(RegisterRequest::default(), token))
            .await
            .expect_err("a user is no worker");
        assert_eq!(refused.code(), Code::Unauthenticated);
    });
}

#[test]
fn whoever_has_logged_out_is_shown_nothing_more() {
    let Some(python) = harness::python() else { return };
    let installation = Installation::new(&python);
    installation.dag(
        "g.py",
        "from airflow.sdk import DAG\nfrom airflow.providers.standard.operators.bash import BashOperator\nwith DAG('g', schedule=None):\n    BashOperator(task_id='t', bash_command='sleep 300')\n",
    );
    let _process = installation.start("updraft", &["standalone"], &[]);
    let (api, other) = (installation.api(), installation.api());
    api.wait_for_dag("g");
    let run_id = api.trigger("g", &serde_json::json!({"logical_date": null}));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let url = format!("http://127.0.0.1:{}", installation.control_port);
        let channel = Endpoint::from_shared(url).expect("a URL").connect().await;
        let mut runs = RunServiceClient::new(channel.expect("the control plane"));
        let name = RunName {
            dag_id: "g".into(),
            run_id: run_id.clone(),
        };
        let tail = TailLogRequest {
            dag_id: "g".into(),
            run_id,
            task_id: "t".into(),
            map_index: -1,
            try_number: 0,
        };
        let token = api.token();
        let mut watch = runs
            .watch(signed(name.clone(), token))
            .await
            .expect("updates")
            .into_inner();
        let mut log = runs
            .tail_log(signed(tail, token))
            .await
            .expect("a log")
            .into_inner();
        watch.message().await.expect("an update").expect("the run");
        let header = [("Authorization".to_owned(), format!("Bearer {token}"))];
        let out = api.exchange("GET", "/api/v2/auth/logout", &header, "");
        assert_eq!(out.expect("an answer").status, 307);
        let refused = runs
            .get(signed(name.clone(), token))
            .await
            .expect_err("logged out");
        assert_eq!(refused.code(), Code::Unauthenticated);
        // What was being followed ends, too.
        let patience = std::time::Duration::from_secs(10);
        let end = tokio::time::timeout(patience, async {
            loop {
                if let Err(status) = watch.message().await {
                    return status;
                }
            }
        });
        assert_eq!(end.await.expect("an end").code(), Code::Unauthenticated);
        let end = tokio::time::timeout(patience, log.message())
            .await
            .expect("an end");
        assert_eq!(end.expect_err("logged out").code(), Code::Unauthenticated);
        runs.get(signed(name, other.token())).await.expect("the run");
    });
}
