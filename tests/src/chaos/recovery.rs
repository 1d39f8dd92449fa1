//! Looks whether everything goes on: what the fault struck has been taken up again, and a new run comes through.

use super::faults::World;
use super::load::{Answered, trigger};
use crate::Api;
use std::time::Duration;

/// How long an answer to a probe's trigger may take.
const ANSWER: Duration = Duration::from_secs(2);

/// What must change until a fault is recovered from.
pub(super) struct Recovery {
    /// Claims that must not be running any more: task instances, and the numbers of their claims.
    claims: Vec<(String, String)>,
    /// Task instances that must not wait any more.
    waiting: Vec<(String, String)>,
    /// The server that must take the probe, if not any.
    server: Option<usize>,
    run_id: String,
    is_triggered: bool,
    attempts: usize,
}

impl Recovery {
    /// What is to be waited for after the fault of that number.
    pub(super) fn new(number: usize, claims: Vec<(String, String)>, server: Option<usize>) -> Self {
        Self {
            claims,
            waiting: Vec::new(),
            server,
            run_id: format!("p{number}"),
            is_triggered: false,
            attempts: number,
        }
    }

    /// These must not wait any more, either.
    pub(super) fn add_waiting(&mut self, waiting: Vec<(String, String)>) {
        self.waiting.extend(waiting);
    }

    /// Looks whether all is as before; what is not.
    pub(super) fn look(&mut self, world: &mut World, apis: &[Api; 2]) -> Option<String> {
        if !self.is_triggered {
            let server = self.server.unwrap_or(self.attempts % 2);
            self.attempts += 1;
            let api = apis[server].patient(ANSWER);
            self.is_triggered = trigger(&api, "chaos_probe", &self.run_id) == Answered::Accepted;
            if !self.is_triggered {
                return Some("no run can be triggered".to_owned());
            }
        }
        match self.ask(world) {
            Ok(left) => left,
            Err(error) => Some(format!("the database cannot be asked: {error:#}")),
        }
    }

    fn ask(&self, world: &mut World) -> anyhow::Result<Option<String>> {
        let sql = format!(
            "SELECT state FROM dag_run WHERE dag_id = 'chaos_probe' AND run_id = '{}'",
            self.run_id
        );
        let states = world.session.column(&sql)?;
        let state = states.first().map_or("absent", String::as_str);
        let mut left = Vec::new();
        if state != "success" {
            let sql = format!(
                "SELECT CONCAT(task_id, ' ', COALESCE(state, 'none')) FROM task_instance \
                 WHERE dag_id = 'chaos_probe' AND run_id = '{}'",
                self.run_id
            );
            let tasks = world.session.column(&sql)?.join(", ");
            left.push(format!("the probe {} is {state} ({tasks})", self.run_id));
        }
        for (pairs, state, what) in [
            (
                &self.claims,
                "running",
                "claims of the fault's victim are still running",
            ),
            (
                &self.waiting,
                "queued",
                "task instances still wait for their message",
            ),
        ] {
            if pairs.is_empty() {
                continue;
            }
            let list: Vec<String> = pairs
                .iter()
                .map(|(id, epoch)| format!("('{id}', {epoch})"))
                .collect();
            let sql = format!(
                "SELECT COUNT(*) FROM task_instance WHERE state = '{state}' AND (HEX(id), claim_epoch) IN ({})",
                list.join(", ")
            );
            let count = world.session.number(&sql)?;
            if count > 0 {
                left.push(format!("{count} {what}"));
            }
        }
        Ok((!left.is_empty()).then(|| left.join("; ")))
    }
}
