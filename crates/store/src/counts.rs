//! How many entries a list has, where counting takes long.

use crate::StoreError;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A list that is counted faster than this is counted anew each time.
const QUICK: Duration = Duration::from_millis(50);
/// A count is good for so many times the time that it took.
const FACTOR: u32 = 40;
/// No count is good for longer.
const LONGEST: Duration = Duration::from_secs(40);
/// For so long after that it is still given to those who come while it is counted anew.
const OVERLAP: Duration = Duration::from_secs(20);
/// Lists whose counts are kept.
const MOST: usize = 1000;

#[derive(Debug, Clone, Copy)]
struct Count {
    total: i64,
    good_until: Instant,
}

/// One list's count, and the right to count it.
#[derive(Debug, Default)]
struct Slot {
    counting: tokio::sync::Mutex<()>,
    known: Mutex<Option<Count>>,
}

impl Slot {
    fn known(&self) -> Option<Count> {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The count, if it was good at least until `moment`.
    fn good_at(&self, moment: Instant) -> Option<i64> {
        self.known()
            .filter(|known| moment < known.good_until)
            .map(|known| known.total)
    }
}

/// Counts of large lists, each good for a while. Those who want the same count at the same time have it counted once.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    slots: Mutex<HashMap<String, Arc<Slot>>>,
}

impl Counts {
    fn slot(&self, key: String) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= MOST && !slots.contains_key(&key) {
            slots.clear();
        }
        slots.entry(key).or_default().clone()
    }

    /// The count of the list with this key: one that is still good, or what `count` says.
    pub(crate) async fn get(
        &self,
        key: String,
        count: impl AsyncFnOnce() -> Result<i64, StoreError>,
    ) -> Result<i64, StoreError> {
        let slot = self.slot(key);
        if let Some(total) = slot.good_at(Instant::now()) {
            return Ok(total);
        }
        let _counting = match slot.counting.try_lock() {
            Ok(counting) => counting,
            Err(_) => {
                if let Some(old) = Instant::now()
                    .checked_sub(OVERLAP)
                    .and_then(|then| slot.good_at(then))
                {
                    return Ok(old);
                }
                slot.counting.lock().await
            }
        };
        if let Some(total) = slot.good_at(Instant::now()) {
            return Ok(total);
        }
        let begin = Instant::now();
        let total = count().await?;
        let took = begin.elapsed();
        let count = (took >= QUICK).then(|| Count {
            total,
            good_until: Instant::now() + (took * FACTOR).min(LONGEST),
        });
        *slot.known.lock().unwrap_or_else(PoisonError::into_inner) = count;
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_counts_that_took_long_are_kept() {
        let counts = Counts::default();
        for total in [1, 2] {
            let quick = counts.get("quick".to_owned(), async || Ok(total)).await;
            assert_eq!(quick.expect("a count"), total);
        }
        for total in [3, 4] {
            let slow = async || {
                tokio::time::sleep(QUICK).await;
                Ok(total)
            };
            assert_eq!(counts.get("slow".to_owned(), slow).await.expect("a count"), 3);
        }
    }
}
