//! Processes whose parent died: this process adopts and reaps them.
//!
//! Without that they would be left to the first process of the machine, or, where we are the first process of a
//! container, be ours and stay zombies for ever.

use crate::ends;
use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::collections::{HashMap, HashSet};
use std::process::ExitStatus;
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

/// How often zombies are looked for. One that somebody waits for is gone long before it is seen twice.
const LOOK: Duration = Duration::from_secs(1);

/// Children that somebody waits for, and how many do.
static KEPT: Mutex<Option<HashMap<i32, usize>>> = Mutex::new(None);

fn kept<T>(with: impl FnOnce(&mut HashMap<i32, usize>) -> T) -> T {
    with(
        KEPT.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert_default(),
    )
}

/// A child that somebody waits for: it is not reaped as an orphan until this is dropped.
#[derive(Debug)]
pub struct Kept(i32);

impl Kept {
    /// Keeps the child with this process id.
    pub fn new(pid: i32) -> Self {
        kept(|kept| *kept.entry(pid).or_insert(0) += 1);
        Self(pid)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        kept(|kept| {
            if let Some(count) = kept.get_mut(&self.0) {
                *count -= 1;
                if *count == 0 {
                    kept.remove(&self.0);
                }
            }
        });
    }
}

/// Makes this process the one that adopts orphans among its descendants, and reaps those that nobody waits for. Once for
/// each process; later calls change nothing.
pub fn adopt() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Err(error) = nix::sys::prctl::set_child_subreaper(true) {
            tracing::warn!("orphans of tasks cannot be adopted: {error}");
        }
        let thread = std::thread::Builder::new()
            .name("orphans".to_owned())
            .spawn(reap_for_ever);
        if let Err(error) = thread {
            tracing::warn!("orphans of tasks will not be reaped: {error}");
        }
    });
}

fn reap_for_ever() {
    let mut seen = HashSet::new();
    loop {
        std::thread::sleep(LOOK);
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::All, peek) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD | Errno::EINTR) => {
                seen.clear();
                continue;
            }
            // An error, too, where one ended by a real-time signal.
            Ok(_) | Err(_) => {}
        }
        let mut zombies = zombies();
        kept(|kept| zombies.retain(|pid| !kept.contains_key(pid)));
        for pid in zombies.intersection(&seen) {
            ends::reap(*pid).ok();
        }
        seen = zombies;
    }
}

/// Children of this process that have ended and were not reaped.
fn zombies() -> HashSet<i32> {
    let own = Pid::this().as_raw();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // The name, in brackets, may hold anything.
            let mut facts = stat
                .rsplit_once(')')
                .map_or("", |(_, facts)| facts)
                .split_whitespace();
            facts.next() == Some("Z") && facts.next() == Some(own.to_string().as_str())
        })
        .collect()
}

/// Waits until a child, also one that was adopted, has ended, and reaps it. Blocks. `None` when it is no child of ours.
pub fn wait(pid: i32) -> Option<ExitStatus> {
    ends::wait(pid).ok()
}

/// Waits until a child has ended, without reaping it. Blocks for `patience` at most. Returns `true` when it has ended, or
/// is no child of ours.
pub fn has_ended(pid: i32, patience: Duration) -> bool {
    let begin = Instant::now();
    let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        match waitid(Id::Pid(Pid::from_raw(pid)), peek) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => {}
            Ok(_) | Err(_) => return true,
        }
        if begin.elapsed() > patience {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
