//! The steps of each migration. A step is only ever added, never changed.

use super::{Step, Wider, index, unique, widen};

/// Whether a DAG's tasks take slots of several pools; and task instances that Python is to be asked about.
pub(super) const MUTATIONS: &[Step] = &[
    Step::Column {
        table: "dag",
        name: "has_several_pools",
        word: "INT64",
    },
    Step::Table {
        name: "ti_mutation",
        columns: "ti_id UUID NOT NULL PRIMARY KEY, run_key INT64 NOT NULL, claimed_until INT64 NOT NULL",
    },
    index("ix_ti_mutation_run", "ti_mutation", "run_key"),
    index("ix_ti_mutation_claim", "ti_mutation", "claimed_until, ti_id"),
];

/// What tasks keep for their own next try.
pub(super) const TASK_STATES: &[Step] = &[Step::Table {
    name: "task_state",
    columns:
        "run_key INT64 NOT NULL, task_id NAME NOT NULL, map_index INT64 NOT NULL, state_key NAME NOT NULL,
            value TEXT NOT NULL, expires_at INT64,
            PRIMARY KEY (run_key, task_id, map_index, state_key)",
}];

/// Which executor a task asks for.
pub(super) const EXECUTORS: &[Step] = &[
    Step::Column {
        table: "task_instance",
        name: "executor",
        word: "NAME",
    },
    Step::Column {
        table: "outbox",
        name: "executor",
        word: "NAME",
    },
];

/// Callbacks of runs that have ended, until they have been called.
pub(super) const CALLBACKS: &[Step] = &[
    Step::Table {
        name: "run_callback",
        columns:
            "id KEY64, run_key INT64 NOT NULL, ti_id UUID, is_failure INT64 NOT NULL, reason WORD NOT NULL,
            created_at INT64 NOT NULL, claimed_until INT64 NOT NULL, attempts INT64 NOT NULL",
    },
    index("ix_run_callback", "run_callback", "claimed_until, id"),
];

/// Assets, who reads and writes them, their updates, and the runs that these start.
pub(super) const ASSETS: &[Step] = &[
    Step::Table {
        name: "asset",
        columns:
            "id KEY64, key_hash WORD NOT NULL, name NAME NOT NULL, uri PATH NOT NULL, asset_group NAME NOT NULL,
            extra TEXT NOT NULL, is_active INT64 NOT NULL, created_at INT64 NOT NULL, updated_at INT64 NOT NULL",
    },
    unique("ux_asset", "asset", "key_hash"),
    index("ix_asset_name", "asset", "name"),
    index("ix_asset_uri", "asset", "uri"),
    Step::Table {
        name: "asset_alias",
        columns: "id KEY64, name NAME NOT NULL, asset_group NAME NOT NULL",
    },
    unique("ux_asset_alias", "asset_alias", "name"),
    Step::Table {
        name: "asset_alias_asset",
        columns: "alias_id INT64 NOT NULL, asset_id INT64 NOT NULL, PRIMARY KEY (alias_id, asset_id)",
    },
    index("ix_asset_alias_asset", "asset_alias_asset", "asset_id"),
    // Who names what: target is an asset or an alias; a reference by name or URI has words instead.
    Step::Table {
        name: "asset_reference",
        columns: "id KEY64, dag_id NAME NOT NULL, task_id NAME NOT NULL, kind WORD NOT NULL, target INT64 NOT NULL,
            words PATH, created_at INT64 NOT NULL, updated_at INT64 NOT NULL",
    },
    index("ix_asset_reference", "asset_reference", "kind, target"),
    index("ix_asset_reference_dag", "asset_reference", "dag_id, kind"),
    Step::Table {
        name: "asset_event",
        columns: "id KEY64, asset_id INT64 NOT NULL, created_at INT64 NOT NULL, extra TEXT NOT NULL,
            source_dag_id NAME, source_run_id NAME, source_task_id NAME, source_map_index INT64 NOT NULL,
            partition_key NAME",
    },
    index("ix_asset_event", "asset_event", "asset_id, created_at"),
    index("ix_asset_event_age", "asset_event", "created_at"),
    index("ix_asset_event_source", "asset_event", "source_dag_id, source_run_id"),
    Step::Table {
        name: "asset_event_alias",
        columns: "event_id INT64 NOT NULL, alias_id INT64 NOT NULL, PRIMARY KEY (event_id, alias_id)",
    },
    index("ix_asset_event_alias", "asset_event_alias", "alias_id"),
    // Updates that a DAG has not consumed yet. One that came while the DAG was paused starts nothing by itself.
    Step::Table {
        name: "asset_queue",
        columns: "dag_id NAME NOT NULL, event_id INT64 NOT NULL, asset_id INT64 NOT NULL, is_trigger INT64 NOT NULL,
            created_at INT64 NOT NULL, PRIMARY KEY (dag_id, event_id)",
    },
    index("ix_asset_queue", "asset_queue", "is_trigger, dag_id"),
    index("ix_asset_queue_asset", "asset_queue", "asset_id"),
    Step::Table {
        name: "run_asset_event",
        columns: "run_key INT64 NOT NULL, event_id INT64 NOT NULL, PRIMARY KEY (run_key, event_id)",
    },
    index("ix_run_asset_event", "run_asset_event", "event_id"),
    Step::Table {
        name: "asset_state",
        columns: "asset_id INT64 NOT NULL, state_key NAME NOT NULL, value TEXT NOT NULL, updated_at INT64 NOT NULL,
            writer TEXT, PRIMARY KEY (asset_id, state_key)",
    },
    Step::Column {
        table: "dag",
        name: "asset_expression",
        word: "TEXT",
    },
    Step::Column {
        table: "dag_run",
        name: "partition_key",
        word: "NAME",
    },
    Step::Column {
        table: "dag_run",
        name: "partition_date",
        word: "INT64",
    },
];

