//! What holds for every child process, whoever starts it: the lease without which none begins ([`lease`]), how a program is
//! started ([`program`]), and who reaps those whose own parent died ([`orphans`]). [`pause`] is for tests.

mod ends;
pub mod lease;
pub mod orphans;
pub mod pause;
pub mod program;
