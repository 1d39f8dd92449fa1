//! Which scheduled task instances go to the broker now.

use model::{DagRunKey, PoolName, TaskInstanceId};
use std::collections::{BTreeSet, HashMap};

/// A task instance that waits for a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The task instance.
    pub id: TaskInstanceId,
    /// Pool that it takes slots from.
    pub pool: PoolName,
    /// How many slots it takes.
    pub slots: i64,
    /// Its run.
    pub run: DagRunKey,
}

/// Who gets slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// These, in their order.
    pub chosen: Vec<TaskInstanceId>,
    /// Runs of which one was turned away because as many run as `max_active_tasks` allows: others may have its slots.
    pub full: BTreeSet<DagRunKey>,
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

/// Takes candidates in their given order as long as their pools, their runs and `capacity` (task instances) allow. One that
/// needs more slots than its pool has open lets smaller ones pass, as in Airflow. `rooms` has how many more of a run may
/// have slots, where that is a limit.
pub fn choose_for_slots(
    candidates: &[Candidate],
    pools: &HashMap<PoolName, PoolUse>,
    rooms: &HashMap<DagRunKey, u32>,
    capacity: usize,
) -> Choice {
    let mut open: HashMap<&PoolName, i64> = pools.iter().map(|(name, pool)| (name, pool.open())).collect();
    let mut rooms = rooms.clone();
    let mut choice = Choice::default();
    for candidate in candidates {
        if choice.chosen.len() == capacity {
            break;
        }
        let Some(open) = open.get_mut(&candidate.pool) else {
            continue;
        };
        if candidate.slots > *open {
            continue;
        }
        match rooms.get_mut(&candidate.run) {
            Some(0) => {
                choice.full.insert(candidate.run);
                continue;
            }
            Some(room) => *room -= 1,
            None => {}
        }
        *open -= candidate.slots;
        choice.chosen.push(candidate.id);
    }
    choice
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
            run: DagRunKey(1),
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
        let choice = choose_for_slots(&list, &pools(&[("p", 4, 2)]), &HashMap::new(), 10);
        assert_eq!(choice.chosen, [list[1].id, list[2].id]);
        assert!(choice.full.is_empty());
    }

    #[test]
    fn a_pool_without_limit_is_bounded_by_capacity_only() {
        let list: Vec<_> = (0..5).map(|n| candidate(n, "p", 1)).collect();
        let choice = choose_for_slots(&list, &pools(&[("p", -1, 99)]), &HashMap::new(), 3);
        assert_eq!(choice.chosen.len(), 3);
    }

    #[test]
    fn a_full_run_leaves_its_slots_to_others() {
        let mut list: Vec<_> = (0..5).map(|n| candidate(n, "p", 1)).collect();
        list[4].run = DagRunKey(2);
        let rooms = HashMap::from([(DagRunKey(1), 2)]);
        let choice = choose_for_slots(&list, &pools(&[("p", 8, 0)]), &rooms, 10);
        assert_eq!(choice.chosen, [list[0].id, list[1].id, list[4].id]);
        assert_eq!(choice.full, BTreeSet::from([DagRunKey(1)]));
    }

    proptest! {
        #[test]
        fn no_pool_and_no_run_is_ever_overfull(
            total in 0i64..8, used in 0i64..10, capacity in 0usize..10, room in 0u32..6,
            sizes in prop::collection::vec((1i64..4, 1i64..3), 0..20),
        ) {
            let of = |(n, (slots, run)): (usize, &(i64, i64))| Candidate { run: DagRunKey(*run), ..candidate(n as u128, "p", *slots) };
            let list: Vec<_> = sizes.iter().enumerate().map(of).collect();
            let rooms = HashMap::from([(DagRunKey(1), room)]);
            let chosen = choose_for_slots(&list, &pools(&[("p", total, used)]), &rooms, capacity).chosen;
            let taken: Vec<&Candidate> = list.iter().filter(|c| chosen.contains(&c.id)).collect();
            let slots: i64 = taken.iter().map(|c| c.slots).sum();
            prop_assert!(slots == 0 || used + slots <= total);
            prop_assert!(taken.iter().filter(|c| c.run == DagRunKey(1)).count() <= room as usize);
            prop_assert!(chosen.len() <= capacity);
        }
    }
}
