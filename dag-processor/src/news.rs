//! Listeners of plugins: which hooks they have.

use crate::Shared;
use serde_json::{Value, json};
use store::repo::Hooks;

impl Shared {
    /// Notes which hooks listeners of plugins have: plugins may have come or gone while no file changed. Whether it is done.
    pub(crate) async fn note_listeners(&self) -> bool {
        let answer = match self.ask(json!({"kind": "listeners"})).await {
            Ok(answer) => answer,
            Err(why) => {
                tracing::warn!("Python does not say which listeners there are, asking again: {why}");
                return false;
            }
        };
        let listed = answer.get("listeners").and_then(Value::as_array);
        let words = listed.into_iter().flatten().filter_map(Value::as_str);
        let hooks = Hooks(words.map(str::to_owned).collect());
        let noted = store::transact!(self.store, "note listeners", |tx| tx.set_listeners(&hooks).await);
        if let Err(error) = &noted {
            tracing::warn!("listeners cannot be noted, trying again: {error}");
        }
        noted.is_ok()
    }
}
