//! A program of which a part breaks ends, with an exit code and a text that say so; one that is asked to end does, in order.

use harness::{Installation, Process, eventually, python, rabbitmq_url};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::Duration;

const START: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(30);
const LOUD: (&str, &str) = ("RUST_LOG", "info,lifecycle=debug");

/// How each program is started.
const PROGRAMS: [(&str, &[&str]); 6] = [
    ("updraft-scheduler", &[]),
    ("updraft-worker", &[]),
    ("updraft-dag-processor", &[]),
    ("updraft-api-server", &[]),
    ("updraft", &["triggerer"]),
    ("updraft", &["standalone"]),
];

/// An installation on SQLite whose API server runs, unless `of` is one that brings its own.
fn installation(of: (&str, &[&str])) -> Option<(Installation, Option<Process>)> {
    let mut installation = Installation::new(&python()?);
    if let Some(broker) = rabbitmq_url() {
        installation.set("AIRFLOW__CELERY__BROKER_URL", &broker);
    }
    let queue = format!("s{}", uuid::Uuid::new_v4().simple());
    installation.set("AIRFLOW__UPDRAFT__QUEUES", &queue);
    let (ok, text) = installation.run("updraft", &["db", "migrate"]);
    assert!(ok, "{text}");
    let needs_server = matches!(of, ("updraft-worker", _) | ("updraft", ["triggerer"]));
    let server = needs_server.then(|| {
        let server = installation.start("updraft-api-server", &[], &[]);
        installation.api();
        server
    });
    Some((installation, server))
}

/// The parts of a program, and what their ends mean, as it tells when it starts them; those that begin when it is ready,
/// too.
fn parts(installation: &Installation, (program, arguments): (&str, &[&str])) -> BTreeMap<String, String> {
    let process = installation.start(program, arguments, &[LOUD]);
    let last = match (program, arguments) {
        ("updraft-scheduler", _) => "publisher",
        ("updraft-worker", _) | (_, ["triggerer"]) => "triggers",
        ("updraft-api-server", _) => "hint listener",
        (_, ["standalone"]) | (_, _) => "dag processor heartbeat",
    };
    let read = || -> BTreeMap<String, String> {
        let output = process.output();
        let lines = output.lines().filter(|line| line.contains("part started"));
        lines
            .filter_map(|line| {
                let (_, rest) = line.split_once("part=\"")?;
                let (name, rest) = rest.split_once('"')?;
                let kind = rest.split_once("kind=")?.1.split_whitespace().next()?;
                Some((name.to_owned(), kind.to_owned()))
            })
            .collect()
    };
    eventually("all parts are started", START, || {
        let found = read();
        if found.contains_key(last) {
            Ok(found)
        } else {
            Err(format!("{found:?}\n{}", process.output()))
        }
    })
}

/// Breaks each part, or those of these names, in each way.
fn breaks_in_order(place: usize, only: Option<&[&str]>) {
    let of = PROGRAMS[place];
    let Some((installation, _server)) = installation(of) else {
        return;
    };
    let parts = parts(&installation, of);
    assert!(parts.len() >= 3, "{parts:?}");
    for (part, kind) in parts {
        let is_chosen = only.is_none_or(|only| only.contains(&part.as_str()));
        if kind == "Request" || !is_chosen {
            continue;
        }
        let mut faults = vec!["panic"];
        if kind == "Service" || kind == "Background" {
            faults.push("end");
        }
        for fault in faults {
            let wish = format!("{fault}:{part}");
            let mut process = installation.start(of.0, of.1, &[("UPDRAFT_TEST_FAULT", &wish)]);
            let code = process.exit_code(START);
            assert_eq!(code, Some(1), "{wish}: {}", process.output());
            let output = process.output();
            let last = output.lines().rev().find(|line| line.starts_with("error: "));
            let last = last.unwrap_or_else(|| panic!("{wish}: no error is told: {output}"));
            assert!(last.contains(&part), "{wish}: {last}");
        }
    }
}

#[test]
fn a_scheduler_of_which_a_part_breaks_ends_and_says_which() {
    breaks_in_order(0, None);
}

#[test]
fn a_worker_of_which_a_part_breaks_ends_and_says_which() {
    breaks_in_order(1, None);
}

#[test]
fn a_dag_processor_of_which_a_part_breaks_ends_and_says_which() {
    breaks_in_order(2, None);
}

#[test]
fn an_api_server_of_which_a_part_breaks_ends_and_says_which() {
    breaks_in_order(3, None);
}

