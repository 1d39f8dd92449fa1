//! Waiting for conditions, never for time.

use std::time::{Duration, Instant};

/// Waits until `look` gives a value; its `Err` says what was seen last.
///
/// # Panics
/// After `patience`, with what was seen last.
pub fn eventually<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let begin = Instant::now();
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) => assert!(
                begin.elapsed() < patience,
                "{what}: not within {} s; last seen: {seen}",
                patience.as_secs()
            ),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until a condition holds.
///
/// # Panics
/// After `patience`.
pub fn wait_until(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) {
    eventually(what, patience, || {
        if holds() {
            Ok(())
        } else {
            Err("it does not hold".to_owned())
        }
    });
}
