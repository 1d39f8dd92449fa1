//! How workers join an installation: with the token of their pool, under a name that is theirs as long as they live, with
//! tokens that are good for their own life and nothing else. Without the key that API servers sign with.

use harness::{Api, Installation, ManualWorker, Process, SECRET, eventually, membership, signed, wait_until};
use identity::{JoinToken, Membership, Role, Tokens, UserToken};
use model::WorkerId;
use proto::v1::run_service_client::RunServiceClient;
use proto::v1::{
    AppendLogRequest, ClaimRequest, HeartbeatRequest, LeaveRequest, RegisterRequest, ReportRequest, RunName,
    SyncTriggersRequest,
};
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tonic::{Code, Status};

const PATIENCE: Duration = Duration::from_secs(60);
const JWT_SECRET: &str = "AIRFLOW__API_AUTH__JWT_SECRET";
const JOIN_TOKEN: &str = "AIRFLOW__UPDRAFT__JOIN_TOKEN";
const POOLS: &str = "AIRFLOW__UPDRAFT__WORKER_POOLS";

/// An API server alone, on a database of its own.
fn api_server(set: &[(&str, &str)]) -> Option<(Installation, Process)> {
    let mut installation = Installation::new(&harness::python()?);
    for (name, value) in set {
        installation.set(name, value);
    }
    let (ok, text) = installation.run("updraft", &["db", "migrate"]);
    assert!(ok, "{text}");
    let process = installation.start("updraft-api-server", &[], &[]);
    installation.api();
    Some((installation, process))
}

/// A worker that takes nothing.
fn worker(installation: &Installation, name: &str, more: &[(&str, &str)]) -> Process {
    let own = [
        ("AIRFLOW__UPDRAFT__WORKER_NAME", name),
        ("AIRFLOW__UPDRAFT__PYTHON", ""),
    ];
    installation.start("updraft-worker", &[], &[&own, more].concat())
}

fn joined(worker: &Process) {
    wait_until("the worker has joined", PATIENCE, || {
        worker.output().contains("worker is ready")
    });
}

fn token(pool: &str) -> String {
    let secret = config::Secret::new(SECRET);
    let token = JoinToken::of_pool(&secret, pool).expect("a join token");
    token.text().expose().to_owned()
}

fn code<T>(answer: Result<T, Status>) -> Option<Code> {
    answer.err().map(|status| status.code())
}

async fn register(
    installation: &Installation,
    member: &Membership,
    name: &str,
) -> Result<ManualWorker, Code> {
    ManualWorker::register(installation, member, name)
        .await
        .map_err(|status| status.code())
}

