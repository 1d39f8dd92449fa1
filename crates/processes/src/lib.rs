//! What holds for every child process, whoever starts it: the lease without which none begins ([`lease`]), and who reaps
//! those whose own parent died ([`orphans`]). [`pause`] is for tests.

pub mod lease;
pub mod orphans;
pub mod pause;
