//! The owner of a program's parts.

use crate::signals::Signals;
use crate::{Part, Parts, Stop};
use futures_util::FutureExt;
use std::any::Any;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// How long parts get to notice that everything is to end.
const LAST_MOMENTS: Duration = Duration::from_secs(10);

/// What the end of a part means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Works as long as its program: an end before the program drains is a failure.
    Service,
    /// A service that goes on while the program drains, so that people and probes can look; it is not waited for then,
    /// and ends when everything does.
    Background,
    /// Ends when its work is done; only a panic and an error are failures.
    Work,
    /// One of many alike, such as one task or one stream of a client: its panic is told, and harms nobody else. Its owner
    /// waits for it where that is needed; the program does not.
    Request,
}

/// How the work of a part may end.
pub trait Ended: Send + 'static {
    /// What went wrong.
    fn problem(self) -> Option<anyhow::Error>;
}

impl Ended for () {
    fn problem(self) -> Option<anyhow::Error> {
        None
    }
}

impl Ended for anyhow::Result<()> {
    fn problem(self) -> Option<anyhow::Error> {
        self.err()
    }
}

/// The owner of a program's parts. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    stop: Stop,
    /// Parts that are waited for when the program drains, and those that are not.
    waited_for: TaskTracker,
    background: TaskTracker,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Running parts, by the order in which they were started.
    running: BTreeMap<u64, &'static str>,
    started: u64,
    /// Set once the program waits for its end only.
    is_ready: bool,
    /// Why the program ends: the first failure, which the others may follow from.
    failure: Option<anyhow::Error>,
}

/// Takes a part off the list of running ones when it ends, is aborted or panics.
struct Listed {
    state: Arc<Mutex<State>>,
    number: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        lock(&self.state).running.remove(&self.number);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The words of a panic.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

impl Lifecycle {
    /// One that obeys SIGTERM and SIGINT from now on: the first drains, the second ends everything.
    ///
    /// # Errors
    /// When signals cannot be listened to.
    pub fn with_signals() -> std::io::Result<Self> {
        let lifecycle = Self::default();
        let signals = Signals::take()?;
        let obeying = signals.obey(lifecycle.stop.clone());
        lifecycle.spawn("signals", Kind::Background, obeying);
        Ok(lifecycle)
    }

