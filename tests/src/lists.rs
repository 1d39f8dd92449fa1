//! How lists behave that are large: a store filled with many task instances, and clients who ask for its lists.

mod client;
mod fill;
mod kinds;

pub use client::{Answers, Connection, Pace, Taken, drive};
pub use fill::{DAGS, fill};
pub use kinds::{KINDS, Kind, Store, path};
