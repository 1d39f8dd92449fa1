//! The same DAG files on real Airflow and on Updraft, and what a user sees of each.

mod compare;
mod engines;
mod observe;

pub use compare::{Chosen, Difference, compare};
pub use engines::{Engines, Side, airflow, airflow_with};
pub use observe::{Observed, last_words, observe, observe_all, runs};
