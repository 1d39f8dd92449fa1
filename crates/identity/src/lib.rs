//! Who is calling.
//!
//! What API servers sign with `[api_auth] jwt_secret` is told apart by its audience: tokens of users of the REST API, of
//! workers, of their watchdogs, and of single claims of workers. A token of one kind opens nothing of another.
//!
//! A worker has no such key. It registers with the join token of its pool, and proves a key of its own by which it is known
//! as long as it lives.

mod join;
mod passwords;
mod token;

pub use join::{Applicant, Application, JoinError, JoinToken, Membership, Pools};
pub use passwords::{PasswordError, Passwords};
pub use token::{ClaimToken, Role, TokenError, Tokens, UserToken};
