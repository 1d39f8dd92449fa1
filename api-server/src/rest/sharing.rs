//! Lists that many ask for at once: each is computed once for all who wait for it, and a few at a time.
//!
//! A list that waits for its turn takes in everybody who asks for the same meanwhile; once it has begun it takes in nobody.
//! So no answer is older than its question, and a server that has more to do than it can answers more of them at once.
//! Turns are given in the order of the questions. Lists that took long when they were last asked for take turns in a
//! lane of their own, so that they do not hold up the others.

use super::access::identify;
use super::error::ApiError;
use crate::App;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use identity::Role;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use telemetry::metric;
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};

/// Lists that are computed at a time.
const TURNS: usize = 4;
/// Of these, lists that took long.
const LONG_TURNS: usize = 2;
/// What takes longer, the last two times, is a long list.
const LONG: Duration = Duration::from_millis(500);
/// How long a list may wait for its turn.
const PATIENCE: Duration = Duration::from_secs(30);
/// Different lists that may wait.
const MOST: usize = 2000;
/// Kinds of lists of which it is known how long they took.
const KINDS: usize = 4096;
/// Bytes of an answer.
const LARGEST: usize = 256 << 20;

/// Ends of paths of lists whose answers are not the same for everybody, or no list at all, are not here.
const LISTS: [&str; 9] = [
    "/dags",
    "/dagRuns",
    "/taskInstances",
    "/listMapped",
    "/xcomEntries",
    "/dagStats",
    "/hitlDetails",
    "/assets/events",
    "/tries",
];

/// An answer that several get.
#[derive(Debug, Clone)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

type Flight = Arc<OnceCell<Answer>>;

/// The lists that wait for their turn.
#[derive(Debug)]
pub(crate) struct Sharing {
    waiting: Mutex<HashMap<String, Flight>>,
    turns: Semaphore,
    long_turns: Semaphore,
    /// How long lists of a kind took the last two times.
    took: Mutex<HashMap<u64, [Duration; 2]>>,
}

impl Default for Sharing {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            turns: Semaphore::new(TURNS),
            long_turns: Semaphore::new(LONG_TURNS),
            took: Mutex::default(),
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number for all lists that differ only in where their page begins.
fn kind(key: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    for part in key.split(['?', '&']) {
        let is_place = ["offset=", "cursor=", "limit="]
            .iter()
            .any(|name| part.starts_with(name));
        if is_place && part.len() < "offset=1000".len() {
            continue;
        }
        // A page far from the beginning is of another kind.
        part.split('=')
            .next()
            .filter(|_| is_place)
            .unwrap_or(part)
            .hash(&mut hasher);
    }
    hasher.finish()
}

impl Sharing {
    /// Who is to compute this list, or has it computed already; `None` if too many wait.
    fn join(&self, key: &str) -> Option<Flight> {
        let mut waiting = locked(&self.waiting);
        if let Some(flight) = waiting.get(key) {
            return Some(Arc::clone(flight));
        }
        if waiting.len() >= MOST {
            return None;
        }
        let flight = Flight::default();
        waiting.insert(key.to_owned(), Arc::clone(&flight));
        Some(flight)
    }

    /// Takes in nobody more.
    fn close(&self, key: &str, flight: &Flight) {
        let mut waiting = locked(&self.waiting);
        if waiting
            .get(key)
            .is_some_and(|waiting| Arc::ptr_eq(waiting, flight))
        {
            waiting.remove(key);
        }
    }

    /// Waits for a turn; `None` if it does not come until `end`.
    async fn turn(
        &self,
        kind: u64,
        end: Instant,
    ) -> Option<(Option<SemaphorePermit<'_>>, SemaphorePermit<'_>)> {
        let is_long = locked(&self.took)
            .get(&kind)
            .is_some_and(|took| took.iter().all(|took| *took > LONG));
        let turn = async {
            // The semaphores are never closed.
            let long = match is_long {
                true => Some(self.long_turns.acquire().await.ok()?),
                false => None,
            };
            Some((long, self.turns.acquire().await.ok()?))
        };
        tokio::time::timeout_at(end.into(), turn).await.ok().flatten()
    }

    fn note(&self, kind: u64, took: Duration) {
        let mut known = locked(&self.took);
        if known.len() >= KINDS && !known.contains_key(&kind) {
            known.clear();
        }
        // The first time counts and other things are looked at that are known after it.
        let last = known.get(&kind).map_or(Duration::ZERO, |[_, last]| *last);
        known.insert(kind, [last, took]);
    }
}

/// Closes a flight also if whoever computes it goes away in the middle; another of those who wait begins anew then.
struct Boarding<'a> {
    sharing: &'a Sharing,
    key: &'a str,
    flight: &'a Flight,
}

