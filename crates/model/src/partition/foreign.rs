//! What mappers say that only Python knows.

use super::{PartitionError, WaitPolicy};
use crate::time::{Timestamp, from_micros};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;

/// What a key becomes, as Python said it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignAnswer {
    /// The keys that it becomes.
    #[serde(default)]
    pub targets: Vec<ForeignTarget>,
    /// Most keys that one key may become, where the mapper says so itself.
    #[serde(default)]
    pub most: Option<usize>,
    /// Why the mapper does not take that key.
    #[serde(default)]
    pub wrong: Option<String>,
}

/// One of the keys that a key becomes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignTarget {
    /// The key.
    pub key: String,
    /// The period that it is about, in microseconds since the epoch.
    #[serde(default)]
    pub date: Option<i64>,
    /// What the run takes over of the partition date of the run that updated the asset, as above.
    #[serde(default)]
    pub carried: Option<i64>,
    /// Whether several keys become this one, and a run waits for them.
    #[serde(default)]
    pub is_rollup: bool,
    /// All of these.
    #[serde(default)]
    pub upstream: Option<BTreeSet<String>>,
    /// How many of them are enough, serialized.
    #[serde(default)]
    pub policy: Option<Value>,
}

impl ForeignTarget {
    /// The period that the key is about.
    pub fn date(&self) -> Option<Timestamp> {
        self.date.and_then(from_micros)
    }

    /// The date that the run takes over.
    pub fn carried(&self) -> Option<Timestamp> {
        self.carried.and_then(from_micros)
    }

    /// Whether the keys that have come are enough for a run of that key.
    ///
    /// # Errors
    /// When the mapper did not say what it waits for, or how.
    pub fn is_satisfied(&self, come: &BTreeSet<String>) -> Result<bool, PartitionError> {
        if !self.is_rollup {
            return Ok(!come.is_empty());
        }
        let silent = || PartitionError::Key(format!("the mapper does not say what {:?} waits for", self.key));
        let expected = self.upstream.as_ref().ok_or_else(silent)?;
        let policy = WaitPolicy::from_serialized(self.policy.as_ref().ok_or_else(silent)?)?;
        Ok(policy.is_satisfied(come, expected))
    }
}
