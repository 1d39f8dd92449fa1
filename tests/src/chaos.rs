//! The fault campaign of `cargo xtask chaos`: a cluster under load, faults drawn from a seed, a witness that no component
//! touches, and checks of what is promised.

mod campaign;
mod checks;
mod database;
mod disk;
mod ending;
mod faults;
mod kinds;
mod load;
mod members;
mod proxy;
mod recovery;
mod report;
mod schedule;
mod silence;
mod witness;

pub use campaign::{Plan, run};
pub use checks::Broken;
pub use kinds::{KINDS, Kind, find};
pub use load::Amount;
pub use report::{Happened, Report};
pub use schedule::{Planned, draw};
