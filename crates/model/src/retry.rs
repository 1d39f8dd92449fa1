//! When a failed task instance may be tried again.

use crate::dag::RetryPolicy;
use crate::time::Timestamp;
use crate::{DagId, TaskId, TryNumber};
use chrono::{DateTime, Duration, Timelike, Utc};
use sha2::{Digest, Sha256};

/// What the back-off's jitter is drawn from.
#[derive(Debug, Clone, Copy)]
pub struct RetryOf<'a> {
    /// The DAG.
    pub dag_id: &'a DagId,
    /// The task.
    pub task_id: &'a TaskId,
    /// Logical date of the run, where it has one.
    pub logical_date: Option<Timestamp>,
    /// The try that failed.
    pub failed_try: TryNumber,
    /// Bounds exponential growth (`[core] max_task_retry_delay`).
    pub longest: std::time::Duration,
}

/// Earliest start of the try after the one that ended at `ended`. `asked` is the delay that the task itself asked for.
///
/// Follows `TaskInstance.next_retry_datetime`: constant delay, or exponential growth with a jitter that is the same
/// whenever it is computed for the same try. (The jitter is drawn from another hash than Airflow's, within the same bounds.)
pub fn next_retry(
    policy: &RetryPolicy,
    of: RetryOf<'_>,
    ended: Timestamp,
    asked: Option<Duration>,
) -> Timestamp {
    let delay = asked.unwrap_or_else(|| backoff(policy, of));
    ended.checked_add_signed(delay).unwrap_or(ended)
}

fn backoff(policy: &RetryPolicy, of: RetryOf<'_>) -> Duration {
    let multiplier = policy.backoff_multiplier;
    if multiplier <= 0.0 || (multiplier - 1.0).abs() < f64::EPSILON {
        return policy.delay;
    }
    let exponent = i32::try_from(of.failed_try.0.saturating_sub(1)).unwrap_or(i32::MAX);
    let seconds = policy.delay.as_seconds_f64() * multiplier.powi(exponent);
    let longest = of.longest.as_secs_f64().max(1.0);
    let least = seconds.ceil().clamp(1.0, longest);
    let jittered = (least + least * jitter(of)).min(longest);
    let delay = Duration::milliseconds((jittered * 1000.0) as i64);
    policy.max_delay.map_or(delay, |max| delay.min(max))
}

/// A number from 0 up to 1, always the same for the same try.
fn jitter(of: RetryOf<'_>) -> f64 {
    let date = of.logical_date.map_or_else(|| "None".to_owned(), python_str);
    let text = format!("{}#{}#{date}#{}", of.dag_id, of.task_id, of.failed_try);
    let digest = Sha256::digest(text.as_bytes());
    let head = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    f64::from(head) / (f64::from(u32::MAX) + 1.0)
}

/// Python's `str()` of an aware UTC datetime.
fn python_str(at: DateTime<Utc>) -> String {
    if at.nanosecond() / 1000 == 0 {
        at.format("%Y-%m-%d %H:%M:%S+00:00").to_string()
    } else {
        at.format("%Y-%m-%d %H:%M:%S%.6f+00:00").to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(policy: &RetryPolicy, failed_try: u32) -> f64 {
        let (dag_id, task_id) = (DagId::from("d"), TaskId::from("t"));
        let of = RetryOf {
            dag_id: &dag_id,
            task_id: &task_id,
            logical_date: None,
            failed_try: TryNumber(failed_try),
            longest: std::time::Duration::from_secs(3600),
        };
        let ended = DateTime::UNIX_EPOCH;
        (next_retry(policy, of, ended, None) - ended).as_seconds_f64()
    }

    #[test]
    fn a_constant_delay_stays_constant() {
        let policy = RetryPolicy {
            delay: Duration::seconds(300),
            backoff_multiplier: 0.0,
            max_delay: None,
        };
        assert!((at(&policy, 1) - 300.0).abs() < 1e-9);
        assert!((at(&policy, 5) - 300.0).abs() < 1e-9);
    }

    #[test]
    fn exponential_delays_double_within_their_jitter_and_stop_at_the_maximum() {
        let policy = RetryPolicy {
            delay: Duration::seconds(10),
            backoff_multiplier: 2.0,
            max_delay: Some(Duration::seconds(60)),
        };
        assert!((10.0..20.0).contains(&at(&policy, 1)));
        assert!((20.0..40.0).contains(&at(&policy, 2)));
        assert!((at(&policy, 9) - 60.0).abs() < 1e-9);
        assert!((at(&policy, 40) - 60.0).abs() < 1e-9);
        let boundless = RetryPolicy {
            max_delay: None,
            ..policy
        };
        assert!((at(&boundless, 40) - 3600.0).abs() < 1e-9);
    }
}
