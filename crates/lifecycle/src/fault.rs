//! Faults that tests ask for, in debug builds only: `UPDRAFT_TEST_FAULT=panic:PART`, `end:PART` or `hang:PART` makes the
//! first part of that name panic, end, or never do anything.

use std::sync::atomic::{AtomicBool, Ordering};

/// What a part is to do in place of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Panic,
    End,
    Hang,
}

/// The fault that the environment asks for in the part of this name, once.
pub(crate) fn asked_for(name: &str) -> Option<Fault> {
    static GIVEN: AtomicBool = AtomicBool::new(false);
    let wish = std::env::var("UPDRAFT_TEST_FAULT").ok()?;
    let (kind, part) = wish.split_once(':')?;
    if part != name || GIVEN.swap(true, Ordering::Relaxed) {
        return None;
    }
    match kind {
        "panic" => Some(Fault::Panic),
        "end" => Some(Fault::End),
        "hang" => Some(Fault::Hang),
        _ => None,
    }
}
