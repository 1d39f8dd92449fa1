//! Newtypes for every identifier, so that a run id can never stand where a DAG id belongs.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Takes the identifier as it is; validity is checked where users hand it in.
            pub fn new(value: impl Into<String>) -> Self {
                Self(value.into())
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(value: &str) -> Self {
                Self(value.to_owned())
            }
        }

        impl From<String> for $name {
            fn from(value: String) -> Self {
                Self(value)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

text_id!(
    /// Name of a DAG, unique in the installation.
    DagId
);
text_id!(
    /// Name of a DagRun, unique within its DAG.
    RunId
);
text_id!(
    /// Name of a task, unique within its DAG (task group prefixes included).
    TaskId
);
text_id!(
    /// Name of a task group, unique within its DAG.
    GroupId
);
text_id!(
    /// Name of a pool.
    PoolName
);
text_id!(
    /// Name of an Airflow queue, which is a queue of the broker too.
    QueueName
);

text_id!(
    /// Name of an executor as a DAG file writes it: class, alias or import path.
    ExecutorName
);

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID made elsewhere.
            pub const fn new(value: Uuid) -> Self {
                Self(value)
            }

            /// The UUID within.
            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(s).map(Self)
            }
        }
    };
}

uuid_id!(
    /// Identity of a task instance; stays the same over all its tries.
    TaskInstanceId
);
uuid_id!(
    /// Identity of one stored structure of a DAG.
    DagVersionId
);
uuid_id!(
    /// Identity of one life of a worker process; a restart gets a new one.
    WorkerId
);

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_id!(
    /// The metadata store's number for a DagRun.
    DagRunKey,
    i64
);
number_id!(
    /// The metadata store's number for an asset.
    AssetId,
    i64
);
number_id!(
    /// The metadata store's number for an alias of assets.
    AssetAliasId,
    i64
);
number_id!(
    /// The metadata store's number for an update of an asset.
    AssetEventId,
    i64
);
number_id!(
    /// The metadata store's number for a trigger.
    TriggerId,
    i64
);
number_id!(
    /// The metadata store's number for a backfill.
    BackfillId,
    i64
);
number_id!(
    /// Counts the claims of a task instance; every write of a worker carries the one it holds.
    ClaimEpoch,
    i64
);

/// Position of a mapped task instance; -1 means that the task is not mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MapIndex(pub i32);

impl MapIndex {
    /// The index of a task that is not mapped.
    pub const UNMAPPED: Self = Self(-1);
}

impl fmt::Display for MapIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a try, counted from 1; 0 means that the task instance was never scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TryNumber(pub u32);

impl TryNumber {
    /// The try after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for TryNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
