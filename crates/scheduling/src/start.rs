//! Which queued runs may start.

use model::DagRunKey;

/// A run that waits to start, in the order in which runs of its DAG start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueuedRun {
    /// The run.
    pub key: DagRunKey,
}

/// The first of `queued` that fit under `limit` beside `running` ones.
pub fn choose_runs_to_start(queued: &[QueuedRun], running: u32, limit: u32) -> Vec<DagRunKey> {
    let places = limit.saturating_sub(running) as usize;
    queued.iter().take(places).map(|run| run.key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_start_in_order_up_to_the_limit() {
        let queued: Vec<_> = (1..=3).map(|n| QueuedRun { key: DagRunKey(n) }).collect();
        assert_eq!(choose_runs_to_start(&queued, 1, 3), [DagRunKey(1), DagRunKey(2)]);
        assert!(choose_runs_to_start(&queued, 5, 3).is_empty());
    }
}
