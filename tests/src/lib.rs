//! The harness of the end-to-end tests: real processes, real services, and waits that say what they waited for.

mod api;
pub mod chaos;
mod cluster;
pub mod conformance;
pub mod differential;
mod engine;
mod installation;
mod kubernetes;
mod lots;
mod parts;
mod services;
pub mod timetables;
mod wait;

pub use api::{Answer, Api, ORDINARY};
pub use cluster::{Cluster, ROLES};
pub use engine::Engine;
pub use installation::{Installation, Process};
pub use kubernetes::Kubernetes;
pub use parts::{
    IMAGE, docker, mariadb_database, mariadb_query, mariadb_url, python, rabbitmq_url, recordings, required,
    seeds,
};
pub use services::{KilledService, Service};
pub use wait::{eventually, wait_until};