    /// The stages of stopping.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Starts a part. What its end means, `kind` says; a panic of anything but a [`Kind::Request`] is a failure. A failure
    /// ends everything, and [`Lifecycle::run_to_end`] returns it.
    pub fn spawn<F>(&self, name: &'static str, kind: Kind, work: F) -> Part
    where
        F: Future + Send + 'static,
        F::Output: Ended,
    {
        let listed = self.list(name, kind);
        let lifecycle = self.clone();
        let span = tracing::error_span!("part", name);
        let work = async move {
            let _listed = listed;
            let ended = AssertUnwindSafe(faulty(name, work)).catch_unwind().await;
            lifecycle.judge(name, kind, ended);
        };
        let tracker = match kind {
            Kind::Background | Kind::Request => &self.background,
            Kind::Service | Kind::Work => &self.waited_for,
        };
        Part::new(tracker.spawn(work.instrument(span)))
    }

    /// Parts of one owner.
    pub fn parts(&self) -> Parts {
        Parts::new(self.clone())
    }

    fn list(&self, name: &'static str, kind: Kind) -> Listed {
        let mut state = lock(&self.state);
        state.started += 1;
        let number = state.started;
        state.running.insert(number, name);
        tracing::debug!(part = name, kind = ?kind, "part started");
        Listed {
            state: Arc::clone(&self.state),
            number,
        }
    }

    fn judge<T: Ended>(&self, name: &'static str, kind: Kind, ended: std::thread::Result<Option<T>>) {
        let asked = match kind {
            Kind::Service => self.stop.draining().is_cancelled(),
            Kind::Background => self.stop.now().is_cancelled(),
            Kind::Work | Kind::Request => true,
        };
        let problem = match ended {
            Err(panic) => anyhow::anyhow!("{name} panicked: {}", words(&*panic)),
            Ok(ended) => match ended.and_then(Ended::problem) {
                Some(error) => error.context(format!("{name} failed")),
                None if asked => return,
                None => anyhow::anyhow!("{name} ended although nothing had asked it to"),
            },
        };
        if kind == Kind::Request {
            tracing::error!("{problem:#}");
        } else {
            self.fail(problem);
        }
    }

    /// Notes a failure, and ends everything.
    pub fn fail(&self, problem: anyhow::Error) {
        tracing::error!("{problem:#}; stopping");
        lock(&self.state).failure.get_or_insert(problem);
        self.stop.end();
    }

    /// Ends when the program is to stop although it has not come to [`Lifecycle::run_to_end`] yet; else never.
    pub async fn stopped_while_starting(&self) {
        self.stop.draining().cancelled().await;
        if lock(&self.state).is_ready {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the program is to stop, lets its parts end, for `grace` at most, and then ends everything.
    ///
    /// # Errors
    /// The first failure of a part; else the parts that did not end in time.
    pub async fn run_to_end(&self, grace: Duration) -> anyhow::Result<()> {
        lock(&self.state).is_ready = true;
        self.stop.draining().cancelled().await;
        self.waited_for.close();
        tokio::select! {
            () = self.waited_for.wait() => {}
            () = tokio::time::sleep(grace) => {
                tracing::warn!("not everything ended within {} s", grace.as_secs());
            }
            () = self.stop.now().cancelled() => {}
        }
        self.stop.end();
        self.background.close();
        let all = async { tokio::join!(self.waited_for.wait(), self.background.wait()) };
        let in_time = tokio::time::timeout(LAST_MOMENTS, all).await.is_ok();
        let mut state = lock(&self.state);
        if let Some(failure) = state.failure.take() {
            return Err(failure);
        }
        if in_time {
            return Ok(());
        }
        let names: Vec<&str> = state.running.values().copied().collect();
        anyhow::bail!("these parts did not end and are left: {}", names.join(", "))
    }
}

/// The work of a part, or the fault that a test asked for in its place; `None` stands for work that just ended.
#[cfg(debug_assertions)]
async fn faulty<F: Future>(name: &str, work: F) -> Option<F::Output> {
    use crate::fault::{Fault, asked_for};
    match asked_for(name) {
        None => Some(work.await),
        Some(Fault::Panic) => panic!("as a test asked for"),
        Some(Fault::End) => None,
        Some(Fault::Hang) => std::future::pending().await,
    }
}

#[cfg(not(debug_assertions))]
async fn faulty<F: Future>(_: &str, work: F) -> Option<F::Output> {
    Some(work.await)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(1);

    async fn broken(text: &str) {
        assert!(text.is_empty(), "no {text}");
    }

    async fn outcome(lifecycle: &Lifecycle) -> String {
        match lifecycle.run_to_end(GRACE).await {
            Ok(()) => "well".to_owned(),
            Err(error) => format!("{error:#}"),
        }
    }

    #[tokio::test]
    async fn a_part_that_panics_fails_or_ends_stops_the_program_with_its_name() {
        for (kind, expected) in [
            (Kind::Service, "reader ended although nothing had asked it to"),
            (Kind::Background, "reader ended although nothing had asked it to"),
        ] {
            let lifecycle = Lifecycle::default();
            lifecycle.spawn("reader", kind, async {});
            assert_eq!(outcome(&lifecycle).await, expected);
        }
        for kind in [Kind::Service, Kind::Background, Kind::Work] {
            let lifecycle = Lifecycle::default();
            lifecycle.spawn("reader", kind, broken("luck"));
            assert_eq!(outcome(&lifecycle).await, "reader panicked: no luck");
            let lifecycle = Lifecycle::default();
            lifecycle.spawn("reader", kind, async { anyhow::bail!("no file") });
            assert_eq!(outcome(&lifecycle).await, "reader failed: no file");
        }
    }

    #[tokio::test]
    async fn the_first_failure_is_told_when_others_follow_from_it() {
        let lifecycle = Lifecycle::default();
        let stop = lifecycle.stop().clone();
        lifecycle.spawn("second", Kind::Service, async move {
            stop.draining().cancelled().await;
            anyhow::bail!("the first is gone")
        });
        lifecycle.spawn("first", Kind::Service, async { anyhow::bail!("no file") });
        assert_eq!(outcome(&lifecycle).await, "first failed: no file");
    }

    #[tokio::test]
    async fn parts_that_were_asked_to_end_are_no_failures() {
        let lifecycle = Lifecycle::default();
        let stop = lifecycle.stop().clone();
        let mut parts = lifecycle.parts();
        parts.spawn("work", Kind::Work, async {});
        let draining = stop.draining().clone();
        parts.spawn(
            "service",
            Kind::Service,
            async move { draining.cancelled().await },
        );
        let now = stop.now().clone();
        lifecycle.spawn("page", Kind::Background, async move { now.cancelled().await });
        lifecycle
            .spawn("aborted", Kind::Service, std::future::pending::<()>())
            .abort();
        lifecycle.spawn("request", Kind::Request, broken("matter"));
        stop.drain();
        parts.ended().await;
        assert_eq!(outcome(&lifecycle).await, "well");
    }

    #[tokio::test(start_paused = true)]
    async fn parts_that_hang_are_named_and_hold_nobody_up() {
        let lifecycle = Lifecycle::default();
        lifecycle.spawn("stuck", Kind::Service, std::future::pending::<()>());
        lifecycle.stop().drain();
        assert_eq!(
            outcome(&lifecycle).await,
            "these parts did not end and are left: stuck"
        );
    }
}
