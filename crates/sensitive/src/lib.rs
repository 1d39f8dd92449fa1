//! Which names make a value secret, and how secrets are kept out of logs, rendered fields and answers: the one place for
//! what Airflow's `secrets_masker` does.

mod masker;
mod names;

pub use masker::Masker;
pub use names::Names;
