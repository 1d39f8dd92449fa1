//! The gRPC control plane `updraft.v1`: generated code, and the way between its messages and the model.

#[expect(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::or_fun_call,
    clippy::needless_pass_by_value,
    reason = "generated"
)]
#[allow(
    unfulfilled_lint_expectations,
    reason = "generated code changes with its generator"
)]
pub mod v1 {
    tonic::include_proto!("updraft.v1");
}

mod convert;

pub use convert::{InvalidMessage, outcome_of};

/// The compiled protocol files, for reflection.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("descriptor");

/// Size of a control message that either side accepts, in bytes, where a task's own may have `max_message_bytes`: what is
/// compact in a task's message may take twice as much as JSON.
pub const fn message_limit(max_message_bytes: usize) -> usize {
    2 * max_message_bytes + (1 << 20)
}
