//! Asks for the lists of a large store with many clients at once: `cargo xtask bench lists`.

use anyhow::Context;
use clap::Parser;
use harness::lists::{Answers, KINDS, Kind, Pace, Store, drive, fill, path};
use harness::program::say;
use harness::{Installation, mariadb_database, mariadb_query, mariadb_url};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Fills a store and has clients ask for its lists.
#[derive(Parser)]
struct Arguments {
    /// Runs in the store
    #[arg(long, default_value_t = 50_000)]
    runs: u64,
    /// Task instances of each run
    #[arg(long, default_value_t = 20)]
    tasks: u64,
    /// Clients, each of which asks again as soon as it has its answer
    #[arg(long, default_value_t = 200)]
    clients: u64,
    /// How long they ask
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// On MariaDB instead of SQLite (`UPDRAFT_TEST_MARIADB` says where it is)
    #[arg(long)]
    mariadb: bool,
    /// A SQLite file that is filled if it is not there, and kept; by default a new one that is deleted
    #[arg(long)]
    file: Option<PathBuf>,
    /// A database of MariaDB by its URL, filled and kept likewise
    #[arg(long)]
    url: Option<String>,
    /// An API server of another build
    #[arg(long)]
    server: Option<PathBuf>,
    /// Only questions of this kind
    #[arg(long)]
    only: Option<String>,
}

fn share(sorted: &[Duration], of_hundred: usize) -> Duration {
    let at = (sorted.len() * of_hundred / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

/// Prints one line about these answers; how many of them are errors, and what 99 of 100 took at most.
fn report(name: &str, answers: impl Iterator<Item = (u16, Duration)>) -> (usize, Duration) {
    let (mut times, mut errors) = (Vec::new(), std::collections::BTreeMap::<u16, usize>::new());
    for (status, time) in answers {
        times.push(time);
        if status != 200 {
            *errors.entry(status).or_default() += 1;
        }
    }
    times.sort_unstable();
    let milliseconds = |share: Duration| share.as_micros() / 1000;
    let p99 = share(&times, 99);
    say(&format!(
        "{name:14} {:7} answers {:5} errors   p50 {:6} ms   p99 {:6} ms   longest {:6} ms  {}",
        times.len(),
        errors.values().sum::<usize>(),
        milliseconds(share(&times, 50)),
        milliseconds(p99),
        milliseconds(times.last().copied().unwrap_or_default()),
        errors
            .iter()
            .map(|(status, count)| format!("{status} x {count} "))
            .collect::<String>(),
    ));
    (errors.values().sum(), p99)
}

/// A store of that size, by its URL.
fn store(arguments: &Arguments, installation: &mut Installation) -> anyhow::Result<String> {
    let (url, is_new) = match (&arguments.url, &arguments.file) {
        (Some(url), _) => {
            let sql = "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE()";
            (url.clone(), mariadb_query(url, sql).trim() == "0")
        }
        (None, _) if arguments.mariadb => (mariadb_database().context("there is no MariaDB")?, true),
        (None, Some(file)) => {
            let file = std::path::absolute(file)?;
            (format!("sqlite:///{}", file.display()), !file.exists())
        }
        (None, None) => {
            let file = installation.path().join("airflow.db");
            (format!("sqlite:///{}", file.display()), true)
        }
    };
    installation.set("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", &url);
    let (done, output) = installation.run("updraft", &["db", "migrate"]);
    anyhow::ensure!(done, "db migrate: {output}");
    if is_new {
        let begin = Instant::now();
        let number = |n: u64| i64::try_from(n).context("too many");
        fill(&url, number(arguments.runs)?, number(arguments.tasks)?)?;
        if url.starts_with("mysql") {
            mariadb_query(&url, "ANALYZE TABLE task_instance, dag_run");
        }
        say(&format!("filled in {} s", begin.elapsed().as_secs()));
    }
    Ok(url)
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut installation = Installation::new("python3");
    let url = store(&arguments, &mut installation)?;
    if let Some(mariadb) = mariadb_url().filter(|_| url.starts_with("mysql")) {
        // As much memory as a server of this size has; the test server has little.
        mariadb_query(&mariadb, "SET GLOBAL innodb_buffer_pool_size = 2147483648");
    }
    let program = match &arguments.server {
        Some(path) => std::path::absolute(path)?.to_string_lossy().into_owned(),
        None => "updraft-api-server".to_owned(),
    };
    let server = installation.start(&program, &[], &[]);
    let api = installation.api();
    let store = Store {
        runs: arguments.runs,
        tasks: arguments.tasks,
    };
    let only = arguments.only.as_deref();
    let kinds: Vec<(Kind, u64)> = KINDS
        .into_iter()
        .filter(|(kind, _)| only.is_none_or(|only| format!("{kind:?}") == only))
        .collect();
    anyhow::ensure!(!kinds.is_empty(), "there is no such kind");
    let weights: u64 = kinds.iter().map(|(_, weight)| weight).sum();
    let small = [
        "/api/v2/monitor/health",
        "/api/v2/dags/filled_1",
        "/api/v2/dags/filled_1/dagRuns/filled__1",
        "/api/v2/variables?limit=5",
    ];
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    let to = (installation.port, api.token());
    let (lists, probes) = std::thread::scope(|scope| {
        let lists = scope.spawn(|| {
            drive(to, arguments.clients, (end, Pace::AtOnce), |random| {
                let mut at = random(weights);
                let chosen = kinds.iter().position(|(_, weight)| {
                    let found = at < *weight;
                    at = at.saturating_sub(*weight);
                    found
                });
                let chosen = chosen.unwrap_or(0);
                (chosen, path(kinds[chosen].0, store, random))
            })
        });
        let pace = Pace::Pause(Duration::from_millis(50));
        let probes = drive(to, 4, (end, pace), |random| {
            let at = usize::try_from(random(small.len() as u64)).unwrap_or(0);
            (at, small[at].to_owned())
        });
        (lists.join().unwrap_or_default(), probes)
    });
    let of = |answers: &Answers, kind: usize| -> Vec<(u16, Duration)> {
        let these = answers.iter().filter(|taken| taken.kind == kind);
        these.map(|taken| (taken.status, taken.time)).collect()
    };
    for (at, (kind, _)) in kinds.iter().enumerate() {
        report(&format!("{kind:?}"), of(&lists, at).into_iter());
    }
    let all = report("all lists", lists.iter().map(|taken| (taken.status, taken.time)));
    for (at, path) in small.iter().enumerate() {
        let name = path.rsplit('/').next().unwrap_or(path);
        report(name, of(&probes, at).into_iter());
    }
    let beside = report(
        "all others",
        probes.iter().map(|taken| (taken.status, taken.time)),
    );
    let (_, metrics) = api.raw("GET", "/metrics", "", "text/plain")?;
    for line in metrics.lines().filter(|line| {
        line.starts_with("updraft_store_statements_total")
            || line.starts_with("updraft_api_list_wait_seconds_")
    }) {
        say(line);
    }
    say(&format!(
        "the server used {:.1} s of a core",
        server.cpu_seconds()
    ));
    drop(server);
    anyhow::ensure!(all.0 + beside.0 == 0, "there were errors");
    anyhow::ensure!(
        all.1 < Duration::from_secs(1),
        "one list in a hundred took longer than a second"
    );
    Ok(())
}