impl Drop for Boarding<'_> {
    fn drop(&mut self) {
        self.sharing.close(self.key, self.flight);
    }
}

fn is_list(request: &Request) -> bool {
    let path = request.uri().path();
    request.method() == Method::GET
        && path.starts_with("/api/v2/")
        && LISTS.iter().any(|end| path.ends_with(end))
}

/// What answers differ by.
fn key(request: &Request) -> String {
    let header = |name| {
        let value: Option<&axum::http::HeaderValue> = request.headers().get(name);
        value
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .unwrap_or_default()
    };
    format!(
        "{} {} {}",
        request.uri(),
        header(header::ACCEPT_ENCODING),
        header(header::ACCEPT)
    )
}

fn busy() -> ApiError {
    let text = "Too many lists are asked for at once; try again.";
    ApiError::detail(StatusCode::SERVICE_UNAVAILABLE, text)
}

/// Has lists computed once for all who wait for the same.
pub(super) async fn share(State(app): State<App>, request: Request, next: Next) -> Response {
    if !is_list(&request) {
        return next.run(request).await;
    }
    // Each is let in for themselves, as the handlers would.
    let caller = identify(&app, request.headers());
    if let Err(error) = caller.and_then(|caller| caller.must_be(Role::Viewer)) {
        return error.into_response();
    }
    let key = key(&request);
    let Some(flight) = app.sharing.join(&key) else {
        return busy().into_response();
    };
    // Whoever waited for another that went away waits no longer in all.
    let end = Instant::now() + PATIENCE;
    let compute = || compute(&app.sharing, (&key, &flight), end, request, next);
    match flight.get_or_try_init(compute).await {
        Ok(answer) => {
            let mut response = Response::new(Body::from(answer.body.clone()));
            *response.status_mut() = answer.status;
            *response.headers_mut() = answer.headers.clone();
            response
        }
        Err(error) => error.into_response(),
    }
}

async fn compute(
    sharing: &Sharing,
    (key, flight): (&str, &Flight),
    end: Instant,
    request: Request,
    next: Next,
) -> Result<Answer, ApiError> {
    let boarding = Boarding { sharing, key, flight };
    let kind = kind(key);
    let begin = Instant::now();
    let turn = sharing.turn(kind, end).await.ok_or_else(busy)?;
    metrics::histogram!(metric::LIST_WAIT_SECONDS).record(begin.elapsed());
    drop(boarding);
    let begin = Instant::now();
    let (parts, body) = next.run(request).await.into_parts();
    let body = to_bytes(body, LARGEST).await;
    drop(turn);
    sharing.note(kind, begin.elapsed());
    let body = body.map_err(|error| {
        tracing::error!("the answer of a list broke off: {error}");
        ApiError::detail(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
    })?;
    Ok(Answer {
        status: parts.status,
        headers: parts.headers,
        body,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_asks_for_a_waiting_list_joins_and_who_asks_later_does_not() {
        let sharing = Sharing::default();
        let first = sharing.join("a").expect("room");
        let second = sharing.join("a").expect("room");
        assert!(Arc::ptr_eq(&first, &second));
        assert!(!Arc::ptr_eq(&first, &sharing.join("b").expect("room")));
        drop(Boarding {
            sharing: &sharing,
            key: "a",
            flight: &first,
        });
        let later = sharing.join("a").expect("room");
        assert!(!Arc::ptr_eq(&first, &later));
        // Closing the first again does not close the later one.
        sharing.close("a", &first);
        assert!(Arc::ptr_eq(&later, &sharing.join("a").expect("room")));
    }

    #[tokio::test]
    async fn long_lists_leave_turns_to_others() {
        let sharing = Sharing::default();
        let (long, short) = (kind("/a?order_by=x&offset=5"), kind("/b"));
        assert_eq!(long, kind("/a?order_by=x&offset=70"));
        assert_ne!(long, kind("/a?order_by=x&offset=70000"));
        sharing.note(long, LONG * 2);
        sharing.note(long, LONG * 2);
        let end = Instant::now() + PATIENCE;
        let first = sharing.turn(long, end).await.expect("a turn");
        for _ in 1..LONG_TURNS {
            std::mem::forget(sharing.turn(long, end).await.expect("a turn"));
        }
        let second = tokio::time::timeout(Duration::from_millis(50), sharing.turn(long, end)).await;
        assert!(second.is_err(), "some long lists at a time");
        for _ in LONG_TURNS..TURNS {
            std::mem::forget(sharing.turn(short, end).await.expect("a turn"));
        }
        drop(first);
        assert!(sharing.turn(short, end).await.is_some());
    }
}
