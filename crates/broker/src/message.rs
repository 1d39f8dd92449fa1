//! What goes through a broker.

use model::{DagId, DagRunKey, QueueName, TaskInstanceId, TryNumber};
use serde::{Deserialize, Serialize};

/// "This try of this task instance is ready": a reference, without secrets or code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskMessage {
    /// Version of this form; readers ignore fields that they do not know.
    pub version: u32,
    /// The task instance.
    pub task_instance: TaskInstanceId,
    /// The try.
    pub try_number: TryNumber,
    /// Number of the hand-over.
    pub sequence: i64,
    /// Queue that it goes to.
    pub queue: QueueName,
}

impl TaskMessage {
    /// The version that this program writes.
    pub const VERSION: u32 = 1;

    /// Reads a message from its bytes.
    ///
    /// # Errors
    /// When it is no message, or of a version from the future.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let message: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if message.version > Self::VERSION {
            return Err(format!(
                "message of version {}, this program reads up to {}",
                message.version,
                Self::VERSION
            ));
        }
        Ok(message)
    }

    /// The message's bytes.
    pub fn write(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// "Look there": what one component tells the schedulers to save them waiting for the next sweep.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hint {
    /// A task instance of this run moved.
    Run(DagRunKey),
    /// A run of this DAG waits to start, or the DAG was paused or unpaused.
    Dag(DagId),
    /// DAGs changed, and with them the times of their next runs.
    Timetables,
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn messages_round_trip_and_nonsense_is_refused() {
        let message = TaskMessage {
            version: TaskMessage::VERSION,
            task_instance: TaskInstanceId::new(Uuid::from_u128(7)),
            try_number: TryNumber(2),
            sequence: 3,
            queue: "default".into(),
        };
        assert_eq!(TaskMessage::read(&message.write()), Ok(message.clone()));
        let newer = TaskMessage {
            version: 99,
            ..message
        };
        assert!(TaskMessage::read(&newer.write()).unwrap_err().contains("99"));
        assert!(TaskMessage::read(b"{}").is_err());
        assert!(TaskMessage::read(&[0xff, 0x00]).is_err());
    }
}
