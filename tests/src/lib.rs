//! The harness of the end-to-end tests: real processes, real services, and waits that say what they waited for.

mod api;
pub mod chaos;
mod cluster;
pub mod conformance;
mod crowded_database;
pub mod differential;
mod engine;
mod installation;
mod kubernetes;
pub mod lists;
mod lots;
mod manual_worker;
mod parts;
pub mod program;
mod services;
mod sick_engine;
pub mod timetables;
mod wait;

pub use api::{Answer, Api, ORDINARY};
pub use cluster::{Cluster, ROLES};
pub use crowded_database::CrowdedDatabase;
pub use engine::Engine;
pub use installation::{Installation, Process, SECRET};
pub use kubernetes::Kubernetes;
pub use manual_worker::{ManualWorker, membership, signed};
pub use parts::{
    IMAGE, docker, mariadb_database, mariadb_query, mariadb_url, python, rabbitmq_url, recordings, required,
    seeds,
};
pub use services::{KilledService, Service};
pub use sick_engine::{SickEngine, Sickness};
pub use wait::{eventually, wait_until};
