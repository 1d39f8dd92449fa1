//! RabbitMQ and MariaDB killed under a working cluster.
//!
//! Everything beside it would lose them too, so this is a test program of its own, and what it kills one after the other
//! is one test.

use harness::{Cluster, Service};

#[test]
fn no_run_is_lost_with_the_broker_or_the_database() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    for service in [Service::RabbitMq, Service::MariaDb] {
        let name = format!("{service:?}").to_lowercase();
        let runs = cluster.trigger_runs(&name);
        cluster.in_flight(&name);
        let killed = service.kill();
        drop(killed);
        cluster.all_end_well(&runs);
        cluster.check_witness(&name);
        for (role, process) in &mut cluster.processes {
            assert!(
                process.is_running(),
                "{role} left with {name}: {}",
                process.output()
            );
        }
    }
}
