//! Pauses between attempts: each is longer than the one before, up to a longest one, and partly random, so that those who
//! lost a server at the same moment do not all come back at the same moment.
//!
//! Pauses are slept by tokio's clock, and the random part is drawn from dice that can be replaced: tests decide both.

use std::time::Duration;

/// The smallest part of a pause that is taken.
const LEAST: f64 = 0.5;

/// What the random part of a pause is drawn from: a number from 0 to 1.
pub type Dice = fn() -> f64;

/// Pauses between attempts.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    growth: u32,
    next: Duration,
    dice: Dice,
}

impl Backoff {
    /// Pauses from `first` on, each twice as long as the one before, none longer than `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            growth: 2,
            next: first.min(longest),
            dice: rand::random::<f64>,
        }
    }

    /// The same, where each pause is `growth` times as long as the one before.
    #[must_use]
    pub fn growing_by(self, growth: u32) -> Self {
        Self { growth, ..self }
    }

    /// The same, with these dice.
    #[must_use]
    pub fn with_dice(self, dice: Dice) -> Self {
        Self { dice, ..self }
    }

    /// The next pause: at least half of its full length.
    pub fn next_pause(&mut self) -> Duration {
        let full = self.next;
        self.next = full.saturating_mul(self.growth).min(self.longest);
        let part = LEAST + (1.0 - LEAST) * (self.dice)().clamp(0.0, 1.0);
        full.mul_f64(part)
    }

    /// Sleeps for the next pause.
    pub async fn pause(&mut self) {
        let pause = self.next_pause();
        tokio::time::sleep(pause).await;
    }

    /// An attempt succeeded: pauses begin with the first one again.
    pub fn reset(&mut self) {
        self.next = self.first.min(self.longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole() -> f64 {
        1.0
    }

    fn half() -> f64 {
        0.0
    }

    fn of(first: u64, longest: u64) -> Backoff {
        Backoff::new(Duration::from_millis(first), Duration::from_millis(longest))
    }

    fn pauses(mut backoff: Backoff, count: usize) -> Vec<u64> {
        let pause = |_| u64::try_from(backoff.next_pause().as_millis()).unwrap();
        (0..count).map(pause).collect()
    }

    #[test]
    fn pauses_grow_up_to_the_longest_and_begin_anew_after_a_success() {
        assert_eq!(pauses(of(50, 300).with_dice(whole), 5), [50, 100, 200, 300, 300]);
        assert_eq!(pauses(of(50, 300).with_dice(half), 4), [25, 50, 100, 150]);
        let fast = of(10, 1000).growing_by(4).with_dice(whole);
        assert_eq!(pauses(fast, 5), [10, 40, 160, 640, 1000]);
        let mut backoff = of(50, 300).with_dice(whole);
        backoff.next_pause();
        backoff.reset();
        assert_eq!(backoff.next_pause(), Duration::from_millis(50));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_slept_by_tokios_clock() {
        let begin = tokio::time::Instant::now();
        of(60_000, 60_000).with_dice(whole).pause().await;
        assert_eq!(begin.elapsed(), Duration::from_secs(60));
    }

    proptest! {
        #[test]
        fn no_pause_is_shorter_than_half_or_longer_than_the_longest(
            first in 1u64..10_000, longest in 1u64..1_000_000, growth in 1u32..10,
        ) {
            let mut backoff = of(first, longest).growing_by(growth);
            let mut full = first.min(longest);
            for _ in 0..20 {
                let pause = backoff.next_pause();
                prop_assert!(pause >= Duration::from_millis(full) / 2);
                prop_assert!(pause <= Duration::from_millis(full));
                full = (full * u64::from(growth)).min(longest);
            }
        }
    }
}
