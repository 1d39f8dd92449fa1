//! What listeners of plugins are to be told: noted in the transaction in which it happens, told by a DAG processor.

use super::asset_events::NewAssetEvent;
use super::assets::AssetRecord;
use super::callbacks::NO_RUN;
use super::tasks::TaskInstanceRecord;
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::asset::Asset;
use model::task_instance::StateName;
use model::{AssetEventId, DagRunKey, Timestamp};
use serde_json::{Value as Json, json};

/// Name of the setting that holds the hooks of listeners (a JSON list).
const LISTENERS: &str = "listeners";

/// What listeners are told of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunNews {
    /// It began.
    Running,
    /// It succeeded.
    Success,
    /// It failed.
    Failed,
}

impl RunNews {
    /// The hook's name.
    pub const fn hook(self) -> &'static str {
        match self {
            Self::Running => "on_dag_run_running",
            Self::Success => "on_dag_run_success",
            Self::Failed => "on_dag_run_failed",
        }
    }
}

/// What listeners may be told. Each has a hook of Airflow's (`airflow/listeners/spec`).
#[derive(Debug)]
pub enum News<'a> {
    /// A run began or ended; the text says why.
    Run(DagRunKey, RunNews, &'a str),
    /// A task instance ended outside its own process: what it is now, what it was where that is known, and why it failed.
    Task(&'a TaskInstanceRecord, Option<StateName>, &'a str),
    /// An asset is new.
    AssetCreated(&'a Asset),
    /// An alias is new; its name and group.
    AliasCreated(&'a str, &'a str),
    /// An asset was updated.
    AssetChanged(&'a AssetRecord),
    /// A file cannot be imported, for the first time or again: its path and the stack trace.
    ImportError {
        /// Whether it could be imported before.
        is_new: bool,
        /// The file.
        path: &'a str,
        /// The stack trace.
        stack_trace: &'a str,
    },
    /// A component began or is about to end: its kind and host.
    Component {
        /// Whether it began.
        begins: bool,
        /// `scheduler`, `dag_processor`.
        kind: &'a str,
        /// Where it runs.
        hostname: &'a str,
    },
}

impl News<'_> {
    /// The hook, where there is one.
    fn hook(&self) -> Option<&'static str> {
        Some(match self {
            Self::Run(_, news, _) => news.hook(),
            Self::Task(ti, ..) => match ti.state {
                StateName::Success => "on_task_instance_success",
                // That another try follows is no matter here.
                StateName::Failed | StateName::UpForRetry => "on_task_instance_failed",
                StateName::Skipped => "on_task_instance_skipped",
                StateName::NoStatus
                | StateName::Scheduled
                | StateName::Queued
                | StateName::Running
                | StateName::Restarting
                | StateName::UpForReschedule
                | StateName::Deferred
                | StateName::AwaitingInput
                | StateName::UpstreamFailed
                | StateName::Removed => return None,
            },
            Self::AssetCreated(_) => "on_asset_created",
            Self::AliasCreated(..) => "on_asset_alias_created",
            Self::AssetChanged(_) => "on_asset_changed",
            Self::ImportError { is_new: true, .. } => "on_new_dag_import_error",
            Self::ImportError { is_new: false, .. } => "on_existing_dag_import_error",
            Self::Component { begins: true, .. } => "on_starting",
            Self::Component { begins: false, .. } => "before_stopping",
        })
    }

    /// The run that it is about.
    fn run(&self) -> Option<DagRunKey> {
        match self {
            Self::Run(key, ..) => Some(*key),
            Self::Task(ti, ..) => Some(ti.run_key),
            Self::AssetCreated(_)
            | Self::AliasCreated(..)
            | Self::AssetChanged(_)
            | Self::ImportError { .. }
            | Self::Component { .. } => None,
        }
    }

    /// Why a run began or ended.
    const fn reason(&self) -> &str {
        match self {
            Self::Run(_, _, why) => why,
            Self::Task(..)
            | Self::AssetCreated(_)
            | Self::AliasCreated(..)
            | Self::AssetChanged(_)
            | Self::ImportError { .. }
            | Self::Component { .. } => "",
        }
    }

    /// How it was when it happened. A run is shown as it is when listeners are told of it.
    fn facts(&self) -> Json {
        match self {
            Self::Run(..) => Json::Null,
            Self::Task(ti, previous, error) => json!({
                "task_instance": ti.for_listeners(), "error": error,
                "previous_state": previous.map(|state| state.as_str()),
            }),
            Self::AssetCreated(asset) => json!({
                "asset": {
                    "name": asset.key.name, "uri": asset.key.uri, "group": asset.group, "extra": asset.extra,
                },
            }),
            Self::AliasCreated(name, group) => json!({"asset_alias": {"name": name, "group": group}}),
            Self::AssetChanged(asset) => json!({"asset": asset.for_listeners()}),
            Self::ImportError {
                path, stack_trace, ..
            } => json!({"filename": path, "stacktrace": stack_trace}),
            Self::Component { kind, hostname, .. } => {
                json!({"component": {"kind": kind, "hostname": hostname}})
            }
        }
    }
}

