//! SIGTERM and SIGINT: the first drains, the second ends everything.

use crate::Stop;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that stop a program.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes the signals over; from here on they no longer end the process by themselves.
    pub(crate) fn take() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// Passes them on until everything is to end.
    pub(crate) async fn obey(mut self, stop: Stop) {
        let name = tokio::select! {
            name = self.next() => name,
            () = stop.now().cancelled() => return,
        };
        tracing::info!("{name}: draining; another one ends at once what still runs");
        stop.drain();
        let name = tokio::select! {
            name = self.next() => name,
            () = stop.now().cancelled() => return,
        };
        tracing::warn!("second {name}: ending now");
        stop.end();
    }
}
