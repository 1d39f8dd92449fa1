//! Two minutes of `cargo xtask chaos`, with a seed of the time: what breaks in it is replayed by its seed.
//!
//! MariaDB and RabbitMQ are among what is killed and stopped, and everything beside it would lose them too, so this is a
//! test program of its own with one test.

use harness::chaos::{Amount, KINDS, Plan, run};
use harness::{mariadb_url, python, rabbitmq_url};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// For how long faults are begun.
const LENGTH: Duration = Duration::from_secs(75);
const AMOUNT: Amount = Amount { runs: 20, pace: 20 };
const LEASE: Duration = Duration::from_secs(16);

/// `UPDRAFT_TEST_SEED`, or the time.
fn seed() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    let chosen = std::env::var("UPDRAFT_TEST_SEED").ok();
    chosen.map_or(now, |seed| seed.parse().expect("UPDRAFT_TEST_SEED is a number"))
}

#[test]
fn no_invariant_breaks_under_faults_drawn_from_a_seed() {
    let (Some(_), Some(_), Some(_)) = (python(), mariadb_url(), rabbitmq_url()) else {
        return;
    };
    let seed = seed();
    let plan = Plan {
        seed,
        length: LENGTH,
        amount: AMOUNT,
        lease: LEASE,
        kinds: KINDS.iter().collect(),
        replay: format!("UPDRAFT_TEST_SEED={seed} cargo xtask test --quick --test chaos"),
        keep: false,
    };
    let report = run(&plan, &|text| println!("{text}")).expect("a campaign");
    let broken: Vec<_> = report.all_broken().collect();
    assert!(
        broken.is_empty(),
        "{broken:#?}\n{}\n{}",
        report.table(),
        plan.replay
    );
    let began = report.happened.iter().filter(|one| one.skipped.is_none()).count();
    assert!(began >= 3 && report.figures["runs"] >= 20, "{}", report.table());
}