impl AssetRecord {
    fn for_listeners(&self) -> Json {
        json!({
            "name": self.key.name, "uri": self.key.uri, "group": self.group,
            "extra": serde_json::from_str::<Json>(&self.extra).unwrap_or_default(),
        })
    }
}

impl TaskInstanceRecord {
    /// The columns of Airflow's `TaskInstance`.
    fn for_listeners(&self) -> Json {
        let when = |at: Option<Timestamp>| at.map(model::time::rest_format);
        json!({
            "id": self.id, "task_id": self.task_id, "dag_id": self.dag_id, "run_id": self.run_id,
            "map_index": self.map_index.0, "state": self.state.as_str(), "try_number": self.try_number.0,
            "max_tries": self.max_tries, "start_date": when(self.start_date), "end_date": when(self.end_date),
            "duration": self.duration(), "hostname": self.hostname, "unixname": self.unixname, "pool": self.pool,
            "pool_slots": self.pool_slots, "queue": self.queue, "priority_weight": self.priority_weight,
            "operator": self.operator, "custom_operator_name": self.operator_name, "pid": self.pid,
            "queued_dttm": when(self.queued_at), "scheduled_dttm": when(self.scheduled_at),
            "executor": self.executor, "dag_version_id": self.version_id,
        })
    }
}

/// The hooks that some plugin's listener has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooks(pub Vec<String>);

impl Hooks {
    /// Those of components.
    pub(super) fn of_components() -> Self {
        Self(vec!["on_starting".to_owned(), "before_stopping".to_owned()])
    }

    /// Whether nobody listens to anything.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a cluster policy has a word in each task instance.
    pub fn have_mutations(&self) -> bool {
        self.have("task_instance_mutation_hook")
    }

    /// Whether some listener has this hook.
    pub fn have(&self, hook: &str) -> bool {
        self.0.iter().any(|other| other == hook)
    }
}

impl Tx {
    /// The hooks that some plugin's listener has, as far as is known.
    ///
    /// # Errors
    /// As the database says.
    pub async fn listeners(&mut self) -> Result<Hooks, StoreError> {
        let known = self.known_setting(LISTENERS).await?;
        let hooks = known.and_then(|text| serde_json::from_str(&text).ok());
        Ok(Hooks(hooks.unwrap_or_default()))
    }

    /// Notes the hooks that some plugin's listener has.
    ///
    /// # Errors
    /// As the database says.
    pub async fn set_listeners(&mut self, hooks: &Hooks) -> Result<(), StoreError> {
        let text = serde_json::to_string(&hooks.0).unwrap_or_else(|_| "[]".to_owned());
        self.setting(LISTENERS, &|| "[]".to_owned()).await?;
        let sql = "UPDATE setting SET value = ? WHERE name = ?";
        self.execute(sql, params![text, LISTENERS]).await.map(|_| ())
    }

    /// Notes, in the transaction in which it happens, what listeners are to be told, if one of them wants to hear it.
    ///
    /// # Errors
    /// As the database says.
    pub async fn tell(&mut self, hooks: &Hooks, news: &News<'_>, now: Timestamp) -> Result<(), StoreError> {
        let Some(hook) = news.hook() else { return Ok(()) };
        if hooks.have(hook) {
            self.add_news(hook, news.run(), news.reason(), &news.facts(), now)
                .await?;
        }
        Ok(())
    }

    /// Notes what listeners are to be told of an update of an asset.
    pub(super) async fn tell_of_asset_event(
        &mut self,
        id: AssetEventId,
        event: &NewAssetEvent<'_>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let hooks = self.listeners().await?;
        let emitted = "on_asset_event_emitted";
        if !hooks.have(emitted) && !hooks.have("on_asset_changed") {
            return Ok(());
        }
        let Some(asset) = self.asset_by_id(event.asset).await? else {
            return Ok(());
        };
        self.tell(&hooks, &News::AssetChanged(&asset), now).await?;
        if !hooks.have(emitted) {
            return Ok(());
        }
        let aliases = self.aliases_of_asset_event(id).await?;
        let aliases = aliases
            .iter()
            .map(|alias| json!({"name": alias.name, "group": alias.group}));
        let source = event.source.task();
        let facts = json!({"asset_event": {
            "asset": asset.for_listeners(), "extra": event.extra,
            "source_dag_id": source.map(|ti| &ti.dag_id), "source_task_id": source.map(|ti| &ti.task_id),
            "source_run_id": source.map(|ti| &ti.run_id), "source_map_index": source.map(|ti| ti.map_index.0),
            "source_aliases": aliases.collect::<Vec<_>>(), "partition_key": event.partition_key,
            "partition_date": event.partition_date.map(model::time::rest_format),
        }});
        self.add_news(emitted, None, "", &facts, now).await
    }

    async fn add_news(
        &mut self,
        hook: &str,
        run: Option<DagRunKey>,
        reason: &str,
        facts: &Json,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO run_callback \
                   (run_key, is_failure, reason, created_at, claimed_until, attempts, listener, facts) \
                   VALUES (?, 0, ?, ?, 0, 0, ?, ?)";
        let facts = (!facts.is_null()).then(|| facts.to_string());
        let values = params![run.unwrap_or(NO_RUN), reason, now, hook, facts];
        self.execute(sql, values).await.map(|_| ())
    }
}