/// Triggers that need Python: those that tasks wait for, and those that watch over assets.
pub(super) const TRIGGERS: &[Step] = &[
    Step::Table {
        name: "pending_trigger",
        columns: "id KEY64, ti_id UUID, claim_epoch INT64 NOT NULL, watcher_hash WORD, classpath TEXT NOT NULL,
            kwargs TEXT NOT NULL, is_encrypted INT64 NOT NULL, queue NAME, next_method NAME, next_kwargs TEXT,
            timeout_at INT64, worker_id UUID, created_at INT64 NOT NULL",
    },
    index("ix_pending_trigger_ti", "pending_trigger", "ti_id"),
    index("ix_pending_trigger_worker", "pending_trigger", "worker_id, id"),
    unique("ux_pending_trigger_watcher", "pending_trigger", "watcher_hash"),
    Step::Table {
        name: "asset_watcher",
        columns: "id KEY64, dag_id NAME NOT NULL, asset_id INT64 NOT NULL, name NAME NOT NULL, watcher_hash WORD NOT NULL,
            created_at INT64 NOT NULL",
    },
    index("ix_asset_watcher", "asset_watcher", "asset_id"),
    index("ix_asset_watcher_dag", "asset_watcher", "dag_id"),
    index("ix_asset_watcher_hash", "asset_watcher", "watcher_hash"),
    Step::Column {
        table: "worker",
        name: "trigger_capacity",
        word: "INT64",
    },
];

