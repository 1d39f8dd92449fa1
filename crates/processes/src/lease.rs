//! The lease of a worker, as its child processes see it.
//!
//! A worker may start a task only while it holds its lease: afterwards others may have started the same task. The worker
//! itself cannot make sure of that, since it may be stopped between its last look at the lease and the start. So every
//! child looks for itself, as its last step before user code: the end of the lease stands in a page of memory that worker
//! and children share, by a clock that goes on while processes are stopped and while the machine sleeps.

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::uio::pread;
use nix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bytes of the page: the life, the end of the lease, and the two combined with [`SEAL`], each 8 bytes, little endian.
const LENGTH: usize = 24;
/// Tells a whole record from one that is being written. The Python shim knows it, too.
const SEAL: u64 = 0x7570_6472_6166_7431;
/// How often a record is read again that was being written.
const READS: usize = 1000;
/// A lease that is renewed with less time left than this counts as one that had run out: the watchdog, which hears of the
/// renewal a moment later, may have killed already.
const CLOSE: Duration = Duration::from_millis(100);

/// An instant of the clock that goes on while processes are stopped and while the machine sleeps (`CLOCK_BOOTTIME`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootInstant(u64);

impl BootInstant {
    /// Now. Safe to call between fork and exec.
    pub fn now() -> Self {
        clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Self(u64::MAX), |time| {
            Self(Duration::from(time).as_nanos().try_into().unwrap_or(u64::MAX))
        })
    }

    /// The instant with this number of nanoseconds since the machine was started.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the machine was started.
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// The instant that much later.
    #[must_use]
    pub fn after(self, more: Duration) -> Self {
        Self(
            self.0
                .saturating_add(more.as_nanos().try_into().unwrap_or(u64::MAX)),
        )
    }

    /// The time left until then; zero when it has passed.
    pub fn left(self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(Self::now().0))
    }
}

#[derive(Debug)]
struct Page {
    writer: File,
    /// Opened for reading only: this one is handed to children.
    reader: File,
    /// Number of the present life; what the page says lags behind it.
    life: AtomicU64,
    /// The end of the lease, as the page says.
    until: AtomicU64,
    /// How often the lease ran out and was renewed all the same.
    lapses: AtomicU64,
}

/// The lease of this worker. Clones share it.
#[derive(Debug, Clone)]
pub struct Lease {
    page: Arc<Page>,
}

impl Lease {
    /// A lease that has not begun: nothing may start.
    ///
    /// # Errors
    /// When the system gives no memory for it.
    pub fn new() -> io::Result<Self> {
        let writer = File::from(memfd_create("updraft-lease", MFdFlags::MFD_CLOEXEC)?);
        writer.set_len(LENGTH as u64)?;
        let reader = File::open(format!("/proc/self/fd/{}", writer.as_raw_fd()))?;
        let page = Page {
            writer,
            reader,
            life: AtomicU64::new(0),
            until: AtomicU64::new(0),
            lapses: AtomicU64::new(0),
        };
        Ok(Self { page: Arc::new(page) })
    }

    /// Begins a new life of the worker, with a lease until then. What was permitted in earlier lives is void.
    pub fn begin(&self, until: BootInstant) {
        let life = self.page.life.fetch_add(1, Ordering::SeqCst) + 1;
        self.write(life, until);
    }

    /// Prolongs the lease of the present life.
    pub fn keep(&self, until: BootInstant) {
        let before = BootInstant(self.page.until.load(Ordering::SeqCst));
        if before.left() < CLOSE {
            self.page.lapses.fetch_add(1, Ordering::SeqCst);
        }
        self.write(self.page.life.load(Ordering::SeqCst), until);
    }

    /// Ends the present life: nothing may start any more.
    pub fn end(&self) {
        self.page.life.fetch_add(1, Ordering::SeqCst);
        self.write(0, BootInstant(0));
    }

    /// A permit to start something in the present life. It is taken before a claim is asked for, so that a claim which
    /// is granted to an earlier life permits nothing in the next one.
    pub fn permit(&self) -> Permit {
        Permit {
            page: Arc::clone(&self.page),
            life: self.page.life.load(Ordering::SeqCst),
            lapses: self.page.lapses.load(Ordering::SeqCst),
        }
    }

