//! Which scheduled task instances go to the broker now.

use model::{PoolName, TaskInstanceId};
use std::collections::HashMap;

/// A task instance that waits for a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The task instance.
    pub id: TaskInstanceId,
    /// Pool that it takes slots from.
    pub pool: PoolName,
    /// How many slots it takes.
    pub slots: i64,
}

/// How full a pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolUse {
    /// All its slots; -1 for no limit.
    pub total: i64,
    /// Slots held by queued and running task instances (deferred ones too, where the pool says so).
    pub used: i64,
}

impl PoolUse {
    /// Slots that are free.
    pub const fn open(&self) -> i64 {
        if self.total < 0 {
            i64::MAX
        } else {
            self.total - self.used
        }
    }
}

/// Takes candidates in their given order as long as their pools and `capacity` (task instances) allow. One that needs
/// more slots than its pool has open lets smaller ones pass, as in Airflow.
pub fn choose_for_slots(
    candidates: &[Candidate],
    pools: &HashMap<PoolName, PoolUse>,
    capacity: usize,
) -> Vec<TaskInstanceId> {
    let mut open: HashMap<&PoolName, i64> = pools.iter().map(|(name, pool)| (name, pool.open())).collect();
    let mut chosen = Vec::new();
    for candidate in candidates {
        if chosen.len() == capacity {
            break;
        }
        let Some(open) = open.get_mut(&candidate.pool) else {
            continue;
        };
        if candidate.slots <= *open {
            *open -= candidate.slots;
            chosen.push(candidate.id);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn candidate(n: u128, pool: &str, slots: i64) -> Candidate {
        Candidate {
            id: TaskInstanceId::new(Uuid::from_u128(n)),
            pool: PoolName::from(pool),
            slots,
        }
    }

    fn pools(entries: &[(&str, i64, i64)]) -> HashMap<PoolName, PoolUse> {
        entries
            .iter()
            .map(|(name, total, used)| {
                (
                    PoolName::from(*name),
                    PoolUse {
                        total: *total,
                        used: *used,
                    },
                )
            })
            .collect()
    }

    #[test]
    fn order_is_kept_and_a_big_one_lets_smaller_ones_pass() {
        let list = [
            candidate(1, "p", 3),
            candidate(2, "p", 1),
            candidate(3, "p", 1),
            candidate(4, "gone", 1),
        ];
        let chosen = choose_for_slots(&list, &pools(&[("p", 4, 2)]), 10);
        assert_eq!(chosen, [list[1].id, list[2].id]);
    }

    #[test]
    fn a_pool_without_limit_is_bounded_by_capacity_only() {
        let list: Vec<_> = (0..5).map(|n| candidate(n, "p", 1)).collect();
        assert_eq!(choose_for_slots(&list, &pools(&[("p", -1, 99)]), 3).len(), 3);
    }

    proptest! {
        #[test]
        fn no_pool_is_ever_overfull(
            total in 0i64..8, used in 0i64..10, capacity in 0usize..10, sizes in prop::collection::vec(1i64..4, 0..20),
        ) {
            let list: Vec<_> = sizes.iter().enumerate().map(|(n, s)| candidate(n as u128, "p", *s)).collect();
            let chosen = choose_for_slots(&list, &pools(&[("p", total, used)]), capacity);
            let taken: i64 = list.iter().filter(|c| chosen.contains(&c.id)).map(|c| c.slots).sum();
            prop_assert!(taken == 0 || used + taken <= total);
            prop_assert!(chosen.len() <= capacity);
        }
    }
}