/// Backfills, and what became of each of their dates.
pub(super) const BACKFILLS: &[Step] = &[
    Step::Table {
        name: "backfill",
        columns: "id KEY64, dag_id NAME NOT NULL, from_date INT64 NOT NULL, to_date INT64 NOT NULL, conf TEXT,
            is_paused INT64 NOT NULL, reprocess WORD NOT NULL, max_active_runs INT64 NOT NULL, created_at INT64 NOT NULL,
            completed_at INT64, updated_at INT64 NOT NULL, triggering_user NAME",
    },
    index("ix_backfill", "backfill", "dag_id, completed_at"),
    Step::Table {
        name: "backfill_run",
        columns: "id KEY64, backfill_id INT64 NOT NULL, run_key INT64, exception_reason WORD, logical_date INT64,
            partition_key NAME, sort_ordinal INT64 NOT NULL",
    },
    index("ix_backfill_run", "backfill_run", "backfill_id, sort_ordinal"),
    index("ix_backfill_run_key", "backfill_run", "run_key"),
    Step::Column {
        table: "dag_run",
        name: "backfill_id",
        word: "INT64",
    },
    index("ix_dag_run_backfill", "dag_run", "backfill_id, state"),
    Step::Column {
        table: "dag",
        name: "allowed_run_types",
        word: "TEXT",
    },
];

/// Questions that tasks ask people, one for each try.
pub(super) const HUMAN_INPUT: &[Step] = &[
    Step::Table {
        name: "hitl_detail",
        columns: "ti_id UUID NOT NULL, try_number INT64 NOT NULL, run_key INT64 NOT NULL, subject TEXT NOT NULL, body TEXT,
            options TEXT NOT NULL, defaults TEXT, multiple INT64 NOT NULL, params TEXT NOT NULL, assignees TEXT NOT NULL,
            created_at INT64 NOT NULL, responded_at INT64, responded_by TEXT, chosen_options TEXT, params_input TEXT,
            PRIMARY KEY (ti_id, try_number)",
    },
    index("ix_hitl_run", "hitl_detail", "run_key"),
];

/// What changed since the last plan of a run, so that the next one need not read everything.
pub(super) const TASK_EVENTS: &[Step] = &[
    Step::Column {
        table: "run_event",
        name: "ti_id",
        word: "UUID",
    },
    Step::Column {
        table: "dag_run",
        name: "plan_number",
        word: "INT64",
    },
];

/// Callbacks of tasks whose process could not call them.
pub(super) const TASK_CALLBACKS: &[Step] = &[
    Step::Column {
        table: "run_callback",
        name: "task_state",
        word: "WORD",
    },
    Step::Column {
        table: "run_callback",
        name: "try_number",
        word: "INT64",
    },
];

/// Names that timetables of users' own give to runs.
pub(super) const RUN_NAMES: &[Step] = &[Step::Column {
    table: "dag",
    name: "next_run_id",
    word: "NAME",
}];

/// What listeners are to be told of runs.
pub(super) const LISTENERS: &[Step] = &[Step::Column {
    table: "run_callback",
    name: "listener",
    word: "WORD",
}];

/// What listeners are to be told of other things than runs.
pub(super) const NEWS: &[Step] = &[Step::Column {
    table: "run_callback",
    name: "facts",
    word: "TEXT",
}];

/// What partition mappers, deadline references and timetables are asked that only Python knows.
pub(super) const FOREIGN_ANSWERS: &[Step] = &[
    Step::Column {
        table: "partition_queue",
        name: "said",
        word: "TEXT",
    },
    Step::Column {
        table: "deadline",
        name: "reference",
        word: "TEXT",
    },
    Step::Column {
        table: "timetable_question",
        name: "third_instant",
        word: "INT64",
    },
];

/// Deadlines of runs. One without a moment waits for the Variable that says how long it is.
pub(super) const DEADLINES: &[Step] = &[
    Step::Table {
        name: "deadline",
        columns:
            "id KEY64, run_key INT64 NOT NULL, name NAME, base INT64 NOT NULL, is_queued_at INT64 NOT NULL,
            length INT64, variable NAME, deadline_at INT64, missed INT64 NOT NULL, callback TEXT NOT NULL,
            created_at INT64 NOT NULL, updated_at INT64 NOT NULL",
    },
    index("ix_deadline", "deadline", "missed, deadline_at"),
    index("ix_deadline_run", "deadline", "run_key"),
    Step::Column {
        table: "run_callback",
        name: "deadline_id",
        word: "INT64",
    },
];

