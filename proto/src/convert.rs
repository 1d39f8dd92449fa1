//! Between messages and the model.

use crate::v1::{Ending, ReportRequest};
use model::Timestamp;
use model::task_instance::Outcome;
use thiserror::Error;

/// A message that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct InvalidMessage(pub String);

/// How the try ended that `report` tells about; `retry_at` computes when the next try is due.
///
/// # Errors
/// When the ending is unknown or lacks what belongs to it, and for a try that never started: that one has not ended.
pub fn outcome_of(
    report: &ReportRequest,
    retry_at: impl FnOnce() -> Timestamp,
) -> Result<Outcome, InvalidMessage> {
    let ending = Ending::try_from(report.ending)
        .map_err(|_| InvalidMessage(format!("unknown ending {}", report.ending)))?;
    Ok(match ending {
        Ending::Unspecified => return Err(InvalidMessage("the ending is missing".to_owned())),
        Ending::Success => Outcome::Success,
        Ending::Failed => Outcome::Failed { retry_at: None },
        Ending::UpForRetry => Outcome::Failed {
            retry_at: Some(retry_at()),
        },
        Ending::Skipped => Outcome::Skipped,
        Ending::Reschedule => {
            let at = report.reschedule_at.and_then(model::time::from_micros);
            Outcome::Reschedule {
                at: at.ok_or_else(|| InvalidMessage("a reschedule needs a time".to_owned()))?,
            }
        }
        Ending::Deferred => {
            let until = report.reschedule_at.and_then(model::time::from_micros);
            if until.is_none() && report.trigger.is_none() {
                return Err(InvalidMessage("a deferral needs a time or a trigger".to_owned()));
            }
            Outcome::Deferred { until }
        }
        Ending::AwaitingInput => Outcome::AwaitingInput {
            until: report.reschedule_at.and_then(model::time::from_micros),
        },
        Ending::Removed => Outcome::Removed,
        Ending::NeverStarted => {
            return Err(InvalidMessage(
                "a try that never started has not ended".to_owned(),
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::time::from_micros;

    #[test]
    fn endings_become_outcomes_and_incomplete_ones_are_refused() {
        let now = from_micros(5).unwrap();
        let report = |ending: Ending| ReportRequest {
            ending: ending.into(),
            ..ReportRequest::default()
        };
        assert_eq!(outcome_of(&report(Ending::Success), || now), Ok(Outcome::Success));
        assert_eq!(
            outcome_of(&report(Ending::UpForRetry), || now),
            Ok(Outcome::Failed { retry_at: Some(now) })
        );
        assert!(outcome_of(&report(Ending::Reschedule), || now).is_err());
        assert!(outcome_of(&report(Ending::Unspecified), || now).is_err());
        assert!(outcome_of(&report(Ending::NeverStarted), || now).is_err());
        let nonsense = ReportRequest {
            ending: 99,
            ..ReportRequest::default()
        };
        assert!(outcome_of(&nonsense, || now).is_err());
    }
}
