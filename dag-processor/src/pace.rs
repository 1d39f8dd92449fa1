//! How long a file is left alone.

use std::time::{Duration, Instant};

/// First wait of a file that could not be imported.
const RETRY: Duration = Duration::from_secs(5);
/// Longest wait of a file that could not be imported.
const RETRY_MOST: Duration = Duration::from_secs(300);
/// Waits are at least so many times as long as the parse was.
const RETRY_SHARE: f64 = 4.0;
/// Time after which a file that did not change is parsed again, for what nobody can see: the clock, a service, a command.
pub(crate) const IDLE: Duration = Duration::from_secs(600);
/// Parses of files that did not change have so many times their own length between them.
pub(crate) const IDLE_SHARE: f64 = 20.0;
/// Parses with less than this between them follow one another quickly.
const QUICK: Duration = Duration::from_secs(10);
/// So many quick parses are free.
const FREE: u32 = 5;
/// Longest wait of a file whose dependencies do not come to rest.
const RESTLESS_MOST: Duration = Duration::from_secs(60);

/// How long a file waits that failed so many times in a row, the last time after so many seconds.
pub(crate) fn retry(failures: u32, seconds: f64) -> Duration {
    let doubled = RETRY.saturating_mul(1 << failures.saturating_sub(1).min(10));
    let share = Duration::try_from_secs_f64(seconds * RETRY_SHARE).unwrap_or(RETRY_MOST);
    doubled.max(share).min(RETRY_MOST)
}

/// Keeps a file from being parsed without an end because each parse changes what it depends on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rest {
    ended: Option<Instant>,
    quick: u32,
}

impl Rest {
    /// The file was parsed.
    pub(crate) fn parsed(&mut self, now: Instant) {
        let is_quick = self
            .ended
            .is_some_and(|ended| now.duration_since(ended) < QUICK + self.wait());
        self.quick = if is_quick { self.quick + 1 } else { 0 };
        self.ended = Some(now);
    }

    /// When it may be parsed again because of something else than itself.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.ended.map(|ended| ended + self.wait())
    }

    fn wait(&self) -> Duration {
        match self.quick.checked_sub(FREE) {
            None => Duration::ZERO,
            Some(over) => Duration::from_secs(1 << over.min(6)).min(RESTLESS_MOST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_from_five_seconds_to_five_minutes() {
        let waits: Vec<u64> = (1..9).map(|failures| retry(failures, 0.1).as_secs()).collect();
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(retry(1, 50.0).as_secs(), 200);
        assert_eq!(retry(u32::MAX, f64::NAN).as_secs(), 300);
    }

    #[test]
    fn a_file_that_changes_what_it_reads_is_slowed_down_and_a_person_is_not() {
        let (mut rest, begin) = (Rest::default(), Instant::now());
        let mut now = begin;
        for _ in 0..40 {
            now = rest.until().map_or(now, |until| until.max(now)) + Duration::from_millis(200);
            rest.parsed(now);
        }
        assert!(now.duration_since(begin) > Duration::from_secs(1_000));
        let mut person = Rest::default();
        for _ in 0..40 {
            now += Duration::from_secs(11);
            person.parsed(now);
            assert!(person.until() <= Some(now));
        }
    }
}