/// Updates of partitions that wait to start runs. Without a mapping it is not decided (any more) for which ones.
pub(super) const PARTITIONS: &[Step] = &[
    Step::Table {
        name: "partition_queue",
        columns: "id KEY64, dag_id NAME NOT NULL, event_id INT64 NOT NULL, asset_id INT64 NOT NULL,
            source_key NAME NOT NULL, source_date INT64, target_key NAME, mapping INT64, created_at INT64 NOT NULL",
    },
    index("ix_partition_queue", "partition_queue", "dag_id, event_id"),
    index("ix_partition_queue_new", "partition_queue", "mapping, dag_id"),
    index("ix_dag_run_partition", "dag_run", "dag_id, partition_date"),
];

/// Questions about timetables that only Python knows.
pub(super) const TIMETABLE_QUESTIONS: &[Step] = &[
    Step::Table {
        name: "timetable_question",
        columns:
            "id KEY64, dag_id NAME NOT NULL, kind WORD NOT NULL, first_instant INT64, second_instant INT64,
            created_at INT64 NOT NULL, claimed_until INT64 NOT NULL, answer TEXT",
    },
    index("ix_timetable_question", "timetable_question", "claimed_until, id"),
    index("ix_timetable_question_dag", "timetable_question", "dag_id, kind"),
];