#[test]
fn a_triggerer_of_which_a_part_breaks_ends_and_says_which() {
    breaks_in_order(4, None);
}

#[test]
fn a_standalone_of_which_a_part_breaks_ends_and_says_which() {
    // Its components have the parts that the tests above break.
    let own = [
        "scheduler",
        "worker",
        "dag processor",
        "REST server",
        "control plane",
    ];
    breaks_in_order(5, Some(&own));
}

#[test]
fn every_program_ends_well_when_it_is_asked_to() {
    for of in PROGRAMS {
        let Some((installation, _server)) = installation(of) else {
            return;
        };
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let mut process = installation.start(of.0, of.1, &[]);
            eventually("it is ready", START, || {
                let output = process.output();
                if output.contains("ready") {
                    Ok(())
                } else {
                    Err(output)
                }
            });
            process.signal(signal);
            let code = process.exit_code(END);
            assert_eq!(code, Some(0), "{of:?} {signal}: {}", process.output());
        }
    }
}

#[test]
fn a_part_that_hangs_holds_nobody_up_and_is_named() {
    let of = PROGRAMS[0];
    let Some((installation, _server)) = installation(of) else {
        return;
    };
    let hang = ("UPDRAFT_TEST_FAULT", "hang:creator");
    let mut process = installation.start(of.0, of.1, &[hang, LOUD]);
    eventually("it runs", START, || {
        let output = process.output();
        if output.contains("publisher") {
            Ok(())
        } else {
            Err(output)
        }
    });
    process.signal(Signal::SIGTERM);
    let code = process.exit_code(Duration::from_secs(60));
    let output = process.output();
    assert_eq!(code, Some(1), "{output}");
    assert!(
        output.contains("did not end and are left: ") && output.contains("creator"),
        "{output}"
    );
}

#[test]
fn a_port_that_is_taken_is_told_with_its_option() {
    for of in PROGRAMS {
        let Some((mut installation, _server)) = installation(of) else {
            return;
        };
        let taken = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = taken.local_addr().expect("an address").port().to_string();
        let options: &[(&str, &str)] = match of {
            ("updraft-api-server", _) | (_, ["standalone"]) => &[
                ("AIRFLOW__API__PORT", "[api] port"),
                ("AIRFLOW__UPDRAFT__GRPC_PORT", "[updraft] grpc_port"),
            ],
            _ => &[("AIRFLOW__UPDRAFT__METRICS_PORT", "metrics_port")],
        };
        for (variable, option) in options {
            let before = installation.environment().get(*variable).cloned();
            installation.set(variable, &port);
            let mut process = installation.start(of.0, of.1, &[]);
            let code = process.exit_code(END);
            let output = process.output();
            assert_eq!(code, Some(1), "{of:?}: {output}");
            assert!(output.contains(option) && output.contains(&port), "{output}");
            match before {
                Some(before) => installation.set(variable, &before),
                None => installation.unset(variable),
            }
        }
    }
}

#[test]
fn arguments_that_are_not_understood_are_errors() {
    let Some(python) = python() else { return };
    let installation = Installation::new(&python);
    for (program, arguments) in [
        ("updraft-scheduler", vec!["--nonsense"]),
        ("updraft-worker", vec!["--port", "3"]),
        ("updraft-dag-processor", vec!["--nonsense"]),
        ("updraft-api-server", vec!["nonsense"]),
        ("updraft", vec!["scheduler", "--nonsense"]),
        ("updraft", vec!["nonsense"]),
    ] {
        let mut process = installation.start(program, &arguments, &[]);
        let code = process.exit_code(END);
        let output = process.output();
        assert_eq!(code, Some(2), "{program} {arguments:?}: {output}");
        assert!(
            output.contains(arguments[arguments.len() - 1]) || output.contains(arguments[0]),
            "{output}"
        );
    }
}

#[test]
fn a_component_waits_for_its_database_until_it_is_told_to_stop() {
    let Some(python) = python() else { return };
    let mut installation = Installation::new(&python);
    installation.set(
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
        "mysql+pymysql://nobody:nothing@127.0.0.1:1/none",
    );
    for program in ["updraft-scheduler", "updraft-dag-processor", "updraft-api-server"] {
        let mut process = installation.start(program, &[], &[]);
        eventually("it waits", START, || {
            let output = process.output();
            if output.contains("waiting for the database") {
                Ok(())
            } else {
                Err(output)
            }
        });
        assert!(process.is_running(), "{}", process.output());
        process.signal(Signal::SIGTERM);
        assert_eq!(process.exit_code(END), Some(0), "{}", process.output());
    }
}
