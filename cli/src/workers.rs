//! `workers`

use crate::arguments::WorkersCommand;
use crate::output::print;
use config::Config;
use identity::JoinToken;

pub(crate) fn run(command: &WorkersCommand, config: &Config) -> anyhow::Result<()> {
    let WorkersCommand::JoinToken { pool } = command;
    // As strict as an API server: a secret that it would not take makes no token.
    bootstrap::tokens(config)?;
    let token = JoinToken::of_pool(&config.api_auth.jwt_secret, pool)?;
    if !config.updraft.worker_pools.contains(pool) {
        use std::io::Write;
        writeln!(
            std::io::stderr(),
            "note: API servers accept this token once {pool:?} is among [updraft] worker_pools, which is {:?} here",
            config.updraft.worker_pools.join(",")
        )
        .ok();
    }
    print(&format!("{}\n", token.text().expose()));
    Ok(())
}
