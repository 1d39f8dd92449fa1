//! Which fault comes when: drawn from a seed, and nothing else.

use super::kinds::{Bound, Kind, Span};
use crate::lots::Lots;
use std::fmt;
use std::time::Duration;

/// Time between the end of a fault's recovery and the next fault.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(4));
/// How much of its bound a recovery is expected to take.
const EXPECTED: f64 = 0.4;
/// One of so many faults comes while the one before it lasts.
const BESIDE: usize = 6;

/// One fault.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// Its place in the schedule, from 1.
    pub number: usize,
    /// Not before this, counted from the begin of the campaign. Later where the fault before took longer to recover from.
    pub at: Duration,
    /// What happens.
    pub kind: &'static Kind,
    /// To whom.
    pub target: &'static str,
    /// For how long.
    pub span: Duration,
    /// It comes while the fault before it lasts. The recovery of both is not measured against their bounds.
    pub beside: bool,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>4}  {:>7.1} s  {} {}",
            self.number,
            self.at.as_secs_f64(),
            self.kind.name,
            self.target
        )?;
        if !self.span.is_zero() {
            write!(f, " for {:.1} s", self.span.as_secs_f64())?;
        }
        if self.beside {
            write!(f, ", while the one before lasts")?;
        }
        Ok(())
    }
}

/// The faults of a campaign of this length: rounds in each of which every kind comes once, in an order of its own.
pub fn draw(seed: u64, length: Duration, lease: Duration, kinds: &[&'static Kind]) -> Vec<Planned> {
    let mut lots = Lots::new(seed);
    let mut faults: Vec<Planned> = Vec::new();
    let mut at = Duration::ZERO;
    // Targets are dealt like cards, too, so that each has its turn; from a place that the seed says.
    let mut dealt: Vec<usize> = kinds.iter().map(|kind| lots.below(kind.targets.len())).collect();
    if kinds.is_empty() {
        return faults;
    }
    loop {
        let mut round: Vec<usize> = (0..kinds.len()).collect();
        lots.shuffle(&mut round);
        for place in round {
            let kind = kinds[place];
            let target = kind.targets[dealt[place] % kind.targets.len()];
            dealt[place] += 1;
            let span = span_of(kind, lease, &mut lots);
            let beside = lots.below(BESIDE) == 0
                && faults
                    .last()
                    .is_some_and(|last| !last.beside && last.span >= Duration::from_secs(3));
            if beside && let Some(last) = faults.last() {
                at = last.at + last.span / 3;
            } else {
                at += lots.between(PAUSE.0, PAUSE.1);
            }
            if at > length {
                return faults;
            }
            faults.push(Planned {
                number: faults.len() + 1,
                at,
                kind,
                target,
                span,
                beside,
            });
            let before = match (beside, faults.len().checked_sub(2)) {
                (true, Some(before)) => end_of(&faults[before], lease),
                _ => Duration::ZERO,
            };
            at = before.max(faults.last().map_or(at, |last| end_of(last, lease)));
        }
    }
}

fn span_of(kind: &Kind, lease: Duration, lots: &mut Lots) -> Duration {
    match kind.span {
        Span::Moment => Duration::ZERO,
        Span::Seconds(least, most) => lots.between(Duration::from_secs(least), Duration::from_secs(most)),
        Span::Lease(least, most) => lots.between(lease * least / 100, lease * most / 100),
    }
}

/// When everything is expected to be as before.
fn end_of(fault: &Planned, lease: Duration) -> Duration {
    let recovery = fault.kind.bound.limit(lease).mul_f64(EXPECTED);
    match fault.kind.bound {
        Bound::End(_) => fault.at + fault.span + recovery,
        Bound::Begin(_) | Bound::Lease(_) => fault.at + fault.span.max(recovery),
    }
}

#[cfg(test)]
mod tests {
    use super::super::kinds::KINDS;
    use super::*;
    use std::collections::BTreeSet;

    const LEASE: Duration = Duration::from_secs(30);
    const HOUR: Duration = Duration::from_secs(3600);

    fn all() -> Vec<&'static Kind> {
        KINDS.iter().collect()
    }

    #[test]
    fn the_same_seed_draws_the_same_faults_and_another_seed_others() {
        let drawn = draw(7, HOUR, LEASE, &all());
        assert_eq!(drawn, draw(7, HOUR, LEASE, &all()));
        assert_ne!(drawn, draw(8, HOUR, LEASE, &all()));
        // A shorter campaign is the begin of a longer one.
        let short = draw(7, HOUR / 10, LEASE, &all());
        assert_eq!(short.as_slice(), &drawn[..short.len()]);
    }

    #[test]
    fn each_kind_is_drawn_at_least_once_in_every_hour() {
        for seed in 0..50 {
            let drawn = draw(seed, HOUR * 3, LEASE, &all());
            for hour in 0..3 {
                let within = |fault: &&Planned| fault.at >= HOUR * hour && fault.at < HOUR * (hour + 1);
                let names: BTreeSet<&str> =
                    drawn.iter().filter(within).map(|fault| fault.kind.name).collect();
                assert_eq!(names.len(), KINDS.len(), "seed {seed}, hour {hour}");
            }
        }
    }

    #[test]
    fn every_target_of_every_kind_has_its_turn_in_a_day() {
        let drawn = draw(7, HOUR * 24, LEASE, &all());
        for kind in &KINDS {
            let targets: BTreeSet<&str> = drawn
                .iter()
                .filter(|fault| fault.kind == kind)
                .map(|fault| fault.target)
                .collect();
            assert_eq!(targets.len(), kind.targets.len(), "{}", kind.name);
        }
    }

    #[test]
    fn faults_come_in_order_and_only_those_that_say_so_while_another_lasts() {
        for seed in 0..50 {
            let drawn = draw(seed, HOUR, LEASE, &all());
            for pair in drawn.windows(2) {
                let [before, fault] = pair else { continue };
                assert!(before.at <= fault.at, "{before}\n{fault}");
                assert_eq!(
                    fault.at < before.at + before.span,
                    fault.beside && !before.span.is_zero(),
                    "{before}\n{fault}"
                );
            }
            assert!(drawn.iter().any(|fault| fault.beside));
        }
    }

    #[test]
    fn only_the_kinds_that_are_asked_for_are_drawn() {
        let only: Vec<&Kind> = KINDS.iter().filter(|kind| kind.name == "kill-worker").collect();
        let drawn = draw(1, HOUR, LEASE, &only);
        assert!(drawn.len() > 100 && drawn.iter().all(|fault| fault.kind.name == "kill-worker"));
        assert!(draw(1, HOUR, LEASE, &[]).is_empty());
    }
}
