//! A Kubernetes cluster: where it is, calls of its API that outlive what is transient, what the status of a pod says, and
//! how Airflow names pods and merges them.

pub mod cluster;
pub mod merge;
pub mod names;
pub mod state;