fn leave(worker: &ManualWorker, died: bool) -> LeaveRequest {
    LeaveRequest {
        worker_id: worker.id.clone(),
        died,
        ..LeaveRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_belongs_to_the_worker_that_lives_under_it() {
    let Some((installation, _server)) = api_server(&[(POOLS, "default,gpu")]) else {
        return;
    };
    let ours = membership("default", "ours");
    let mut first = register(&installation, &ours, "w").await.expect("a life");
    // Whoever else has the join token of its pool, or of another one, is refused.
    for other in [membership("default", "theirs"), membership("gpu", "ours")] {
        let refused = register(&installation, &other, "w").await.err();
        assert_eq!(refused, Some(Code::AlreadyExists));
    }
    assert!(first.beat(1).await.expect("an answer").alive);
    // The worker itself may come back at any time; its earlier life is over by that.
    let mut second = register(&installation, &ours, "w").await.expect("a life");
    assert!(!first.beat(2).await.expect("an answer").alive);
    let beat = second.beat(1).await.expect("an answer");
    assert!(beat.alive && beat.pass.is_some_and(|pass| !pass.worker_token.is_empty()));
    // Once it has left, the name is anybody's.
    let request = signed(leave(&second, false), &second.pass.worker_token);
    second.client.leave(request).await.expect("an answer");
    register(&installation, &membership("gpu", "ours"), "w")
        .await
        .expect("a life");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_free_when_the_lease_is_over() {
    let lease = ("AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT", "3");
    let Some((installation, _server)) = api_server(&[lease]) else {
        return;
    };
    let (ours, theirs) = (membership("default", "ours"), membership("default", "theirs"));
    register(&installation, &ours, "w").await.expect("a life");
    let refused = register(&installation, &theirs, "w").await.err();
    assert_eq!(refused, Some(Code::AlreadyExists));
    let begin = std::time::Instant::now();
    while register(&installation, &theirs, "w").await.is_err() {
        assert!(begin.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_pool_of_this_installation_makes_workers() {
    let Some((installation, _server)) = api_server(&[(POOLS, "default")]) else {
        return;
    };
    let foreign = JoinToken::of_pool(&config::Secret::new("another secret, long enough"), "default");
    let foreign = Membership::new(&foreign.expect("a join token"), b"seed").expect("a key");
    for stranger in [foreign, membership("gpu", "seed")] {
        let refused = register(&installation, &stranger, "w").await.err();
        assert_eq!(refused, Some(Code::Unauthenticated));
    }
    // Nor does any other token, or an application for another life or name than the call's.
    let id = WorkerId::new(uuid::Uuid::now_v7());
    let ours = membership("default", "seed");
    let application = ours.apply(id, "w").expect("an application");
    let tokens = Tokens::new(&config::Secret::new(SECRET), "apache-airflow");
    let worker_token = tokens.for_worker(id, PATIENCE).expect("a token");
    let mut client = ManualWorker::connect(&installation).await;
    let call = |worker: WorkerId, name: &str, proof: &[u8]| RegisterRequest {
        worker_id: worker.to_string(),
        name: name.to_owned(),
        proof: proof.to_vec().into(),
        ..RegisterRequest::default()
    };
    let (another, proof) = (WorkerId::new(uuid::Uuid::now_v7()), application.proof.as_slice());
    for (message, token, refusal) in [
        (call(id, "w", proof), worker_token.as_str(), Code::Unauthenticated),
        (
            call(id, "w", proof),
            installation.api().token(),
            Code::Unauthenticated,
        ),
        (call(id, "w", &[7; 64]), &application.token, Code::Unauthenticated),
        (call(id, "v", proof), &application.token, Code::PermissionDenied),
        (
            call(another, "w", proof),
            &application.token,
            Code::PermissionDenied,
        ),
    ] {
        assert_eq!(code(client.register(signed(message, token)).await), Some(refusal));
    }
    assert_eq!(
        code(client.register(call(id, "w", proof)).await),
        Some(Code::Unauthenticated)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_token_opens_what_it_is_for_and_nothing_else() {
    let Some((installation, _server)) = api_server(&[]) else {
        return;
    };
    let member = membership("default", "one");
    let mut worker = register(&installation, &member, "one").await.expect("a life");
    let other = register(&installation, &membership("default", "two"), "two").await;
    let other = other.expect("a life");
    let (own, farewell) = (
        worker.pass.worker_token.clone(),
        worker.pass.farewell_token.clone(),
    );
    let join = member
        .apply(worker.id.parse().expect("an id"), "one")
        .expect("an application")
        .token;
    let user = installation.api().token().to_owned();
    let (id, client) = (worker.id.clone(), &mut worker.client);
    let beat = || HeartbeatRequest {
        worker_id: id.clone(),
        number: 1,
        ..HeartbeatRequest::default()
    };
    let denied = Some(Code::Unauthenticated);
    for token in [&farewell, &join, &user] {
        assert_eq!(code(client.heartbeat(signed(beat(), token)).await), denied);
        let claim = ClaimRequest {
            worker_id: id.clone(),
            ..ClaimRequest::default()
        };
        assert_eq!(code(client.claim(signed(claim, token)).await), denied);
        let sync = SyncTriggersRequest {
            worker_id: id.clone(),
            ..SyncTriggersRequest::default()
        };
        assert_eq!(code(client.sync_triggers(signed(sync, token)).await), denied);
    }
    for token in [&own, &farewell, &join, &user] {
        let (log, report) = (AppendLogRequest::default(), ReportRequest::default());
        assert_eq!(code(client.append_log(signed(log, token)).await), denied);
        assert_eq!(code(client.report(signed(report, token)).await), denied);
    }
    // A worker speaks for itself only.
    let token = &other.pass.worker_token;
    let refused = client.heartbeat(signed(beat(), token)).await;
    assert_eq!(code(refused), Some(Code::PermissionDenied));
    // None of them is a user's.
    for token in [&own, &farewell, &join] {
        let api = Api::new(installation.port).with_token(token);
        assert_eq!(api.call("GET", "/api/v2/dags", None).expect("an answer").0, 403);
        let mut runs = RunServiceClient::connect(format!("http://127.0.0.1:{}", installation.control_port))
            .await
            .expect("the control plane");
        assert_eq!(code(runs.get(signed(RunName::default(), token)).await), denied);
    }
    a_farewell_tells_of_one_death(&mut worker, &other, &farewell).await;
    // What the worker itself holds is good for nothing any more.
    assert!(!worker.beat(2).await.expect("an answer").alive);
    let question = serde_json::json!({"type": "GetConnection", "conn_id": "x"});
    let refused = worker.ask(&own, &question).await;
    assert_eq!(code(refused), Some(Code::FailedPrecondition));
    let sync = SyncTriggersRequest {
        worker_id: worker.id.clone(),
        ..SyncTriggersRequest::default()
    };
    let refused = worker.client.sync_triggers(signed(sync, &own)).await;
    assert_eq!(code(refused), Some(Code::FailedPrecondition));
}

/// What the watchdog holds.
async fn a_farewell_tells_of_one_death(worker: &mut ManualWorker, other: &ManualWorker, farewell: &str) {
    let question = serde_json::json!({"type": "GetConnection", "conn_id": "x"});
    assert_eq!(
        code(worker.ask(farewell, &question).await),
        Some(Code::Unauthenticated)
    );
    for message in [leave(worker, false), leave(other, true)] {
        let refused = worker.client.leave(signed(message, farewell)).await;
        assert_eq!(code(refused), Some(Code::PermissionDenied));
    }
    assert!(worker.beat(1).await.expect("an answer").alive);
    let request = signed(leave(worker, true), farewell);
    worker.client.leave(request).await.expect("an answer");
}

#[test]
fn workers_need_no_key_of_the_api_servers_and_say_so_where_they_have_it() {
    let Some((installation, _server)) = api_server(&[(POOLS, "default,gpu")]) else {
        return;
    };
    let (ok, printed) = installation.run("updraft", &["workers", "join-token"]);
    assert!(ok && printed.trim() == token("default"), "{printed}");
    let (ok, gpu) = installation.run("updraft", &["workers", "join-token", "--pool", "gpu"]);
    assert!(ok && gpu.trim() == token("gpu"), "{gpu}");
    let (ok, text) = installation.run("updraft", &["workers", "join-token", "--pool", "no.name"]);
    assert!(!ok && text.contains("\"no.name\""), "{text}");
    for (name, token) in [("plain", printed.trim()), ("fast", gpu.trim())] {
        let worker = worker(&installation, name, &[(JOIN_TOKEN, token)]);
        joined(&worker);
        assert!(!worker.output().contains("jwt_secret"), "{}", worker.output());
    }
    // As installations were before there were join tokens.
    let old = worker(&installation, "old", &[(JOIN_TOKEN, ""), (JWT_SECRET, SECRET)]);
    joined(&old);
    assert!(
        old.output().contains("[updraft] join_token is not set"),
        "{}",
        old.output()
    );
    let both = worker(&installation, "both", &[(JWT_SECRET, SECRET)]);
    joined(&both);
    assert!(both.output().contains("take it away"), "{}", both.output());
    // With nothing there is no worker, and what is no token is told as such.
    for (more, expected) in [
        ([(JOIN_TOKEN, "")], "[updraft] join_token is not set"),
        ([(JOIN_TOKEN, "gpu.short")], "[updraft] join_token"),
    ] {
        let mut none = worker(&installation, "none", &more);
        assert_ne!(none.exit_code(PATIENCE), Some(0));
        assert!(none.output().contains(expected), "{}", none.output());
    }
    // One of a pool that is not served goes on trying, and says why.
    let stranger = worker(&installation, "stranger", &[(JOIN_TOKEN, &token("other"))]);
    wait_until("the worker says why", PATIENCE, || {
        stranger.output().contains("none of this installation's pools")
    });
}

#[test]
fn a_worker_that_was_killed_with_its_watchdog_has_its_name_back_at_once() {
    let Some((installation, _server)) = api_server(&[]) else {
        return;
    };
    let mut first = worker(&installation, "w", &[]);
    joined(&first);
    for watchdog in first.children("--watchdog") {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(watchdog), nix::sys::signal::SIGKILL)
            .expect("a watchdog to kill");
    }
    first.kill();
    let begin = std::time::Instant::now();
    let second = worker(&installation, "w", &[]);
    joined(&second);
    // The lease is a minute.
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
}

/// The states of the lives of the worker of that name.
fn lives(installation: &Installation, name: &str) -> String {
    let code = "import sqlite3, sys\nprint(sqlite3.connect(sys.argv[1]).execute(\"select state from worker where name like ? order by registered_at\", ('%@' + sys.argv[2],)).fetchall())";
    let output = Command::new(harness::python().unwrap_or_default())
        .args(["-c", code])
        .arg(installation.path().join("airflow.db"))
        .arg(name)
        .output()
        .expect("Python runs");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn a_worker_whose_token_is_not_good_any_more_begins_a_new_life() {
    let lease = ("AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT", "3");
    let Some((installation, mut server)) = api_server(&[lease]) else {
        return;
    };
    let worker = worker(&installation, "w", &[]);
    joined(&worker);
    server.kill();
    let other = [(JWT_SECRET, "another secret, as long as the first")];
    let mut server = installation.start("updraft-api-server", &[], &other);
    wait_until("the worker hears that its token is void", PATIENCE, || {
        worker.output().contains("the worker's token has run out")
    });
    wait_until("its join token is void, too", PATIENCE, || {
        worker.output().contains("none of this installation's pools")
    });
    server.kill();
    let _server = installation.start("updraft-api-server", &[], &[]);
    eventually("its second life has begun", PATIENCE, || {
        let text = lives(&installation, "w");
        let expected = "[('gone',), ('active',)]";
        (text == expected).then_some(()).ok_or(text)
    });
}

/// A certificate authority in a folder, and a certificate of it for 127.0.0.1.
fn certificates(folder: &Path) -> Option<()> {
    let openssl = |arguments: &str| {
        let run = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(folder)
            .output();
        run.is_ok_and(|output| output.status.success()).then_some(())
    };
    std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost").expect("a file");
    openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca",
    )?;
    openssl(
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout server.key -out server.csr -subj /CN=server",
    )?;
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 -extfile names",
    )
}

/// The first byte of whoever speaks TLS.
const TLS: u8 = 0x16;

/// The first byte that the first caller sends.
fn first_byte(listener: &TcpListener) -> u8 {
    listener.set_nonblocking(true).expect("a listener");
    let mut connection = eventually("somebody calls", PATIENCE, || {
        let accepted = listener.accept().map_err(|error| error.to_string());
        accepted.map(|(connection, _)| connection)
    });
    connection.set_nonblocking(false).expect("a connection");
    connection.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let mut first = [0];
    connection.read_exact(&mut first).expect("a byte");
    first[0]
}

#[test]
fn the_control_plane_speaks_tls_and_an_https_address_never_anything_else() {
    let folder = tempfile::tempdir().expect("a folder");
    if certificates(folder.path()).is_none() {
        assert!(!harness::required(), "openssl is needed");
        return;
    }
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let Some((mut installation, _server)) = api_server(&[
        ("AIRFLOW__UPDRAFT__GRPC_SSL_CERT", &path("server.pem")),
        ("AIRFLOW__UPDRAFT__GRPC_SSL_KEY", &path("server.key")),
    ]) else {
        return;
    };
    const ADDRESS: &str = "AIRFLOW__UPDRAFT__CONTROL_PLANE";
    const TRUSTED: &str = "AIRFLOW__UPDRAFT__CONTROL_PLANE_CA";
    let secure = format!("https://127.0.0.1:{}", installation.control_port);
    installation.set(ADDRESS, &secure);
    let broker = TcpListener::bind("127.0.0.1:0").expect("a port");
    let amqps = format!("amqps://{}", broker.local_addr().expect("an address"));
    let more = [(TRUSTED, path("ca.pem")), ("AIRFLOW__CELERY__BROKER_URL", amqps)];
    let more: Vec<(&str, &str)> = more.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut trusting = worker(&installation, "trusting", &more);
    joined(&trusting);
    assert_eq!(first_byte(&broker), TLS);
    let strict = worker(&installation, "strict", &[]);
    let clear = format!("http://127.0.0.1:{}", installation.control_port);
    let clear = worker(&installation, "clear", &[(ADDRESS, &clear)]);
    for refused in [&strict, &clear] {
        wait_until("the worker cannot register", PATIENCE, || {
            refused
                .output()
                .contains("cannot register with the control plane")
        });
        assert!(
            !refused.output().contains("worker is ready"),
            "{}",
            refused.output()
        );
    }
    // The first byte that goes to an https:// address is that of TLS.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("https://{}", listener.local_addr().expect("an address"));
    let _probing = worker(&installation, "probing", &[(ADDRESS, &address)]);
    assert_eq!(first_byte(&listener), TLS);
    // The watchdog speaks it, too: the death is told, and the name is free long before the lease is over.
    trusting.kill();
    eventually(
        "the watchdog has told of the death",
        Duration::from_secs(20),
        || {
            let text = lives(&installation, "trusting");
            (text == "[('gone',)]").then_some(()).ok_or(text)
        },
    );
    for (cert, expected) in [("", "grpc_ssl_cert"), ("/nonexistent.pem", "grpc_ssl_cert")] {
        let wrong = [("AIRFLOW__UPDRAFT__GRPC_SSL_CERT", cert)];
        let mut wrong = installation.start("updraft-api-server", &[], &wrong);
        assert_ne!(wrong.exit_code(PATIENCE), Some(0));
        assert!(wrong.output().contains(expected), "{}", wrong.output());
    }
}

#[test]
fn a_forged_users_token_of_a_worker_is_worth_nothing() {
    let Some((installation, _server)) = api_server(&[]) else {
        return;
    };
    // All that a worker has is the join token; signing with it, or with its halves, makes nobody an admin.
    let text = token("default");
    let secret = text.split_once('.').map(|(_, secret)| secret).unwrap_or_default();
    let admin = UserToken {
        sub: "admin".to_owned(),
        role: Some(format!("{:?}", Role::Admin).to_lowercase()),
        teams: Vec::new(),
    };
    for (key, status) in [(text.as_str(), 403), (secret, 403), (SECRET, 200)] {
        let tokens = Tokens::new(&config::Secret::new(key), "apache-airflow");
        let forged = tokens.for_user(&admin, PATIENCE).expect("a token");
        let api = Api::new(installation.port).with_token(&forged);
        let answer = api.call("GET", "/api/v2/variables", None).expect("an answer");
        assert_eq!(answer.0, status);
    }
}
