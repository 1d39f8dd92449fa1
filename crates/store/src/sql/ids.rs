//! Ids, as the columns that hold them.

use super::{FromValue, Value};
use crate::StoreError;
use model::{
    AssetAliasId, AssetEventId, AssetId, BackfillId, ClaimEpoch, DagId, DagRunKey, DagVersionId,
    ExecutorName, MapIndex, PoolName, QueueName, RunId, TaskId, TaskInstanceId, TriggerId, TryNumber,
    WorkerId,
};

macro_rules! texts {
    ($($type:ty),* $(,)?) => { $(
        impl From<&$type> for Value {
            fn from(id: &$type) -> Self { Self::Text(id.as_str().to_owned()) }
        }
        impl From<$type> for Value {
            fn from(id: $type) -> Self { Self::Text(id.as_str().to_owned()) }
        }
        impl FromValue for $type {
            fn from_value(value: Value) -> Result<Self, StoreError> { String::from_value(value).map(Self::new) }
        }
    )* };
}
texts!(DagId, RunId, TaskId, PoolName, QueueName, ExecutorName);

macro_rules! uuids {
    ($($type:ty),* $(,)?) => { $(
        impl From<$type> for Value {
            fn from(id: $type) -> Self { Self::Text(id.to_string()) }
        }
        impl FromValue for $type {
            fn from_value(value: Value) -> Result<Self, StoreError> {
                let text = String::from_value(value)?;
                text.parse().map_err(|e| StoreError::Inconsistent(format!("{text:?} is not a UUID: {e}")))
            }
        }
    )* };
}
uuids!(TaskInstanceId, DagVersionId, WorkerId);

macro_rules! numbers {
    ($($type:ident),* $(,)?) => { $(
        impl From<$type> for Value {
            fn from(id: $type) -> Self { Self::Integer(i64::from(id.0)) }
        }
        impl FromValue for $type {
            fn from_value(value: Value) -> Result<Self, StoreError> { FromValue::from_value(value).map($type) }
        }
    )* };
}
numbers!(
    AssetAliasId,
    AssetEventId,
    AssetId,
    BackfillId,
    ClaimEpoch,
    DagRunKey,
    MapIndex,
    TriggerId,
    TryNumber,
);