/// The first form of everything.
pub(super) const INITIAL: &[Step] = &[
    Step::Table {
        name: "dag",
        columns: "dag_id NAME NOT NULL PRIMARY KEY, is_paused INT64 NOT NULL, is_stale INT64 NOT NULL,
            fileloc TEXT NOT NULL, relative_fileloc PATH NOT NULL, bundle_name NAME NOT NULL, display_name TEXT,
            description TEXT, owners TEXT NOT NULL, tags TEXT NOT NULL, timetable_type NAME NOT NULL,
            timetable_summary TEXT, timetable_description TEXT, has_timetable INT64 NOT NULL, max_active_runs INT64 NOT NULL,
            max_active_tasks INT64 NOT NULL, max_consecutive_failed INT64 NOT NULL, has_import_errors INT64 NOT NULL,
            has_task_limits INT64 NOT NULL, version_id UUID NOT NULL, version_number INT64 NOT NULL,
            last_parsed_at INT64 NOT NULL, last_parse_duration FLOAT64 NOT NULL, next_logical_date INT64,
            next_interval_start INT64, next_interval_end INT64, next_run_after INT64",
    },
    index("ix_dag_due", "dag", "is_paused, is_stale, next_run_after"),
    index("ix_dag_file", "dag", "relative_fileloc"),
    Step::Table {
        name: "dag_version",
        columns: "id UUID NOT NULL PRIMARY KEY, dag_id NAME NOT NULL, version_number INT64 NOT NULL,
            structure_hash WORD NOT NULL, serialized TEXT NOT NULL, native TEXT NOT NULL, source TEXT NOT NULL,
            fileloc TEXT NOT NULL, relative_fileloc PATH NOT NULL, bundle_name NAME NOT NULL, created_at INT64 NOT NULL,
            source_updated_at INT64 NOT NULL",
    },
    unique("ux_dag_version", "dag_version", "dag_id, version_number"),
    Step::Table {
        name: "dag_file",
        columns: "path PATH NOT NULL PRIMARY KEY, fingerprint WORD NOT NULL, imports TEXT NOT NULL,
            parsed_at INT64 NOT NULL, parse_duration FLOAT64 NOT NULL",
    },
    Step::Table {
        name: "import_error",
        columns: "id KEY64, path PATH NOT NULL, bundle_name NAME NOT NULL, fileloc TEXT NOT NULL,
            stack_trace TEXT NOT NULL, created_at INT64 NOT NULL",
    },
    unique("ux_import_error", "import_error", "path"),
    Step::Table {
        name: "dag_run",
        columns: "id KEY64, dag_id NAME NOT NULL, run_id NAME NOT NULL, logical_date INT64, run_type WORD NOT NULL,
            state WORD NOT NULL, conf TEXT NOT NULL, data_interval_start INT64, data_interval_end INT64,
            run_after INT64 NOT NULL, queued_at INT64, start_date INT64, end_date INT64, version_id UUID NOT NULL,
            triggered_by WORD, triggering_user NAME, note TEXT, clear_number INT64 NOT NULL,
            last_decision_at INT64, trace_context TEXT, updated_at INT64 NOT NULL",
    },
    unique("ux_dag_run_id", "dag_run", "dag_id, run_id"),
    unique("ux_dag_run_date", "dag_run", "dag_id, logical_date"),
    index("ix_dag_run_state", "dag_run", "state, dag_id, run_after, id"),
    index("ix_dag_run_after", "dag_run", "dag_id, run_after"),
    Step::Table {
        name: "run_event",
        columns: "id KEY64, run_key INT64 NOT NULL, created_at INT64 NOT NULL",
    },
    index("ix_run_event", "run_event", "run_key"),
    index("ix_run_event_age", "run_event", "created_at"),
    Step::Table {
        name: "task_instance",
        columns: "id UUID NOT NULL PRIMARY KEY, run_key INT64 NOT NULL, dag_id NAME NOT NULL, run_id NAME NOT NULL,
            task_id NAME NOT NULL, map_index INT64 NOT NULL, state WORD NOT NULL, try_number INT64 NOT NULL,
            max_tries INT64 NOT NULL, pool NAME NOT NULL, pool_slots INT64 NOT NULL, queue NAME NOT NULL,
            priority_weight INT64 NOT NULL, dispatch_order INT64 NOT NULL, operator NAME NOT NULL,
            operator_name NAME NOT NULL, version_id UUID NOT NULL, claim_epoch INT64 NOT NULL, claim_id UUID,
            worker_id UUID, dispatch_seq INT64 NOT NULL, queued_by UUID, not_before INT64, scheduled_at INT64,
            queued_at INT64, start_date INT64, end_date INT64, hostname NAME, unixname NAME, pid INT64,
            infra_losses INT64 NOT NULL, reschedules INT64 NOT NULL, first_start INT64, last_report TEXT,
            exit_cause TEXT, retry_delay INT64, rendered_map_index TEXT, next_method NAME, next_kwargs TEXT,
            note TEXT, trace_context TEXT, updated_at INT64 NOT NULL",
    },
    unique("ux_task_instance", "task_instance", "run_key, task_id, map_index"),
    index("ix_ti_dispatch", "task_instance", "state, pool, dispatch_order, id, pool_slots, queued_by"),
    index("ix_ti_wake", "task_instance", "state, not_before"),
    index("ix_ti_worker", "task_instance", "worker_id, state"),
    index("ix_ti_task", "task_instance", "dag_id, task_id, state"),
    Step::Table {
        name: "task_instance_history",
        columns: "ti_id UUID NOT NULL, try_number INT64 NOT NULL, run_key INT64 NOT NULL, record TEXT NOT NULL,
            PRIMARY KEY (ti_id, try_number)",
    },
    index("ix_ti_history_run", "task_instance_history", "run_key"),
    Step::Table {
        name: "xcom",
        columns: "run_key INT64 NOT NULL, task_id NAME NOT NULL, map_index INT64 NOT NULL, xcom_key NAME NOT NULL,
            dag_id NAME NOT NULL, run_id NAME NOT NULL, value TEXT NOT NULL, mapped_length INT64, created_at INT64 NOT NULL,
            PRIMARY KEY (run_key, task_id, map_index, xcom_key)",
    },
    Step::Table {
        name: "rendered_fields",
        columns: "ti_id UUID NOT NULL PRIMARY KEY, run_key INT64 NOT NULL, fields TEXT NOT NULL",
    },
    index("ix_rendered_run", "rendered_fields", "run_key"),
    Step::Table {
        name: "outbox",
        columns: "ti_id UUID NOT NULL PRIMARY KEY, try_number INT64 NOT NULL, dispatch_seq INT64 NOT NULL,
            queue NAME NOT NULL, created_at INT64 NOT NULL",
    },
    index("ix_outbox_age", "outbox", "created_at, ti_id"),
    Step::Table {
        name: "variable",
        columns: "var_key NAME NOT NULL PRIMARY KEY, value TEXT NOT NULL, description TEXT, is_encrypted INT64 NOT NULL",
    },
    Step::Table {
        name: "connection",
        columns: "conn_id NAME NOT NULL PRIMARY KEY, conn_type NAME NOT NULL, description TEXT, host TEXT,
            schema_name TEXT, login TEXT, password TEXT, port INT64, extra TEXT, is_encrypted INT64 NOT NULL",
    },
    Step::Table {
        name: "slot_pool",
        columns: "id KEY64, pool NAME NOT NULL, slots INT64 NOT NULL, description TEXT, include_deferred INT64 NOT NULL",
    },
    unique("ux_slot_pool", "slot_pool", "pool"),
    Step::Table {
        name: "worker",
        columns: "id UUID NOT NULL PRIMARY KEY, name NAME NOT NULL, hostname NAME NOT NULL, queues TEXT NOT NULL,
            concurrency INT64 NOT NULL, state WORD NOT NULL, registered_at INT64 NOT NULL, seen_at INT64 NOT NULL,
            lease_expires_at INT64 NOT NULL",
    },
    index("ix_worker_lease", "worker", "state, lease_expires_at"),
    index("ix_worker_name", "worker", "name, state"),
    Step::Table {
        name: "job",
        columns: "id UUID NOT NULL PRIMARY KEY, kind WORD NOT NULL, hostname NAME NOT NULL, state WORD NOT NULL,
            started_at INT64 NOT NULL, heartbeat_at INT64 NOT NULL",
    },
    index("ix_job", "job", "kind, state, heartbeat_at"),
    Step::Table {
        name: "setting",
        columns: "name NAME NOT NULL PRIMARY KEY, value TEXT NOT NULL",
    },
];