    fn write(&self, life: u64, until: BootInstant) {
        self.page.until.store(until.0, Ordering::SeqCst);
        let mut bytes = [0; LENGTH];
        for (place, number) in bytes
            .chunks_exact_mut(8)
            .zip([life, until.0, life ^ until.0 ^ SEAL])
        {
            place.copy_from_slice(&number.to_le_bytes());
        }
        // Memory that was given cannot be refused later; were it so, the lease would run out.
        if let Err(error) = self.page.writer.write_all_at(&bytes, 0) {
            tracing::error!("the lease cannot be written down: {error}");
        }
    }
}

/// A permit to start something, good for one life of the worker while it holds its lease.
#[derive(Debug, Clone)]
pub struct Permit {
    page: Arc<Page>,
    life: u64,
    lapses: u64,
}

impl Permit {
    /// A permit without a lease behind it: it always holds.
    ///
    /// # Errors
    /// When the system gives no memory for it.
    pub fn without_end() -> io::Result<Self> {
        let lease = Lease::new()?;
        lease.begin(BootInstant(u64::MAX));
        Ok(lease.permit())
    }

    /// The life of the worker that it was given in.
    pub fn life(&self) -> u64 {
        self.life
    }

    /// The page that says how long it is good, open for reading.
    pub fn page(&self) -> BorrowedFd<'_> {
        self.page.reader.as_fd()
    }

    /// Returns `true` when the life that it was given in is over: it will never hold again.
    pub fn is_over(&self) -> bool {
        self.page.life.load(Ordering::SeqCst) != self.life
    }

    /// Returns `true` when the lease has run out at any moment since it was given, even if it was renewed later: the watchdog
    /// has killed what was started with it.
    pub fn has_lapsed(&self) -> bool {
        let until = BootInstant(self.page.until.load(Ordering::SeqCst));
        self.is_over() || self.page.lapses.load(Ordering::SeqCst) != self.lapses || until.left().is_zero()
    }

    /// Returns `true` while something may be started with it. Safe to call between fork and exec: it allocates nothing and
    /// takes no lock.
    pub fn holds(&self) -> bool {
        for _ in 0..READS {
            let mut bytes = [0; LENGTH];
            if pread(&self.page.reader, &mut bytes, 0) != Ok(LENGTH) {
                return false;
            }
            let number = |place: usize| {
                let mut part = [0; 8];
                part.copy_from_slice(&bytes[place * 8..place * 8 + 8]);
                u64::from_le_bytes(part)
            };
            let (life, until, sealed) = (number(0), number(1), number(2));
            if life ^ until ^ SEAL == sealed {
                return life == self.life && life != 0 && BootInstant::now().0 < until;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn later() -> BootInstant {
        BootInstant::now().after(Duration::from_secs(60))
    }

    #[test]
    fn a_permit_holds_in_its_own_life_and_while_the_lease_does() {
        let lease = Lease::new().unwrap();
        assert!(!lease.permit().holds(), "nothing starts before the first life");
        lease.begin(later());
        let permit = lease.permit();
        assert!(permit.holds());
        lease.keep(BootInstant::now());
        assert!(!permit.holds(), "the lease has run out");
        lease.keep(later());
        assert!(permit.holds(), "it was renewed after all");
        lease.begin(later());
        assert!(!permit.holds(), "another life has begun");
        assert!(lease.permit().holds());
        let permit = lease.permit();
        lease.end();
        assert!(!permit.holds());
        assert!(!lease.permit().holds());
    }

    #[test]
    fn a_lease_that_ran_out_has_lapsed_for_all_that_was_permitted_before() {
        let lease = Lease::new().unwrap();
        lease.begin(later());
        let permit = lease.permit();
        lease.keep(later());
        assert!(!permit.has_lapsed());
        lease.keep(BootInstant::now());
        assert!(permit.has_lapsed());
        lease.keep(later());
        assert!(
            permit.has_lapsed() && permit.holds(),
            "what was killed stays killed"
        );
        assert!(!lease.permit().has_lapsed());
        lease.begin(later());
        assert!(permit.has_lapsed(), "another life has begun");
    }

    #[test]
    fn children_cannot_prolong_the_lease() {
        let lease = Lease::new().unwrap();
        lease.begin(later());
        let page = lease.permit().page().try_clone_to_owned().unwrap();
        assert!(File::from(page).write_at(&[1; 8], 0).is_err());
    }
}
