//! Who is calling.
//!
//! Three kinds of callers carry tokens signed with `[api_auth] jwt_secret`, told apart by their audience: users of the
//! REST API, workers, and single claims of workers. A token of one kind opens nothing of another.

mod passwords;
mod token;

pub use passwords::{PasswordError, Passwords};
pub use token::{ClaimToken, Role, TokenError, Tokens, UserToken};