/// What a file's last parse depended on and how often it failed in a row; which setting of a variable or connection it is.
pub(super) const DEPENDENCIES: &[Step] = &[
    Step::Column {
        table: "dag_file",
        name: "dependencies",
        word: "TEXT",
    },
    Step::Column {
        table: "dag_file",
        name: "failures",
        word: "INT64",
    },
    Step::Column {
        table: "variable",
        name: "version",
        word: "WORD",
    },
    Step::Column {
        table: "connection",
        name: "version",
        word: "WORD",
    },
];

/// What heartbeats named, how often a try could not be started, and how many workers in a row a task instance lost.
pub(super) const BEATS: &[Step] = &[
    Step::Column {
        table: "worker",
        name: "beat",
        word: "INT64",
    },
    Step::Column {
        table: "worker",
        name: "unwell",
        word: "TEXT",
    },
    Step::Column {
        table: "task_instance",
        name: "claim_beat",
        word: "INT64",
    },
    Step::Column {
        table: "task_instance",
        name: "unnamed_beat",
        word: "INT64",
    },
    Step::Column {
        table: "task_instance",
        name: "unstarted",
        word: "INT64",
    },
    Step::Column {
        table: "task_instance",
        name: "worker_losses",
        word: "INT64",
    },
];

const fn required(column: &'static str, to: usize) -> Wider {
    Wider {
        column,
        to,
        required: true,
    }
}

const fn optional(column: &'static str, to: usize) -> Wider {
    Wider {
        column,
        to,
        required: false,
    }
}

