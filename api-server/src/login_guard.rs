//! Slows down those who guess passwords.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Wrong passwords of one user from one address that cost nothing.
const FREE: u32 = 5;
/// Wrong passwords from one address, whosever, that cost nothing.
const FREE_OF_ADDRESS: u32 = 50;
/// The longest wait between two attempts.
const LONGEST: Duration = Duration::from_secs(60);
/// After this time without an attempt all is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(900);
/// Entries that are kept.
const MOST: usize = 10_000;

type Key = (IpAddr, Option<String>);

#[derive(Debug, Clone, Copy)]
struct Tries {
    failed: u32,
    last: Instant,
}

impl Tries {
    /// How long the next attempt has to wait: from the last free one on, one second, then twice as long each time.
    fn wait(&self, free: u32, now: Instant) -> Option<Duration> {
        let beyond = self.failed.checked_sub(free)?;
        let wait = Duration::from_secs(1u64 << beyond.min(6)).min(LONGEST);
        wait.checked_sub(now.duration_since(self.last))
            .filter(|wait| !wait.is_zero())
    }
}

/// Attempts to log in that failed lately, by user and address.
#[derive(Debug, Default)]
pub(crate) struct LoginGuard {
    tries: Mutex<HashMap<Key, Tries>>,
}

fn keys(address: IpAddr, user: &str) -> [(Key, u32); 2] {
    // Nobody has a name this long; it is not to be kept whole.
    let user = user.chars().take(250).collect();
    [((address, Some(user)), FREE), ((address, None), FREE_OF_ADDRESS)]
}

impl LoginGuard {
    /// Notes an attempt, which counts as failed until [`LoginGuard::succeeded`]. `Err` says how long to wait instead.
    pub(crate) fn attempt(&self, address: IpAddr, user: &str, now: Instant) -> Result<(), Duration> {
        let mut tries = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = keys(address, user);
        let wait = keys
            .iter()
            .filter_map(|(key, free)| tries.get(key)?.wait(*free, now))
            .max();
        if let Some(wait) = wait {
            return Err(wait);
        }
        if tries.len() + keys.len() > MOST {
            make_room(&mut tries, now);
        }
        for (key, _) in keys {
            let entry = tries.entry(key).or_insert(Tries { failed: 0, last: now });
            if now.duration_since(entry.last) > FORGOTTEN {
                entry.failed = 0;
            }
            entry.failed = entry.failed.saturating_add(1);
            entry.last = now;
        }
        Ok(())
    }

    /// The attempt succeeded: nothing is held against the user, and it is none of the address's failures.
    pub(crate) fn succeeded(&self, address: IpAddr, user: &str) {
        let mut tries = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
        let [(of_user, _), (of_address, _)] = keys(address, user);
        tries.remove(&of_user);
        if let Some(entry) = tries.get_mut(&of_address) {
            entry.failed = entry.failed.saturating_sub(1);
        }
    }
}

/// Forgets what is old; if that is too little, the half that has been quiet for longest.
fn make_room(tries: &mut HashMap<Key, Tries>, now: Instant) {
    tries.retain(|_, entry| now.duration_since(entry.last) <= FORGOTTEN);
    if tries.len() + 2 > MOST {
        let mut ages: Vec<Instant> = tries.values().map(|entry| entry.last).collect();
        ages.sort_unstable();
        let middle = ages[ages.len() / 2];
        tries.retain(|_, entry| entry.last > middle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn guesses_wait_longer_and_longer_and_others_do_not() {
        let (guard, begin) = (LoginGuard::default(), Instant::now());
        for _ in 0..FREE {
            assert_eq!(guard.attempt(HERE, "a", begin), Ok(()));
        }
        assert_eq!(guard.attempt(HERE, "a", begin), Err(Duration::from_secs(1)));
        let later = begin + Duration::from_secs(1);
        assert_eq!(guard.attempt(HERE, "a", later), Ok(()));
        assert_eq!(guard.attempt(HERE, "a", later), Err(Duration::from_secs(2)));
        assert_eq!(guard.attempt(HERE, "b", later), Ok(()));
        guard.succeeded(HERE, "a");
        assert_eq!(guard.attempt(HERE, "a", later), Ok(()));
    }

    #[test]
    fn one_address_that_tries_many_users_waits_too_and_the_table_does_not_grow() {
        let (guard, begin) = (LoginGuard::default(), Instant::now());
        let refused = (0..100).filter(|n| guard.attempt(HERE, &n.to_string(), begin).is_err());
        assert_eq!(refused.count(), 50);
        for n in 0..20_000u32 {
            let address = IpAddr::V4(Ipv4Addr::from(n));
            guard
                .attempt(address, "a", begin + Duration::from_millis(n.into()))
                .ok();
        }
        assert!(guard.tries.lock().expect("no panic").len() <= MOST);
    }
}
