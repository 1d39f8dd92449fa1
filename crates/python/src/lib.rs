//! Drives Python.
//!
//! User code runs only in children of a [`ForkServer`]: one child per task try, one per parse of a DAG file. A child
//! speaks the supervisor schema of the Task SDK ([`frames`], [`messages`]) on a socket; whatever it does harms only
//! its own task or file.

mod bundle;
pub mod environment;
mod fork_server;
pub mod frames;
pub mod messages;
mod parse;
mod shim;
mod startup;

pub use bundle::Bundle;
pub use fork_server::{Child, ChildExit, ForkServer, ForkServerConfig, PythonError, Work};
pub use parse::{
    Instead, OldForm, ParseFailure, ParseLimits, ParseRequest, ParsedFile, PythonDag, parse_file,
};
pub use startup::Startup;
