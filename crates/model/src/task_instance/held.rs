//! Claims as the database has them beside claims as their worker names them.
//!
//! A claim is committed first and heard of after, so its answer can be lost on the way: then the database has a claim that
//! no worker knows of. A worker names in each heartbeat what it holds and what it has asked for. It notes that it asks
//! before it asks, and goes from *asked* to *held* in one step, so every heartbeat that begins after the question names
//! the claim one way or the other until its try is over. What such heartbeats do not name, nobody runs.

use crate::{ClaimEpoch, TaskInstanceId};
use std::collections::HashSet;

/// Number of a heartbeat within the life of its worker, from 1 on. 0 is before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct BeatNumber(pub i64);

/// What a heartbeat names.
#[derive(Debug, Clone, Default)]
pub struct NamedClaims {
    /// Which heartbeat; 0 when its worker does not count them.
    pub number: BeatNumber,
    /// Claims that the worker has heard of.
    pub held: HashSet<(TaskInstanceId, ClaimEpoch)>,
    /// Ids of claims that it has asked for and not heard of.
    pub asked: HashSet<String>,
}

/// A claim as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldClaim {
    /// The task instance.
    pub id: TaskInstanceId,
    /// The claim.
    pub epoch: ClaimEpoch,
    /// What the worker calls it until it has heard the epoch.
    pub claim_id: Option<String>,
    /// The last heartbeat that began before the worker noted that it asks for the claim.
    pub asked_after: BeatNumber,
    /// The first of the heartbeats in a row that did not name it.
    pub unnamed_since: Option<BeatNumber>,
}

/// What a heartbeat says about a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// Nothing new: it is named, or the heartbeat began too early to name it.
    Nothing,
    /// It is named again; earlier heartbeats that did not name it do not count any more.
    Named,
    /// It is not named, for the first time.
    Unnamed,
    /// A second heartbeat in a row does not name it: its worker never heard of it.
    Unknown,
}