/// Texts as long as Airflow's, told apart by every letter; indexes for lists that are ordered by dates.
pub(super) const LENGTHS: &[Step] = &[
    Step::ExactTexts,
    Step::Drop {
        name: "ix_asset_name",
        table: "asset",
    },
    Step::Drop {
        name: "ix_asset_uri",
        table: "asset",
    },
    Step::Drop {
        name: "ux_asset_alias",
        table: "asset_alias",
    },
    widen("connection", &[required("conn_type", 500)]),
    widen("slot_pool", &[required("pool", 256)]),
    widen(
        "task_instance",
        &[
            required("pool", 256),
            required("queue", 256),
            required("operator", 1000),
            required("operator_name", 1000),
            optional("executor", 1000),
            optional("hostname", 1000),
            optional("unixname", 1000),
            optional("next_method", 1000),
        ],
    ),
    widen(
        "pending_trigger",
        &[optional("next_method", 1000), optional("queue", 256)],
    ),
    widen("outbox", &[required("queue", 256), optional("executor", 1000)]),
    widen("dag_run", &[optional("triggering_user", 512)]),
    widen("backfill", &[optional("triggering_user", 512)]),
    widen("xcom", &[required("xcom_key", 512)]),
    widen(
        "asset",
        &[
            required("name", 1500),
            required("uri", 1500),
            required("asset_group", 1500),
        ],
    ),
    widen(
        "asset_alias",
        &[required("name", 1500), required("asset_group", 1500)],
    ),
    widen("asset_reference", &[optional("words", 1500)]),
    index("ix_asset_names", "asset", "name(250)"),
    index("ix_asset_uris", "asset", "uri(250)"),
    // The names of aliases are too long for a unique index.
    Step::Column {
        table: "asset_alias",
        name: "key_hash",
        word: "WORD",
    },
    unique("ux_asset_alias_hash", "asset_alias", "key_hash"),
    index("ix_asset_alias_names", "asset_alias", "name(250)"),
    // Lists of everything, newest or longest ago first. Every index of a column that changes costs each move of a task
    // instance, so there is one for the order that people ask for, and one for the order that nobody asked for.
    index("ix_ti_start", "task_instance", "start_date, id"),
    index("ix_ti_map_index", "task_instance", "map_index, id"),
    index("ix_ti_dag_start", "task_instance", "dag_id, start_date, id"),
    index("ix_dag_run_start", "dag_run", "start_date, id"),
    index("ix_dag_run_due", "dag_run", "run_after, id"),
    index("ix_dag_run_logical", "dag_run", "logical_date, id"),
    index("ix_dag_run_dag_start", "dag_run", "dag_id, start_date, id"),
    index("ix_xcom_age", "xcom", "created_at"),
    // Tokens of people who have logged out, until they would have ended by themselves.
    Step::Table {
        name: "revoked_token",
        columns: "token_hash WORD NOT NULL PRIMARY KEY, ends_at INT64 NOT NULL",
    },
    index("ix_revoked_token", "revoked_token", "ends_at"),
];

/// By what a worker's life is known to be the same worker's, and the pool whose join token it registered with.
pub(super) const WORKER_KEYS: &[Step] = &[
    Step::Column {
        table: "worker",
        name: "worker_key",
        word: "WORD",
    },
    Step::Column {
        table: "worker",
        name: "worker_pool",
        word: "NAME",
    },
];

/// Files of several bundles may have the same path. What was known of files before is learnt again by parsing them once.
pub(super) const BUNDLES: &[Step] = &[
    Step::Table {
        name: "bundle_file",
        columns: "key_hash WORD NOT NULL PRIMARY KEY, bundle_name NAME NOT NULL, path PATH NOT NULL,
            fingerprint WORD NOT NULL, dependencies TEXT NOT NULL, failures INT64 NOT NULL, parsed_at INT64 NOT NULL,
            parse_duration FLOAT64 NOT NULL",
    },
    Step::Drop {
        name: "ux_import_error",
        table: "import_error",
    },
    Step::Column {
        table: "import_error",
        name: "file_hash",
        word: "WORD",
    },
    unique("ux_import_error_file", "import_error", "file_hash"),
    Step::Column {
        table: "dag_version",
        name: "bundle_version",
        word: "NAME",
    },
];
