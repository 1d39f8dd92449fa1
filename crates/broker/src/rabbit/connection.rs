//! A connection that is made when it is needed and dropped at the first error.

use super::{DEAD, queue_name};
use crate::BrokerError;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ConnectionProperties};
use model::QueueName;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

const CONNECT: Duration = Duration::from_secs(10);
/// Seconds between heartbeats, unless the URL says otherwise.
const HEARTBEAT: &str = "heartbeat=10";
/// Deliveries of a message, each undone by a consumer's death, after which it is put aside.
const DELIVERY_LIMIT: i32 = 20;

/// The way to the server.
#[derive(Clone)]
pub(super) struct Link {
    url: Arc<str>,
    name: Arc<str>,
    connection: Arc<Mutex<Option<Arc<Connection>>>>,
}

impl Link {
    pub(super) fn new(url: &str, name: &str) -> Result<Self, BrokerError> {
        let address = |why: &str| BrokerError::Address(why.to_owned());
        let rest = url
            .strip_prefix("amqp://")
            .or_else(|| url.strip_prefix("amqps://"));
        let rest = rest.ok_or_else(|| address("it does not start with amqp:// or amqps://"))?;
        // Celery writes the default virtual host as a second slash; AMQP URLs leave it out.
        let (url, query) = url.split_once('?').map_or((url, ""), |(url, query)| (url, query));
        let url = match rest.split('?').next().unwrap_or(rest).split_once('/') {
            Some((_, "" | "/")) => url.trim_end_matches('/'),
            Some(_) | None => url,
        };
        let query = match (query.is_empty(), query.contains("heartbeat=")) {
            (true, _) => HEARTBEAT.to_owned(),
            (false, true) => query.to_owned(),
            (false, false) => format!("{query}&{HEARTBEAT}"),
        };
        // A URL with a query needs a path.
        let has_path = url.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
        let path = if has_path { "" } else { "/%2f" };
        Ok(Self {
            url: format!("{url}{path}?{query}").into(),
            name: name.into(),
            connection: Arc::default(),
        })
    }

    /// Host, port and virtual host, for messages to people: the URL also has the password.
    pub(super) fn place(&self) -> &str {
        let rest = self.url.split_once("://").map_or(&*self.url, |(_, rest)| rest);
        let rest = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
        rest.split_once('?').map_or(rest, |(place, _)| place)
    }

    /// A way to the same server with a connection of its own.
    pub(super) fn another(&self) -> Self {
        Self {
            connection: Arc::default(),
            ..self.clone()
        }
    }

    /// The connection, made now if there is none.
    pub(super) async fn connection(&self) -> Result<Arc<Connection>, lapin::Error> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| connection.status().connected()) {
            return Ok(Arc::clone(connection));
        }
        let properties = ConnectionProperties::default().with_connection_name((*self.name).into());
        let connecting = tokio::time::timeout(CONNECT, Connection::connect(&self.url, properties));
        let connection = match connecting.await {
            Ok(connection) => Arc::new(connection?),
            Err(_) => {
                let error = std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer from the broker");
                return Err(lapin::ErrorKind::IOError(Arc::new(error)).into());
            }
        };
        *slot = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// Drops the connection.
    pub(super) async fn reset(&self) {
        if let Some(connection) = self.connection.lock().await.take() {
            // It may be dead already; and a dead peer must not hold us up.
            tokio::time::timeout(Duration::from_secs(1), connection.close(200, "bye".into()))
                .await
                .ok();
        }
    }
}

/// Declares the queue for an Airflow queue, and where its dead messages go.
pub(super) async fn declare_queue(channel: &Channel, queue: &QueueName) -> Result<(), lapin::Error> {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut dead = FieldTable::default();
    dead.insert("x-queue-type".into(), text("quorum"));
    dead.insert("x-max-length".into(), AMQPValue::LongInt(10_000));
    channel
        .queue_declare(DEAD.into(), QueueDeclareOptions::durable(), dead)
        .await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(DELIVERY_LIMIT));
    arguments.insert("x-dead-letter-exchange".into(), text(""));
    arguments.insert("x-dead-letter-routing-key".into(), text(DEAD));
    let name = ShortString::try_new(queue_name(queue)).unwrap_or_default();
    channel
        .queue_declare(name, QueueDeclareOptions::durable(), arguments)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_celery_and_of_amqp_are_understood() {
        for (given, expected) in [
            ("amqp://u:p@h:5672//", "amqp://u:p@h:5672/%2f?heartbeat=10"),
            ("amqp://u:p@h:5672/", "amqp://u:p@h:5672/%2f?heartbeat=10"),
            ("amqp://u:p@h:5672", "amqp://u:p@h:5672/%2f?heartbeat=10"),
            ("amqp://u:p@h/team?heartbeat=3", "amqp://u:p@h/team?heartbeat=3"),
            ("amqps://u:p@h/%2f", "amqps://u:p@h/%2f?heartbeat=10"),
        ] {
            assert_eq!(&*Link::new(given, "test").unwrap().url, expected, "{given}");
        }
        assert!(Link::new("redis://h", "test").is_err());
    }
}
