//! Where one is in a long list after so many rows, for databases that take long to pass rows over.

use crate::sql::Value;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a mark is good for.
const GOOD: Duration = Duration::from_secs(60);
/// Lists whose marks are kept.
const MOST: usize = 200;

/// The marks of one list: after how many rows it is at which row, and since when that is known.
#[derive(Debug, Default)]
pub(crate) struct List {
    marks: BTreeMap<u64, (Vec<Value>, Instant)>,
}

impl List {
    /// The last mark at or before that many rows.
    pub(crate) fn before(&self, rows: u64) -> Option<(u64, Vec<Value>)> {
        let mut earlier = self.marks.range(..=rows).rev();
        earlier
            .find(|(_, (_, since))| since.elapsed() < GOOD)
            .map(|(passed, (row, _))| (*passed, row.clone()))
    }

    /// After so many rows the list is at this one.
    pub(crate) fn note(&mut self, rows: u64, row: Vec<Value>) {
        self.marks.insert(rows, (row, Instant::now()));
    }
}

/// The marks of all lists. Who holds a list's is the one who goes along it.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    lists: Mutex<HashMap<String, Arc<tokio::sync::Mutex<List>>>>,
}

impl Marks {
    /// The marks of the list with that key.
    pub(crate) fn of(&self, key: String) -> Arc<tokio::sync::Mutex<List>> {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        if lists.len() >= MOST && !lists.contains_key(&key) {
            lists.clear();
        }
        lists.entry(key).or_default().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_mark_that_is_not_beyond_is_found() {
        let mut list = List::default();
        for rows in [10, 20, 30] {
            list.note(rows, vec![Value::Integer(i64::try_from(rows).expect("small"))]);
        }
        assert_eq!(list.before(9), None);
        assert_eq!(list.before(20), Some((20, vec![Value::Integer(20)])));
        assert_eq!(list.before(29), Some((20, vec![Value::Integer(20)])));
    }
}