impl HeldClaim {
    /// Compares the claim with what its worker names. Comparing with the same heartbeat again finds the same or nothing.
    pub fn compare(&self, named: &NamedClaims) -> Finding {
        if named.number == BeatNumber(0) || named.number <= self.asked_after {
            return Finding::Nothing;
        }
        let is_asked = self.claim_id.as_ref().is_some_and(|id| named.asked.contains(id));
        if is_asked || named.held.contains(&(self.id, self.epoch)) {
            return match self.unnamed_since {
                Some(_) => Finding::Named,
                None => Finding::Nothing,
            };
        }
        match self.unnamed_since {
            None => Finding::Unnamed,
            Some(first) if named.number > first => Finding::Unknown,
            Some(_) => Finding::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::collections::hash_map::Entry;
    use uuid::Uuid;

    fn task(n: usize) -> TaskInstanceId {
        TaskInstanceId::new(Uuid::from_u128(n as u128 + 1))
    }

    /// What the worker has of a claim.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Know {
        Asks,
        Runs,
        /// It gave up asking, or the try is over and reported.
        Nothing,
    }

    /// A worker, a server, and messages between them that are late, lost, doubled and out of order.
    #[derive(Default)]
    struct World {
        beat: i64,
        know: HashMap<usize, Know>,
        asked_after: HashMap<usize, i64>,
        /// Claims that the database has, by task.
        database: HashMap<usize, HeldClaim>,
        last_beat: i64,
        /// Questions and answers and heartbeats under way.
        questions: Vec<usize>,
        answers: Vec<usize>,
        beats: Vec<NamedClaims>,
        lost_while_run: Vec<usize>,
        /// How many heartbeats in a row arrived since the worker knew nothing of a claim that the database has.
        stuck: HashMap<usize, u32>,
    }

    impl World {
        fn ask(&mut self, n: usize) {
            if let Entry::Vacant(new) = self.know.entry(n) {
                new.insert(Know::Asks);
                self.asked_after.insert(n, self.beat);
                self.questions.push(n);
            }
        }

        fn repeat_question(&mut self, n: usize) {
            if self.know.get(&n) == Some(&Know::Asks) {
                self.questions.push(n);
            }
        }

        fn commit(&mut self, which: usize) {
            if self.questions.is_empty() {
                return;
            }
            let n = self.questions.remove(which % self.questions.len());
            let claim = HeldClaim {
                id: task(n),
                epoch: ClaimEpoch(1),
                claim_id: Some(format!("claim {n}")),
                asked_after: BeatNumber(self.asked_after[&n]),
                unnamed_since: None,
            };
            // One that ended already is not claimed by a question that comes late: it is not queued any more.
            let ended = self.know[&n] == Know::Nothing && self.stuck.contains_key(&n);
            if !ended {
                self.database.entry(n).or_insert(claim);
                self.answers.push(n);
            }
        }

        fn answer(&mut self, which: usize, is_lost: bool) {
            if self.answers.is_empty() {
                return;
            }
            let n = self.answers.remove(which % self.answers.len());
            if !is_lost && self.know[&n] == Know::Asks && self.database.contains_key(&n) {
                self.know.insert(n, Know::Runs);
            }
        }

        fn give_up(&mut self, n: usize) {
            if self.know.get(&n) == Some(&Know::Asks) {
                self.know.insert(n, Know::Nothing);
            }
        }

        fn report(&mut self, n: usize) {
            if self.know.get(&n) == Some(&Know::Runs) {
                self.database.remove(&n);
                self.know.insert(n, Know::Nothing);
                self.stuck.insert(n, 0);
            }
        }

        fn begin_beat(&mut self) {
            self.beat += 1;
            let of = |wanted: Know| self.know.iter().filter(move |(_, know)| **know == wanted);
            let beat = NamedClaims {
                number: BeatNumber(self.beat),
                held: of(Know::Runs).map(|(n, _)| (task(*n), ClaimEpoch(1))).collect(),
                asked: of(Know::Asks).map(|(n, _)| format!("claim {n}")).collect(),
            };
            self.beats.push(beat);
        }

        fn hear_beat(&mut self, which: usize) {
            if self.beats.is_empty() {
                return;
            }
            let beat = self.beats.remove(which % self.beats.len());
            if beat.number.0 <= self.last_beat {
                return;
            }
            self.last_beat = beat.number.0;
            let mut unknown = Vec::new();
            for (n, claim) in &mut self.database {
                match claim.compare(&beat) {
                    Finding::Nothing => {}
                    Finding::Named => claim.unnamed_since = None,
                    Finding::Unnamed => claim.unnamed_since = Some(beat.number),
                    Finding::Unknown => unknown.push(*n),
                }
            }
            for n in unknown {
                self.database.remove(&n);
                self.stuck.insert(n, 0);
                if self.know[&n] != Know::Nothing {
                    self.lost_while_run.push(n);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn no_claim_is_stuck_and_none_that_is_known_is_taken(
            steps in proptest::collection::vec((0..9u8, 0..5usize, any::<bool>()), 1..120)
        ) {
            let mut world = World::default();
            for (step, n, flag) in steps {
                match step {
                    0 => world.ask(n),
                    1 => world.repeat_question(n),
                    2 | 3 => world.commit(n),
                    4 => world.answer(n, flag),
                    5 => world.give_up(n),
                    6 => world.report(n),
                    7 => world.begin_beat(),
                    // Heartbeats arrive out of order, or never.
                    _ if flag => world.hear_beat(n),
                    _ => drop(world.beats.pop()),
                }
                prop_assert!(world.lost_while_run.is_empty(), "taken: {:?}", world.lost_while_run);
            }
            // From here on nothing is under way any more; three heartbeats find whatever nobody knows of.
            world.questions.clear();
            world.answers.clear();
            world.beats.clear();
            for n in 0..5 {
                world.give_up(n);
            }
            for _ in 0..3 {
                world.begin_beat();
                world.hear_beat(0);
            }
            for n in world.database.keys() {
                prop_assert_eq!(world.know[n], Know::Runs, "claim {} is stuck", n);
            }
            prop_assert!(world.lost_while_run.is_empty());
        }
    }

    #[test]
    fn a_worker_that_does_not_count_its_heartbeats_loses_nothing() {
        let claim = HeldClaim {
            id: task(1),
            epoch: ClaimEpoch(1),
            claim_id: None,
            asked_after: BeatNumber(0),
            unnamed_since: Some(BeatNumber(1)),
        };
        assert_eq!(claim.compare(&NamedClaims::default()), Finding::Nothing);
    }
}
