//! Airflow's REST API v2 and `/auth`.

mod access;
mod asset_events;
mod asset_states;
mod assets;
mod backfills;
mod batch;
mod body;
mod bulk;
mod bulk_runs;
mod clear;
mod clear_runs;
mod cursor;
mod dag_tasks;
pub(crate) mod dags;
mod dependencies;
mod error;
mod guards;
mod hitl;
mod lines;
mod logins;
mod logs_page;
mod mark;
mod mark_run;
mod meta;
mod pattern;
mod pools;
mod query;
mod reply;
mod runs;
mod secrets;
mod sharing;
mod tasks;
mod tries;
mod variables;
mod wait;
mod xcoms;

use crate::App;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post, put};
use error::ApiError;
use guards::BODY;
pub(crate) use meta::Parts;
use reply::Json;
use serde_json::json;
pub(crate) use sharing::Sharing;
use std::time::Instant;
use telemetry::metric;
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;

pub(crate) fn router(app: App) -> Router {
    let dag = Router::new()
        .route("/dags", get(dags::list).patch(dags::patch_many))
        .route(
            "/dags/{dag_id}",
            get(dags::show).patch(dags::patch).delete(dags::delete),
        )
        .route("/dags/{dag_id}/details", get(dags::details))
        .route("/dags/{dag_id}/tasks", get(dag_tasks::list))
        .route("/dags/{dag_id}/tasks/{task_id}", get(dag_tasks::show))
        .route("/dags/{dag_id}/dagVersions", get(meta::versions))
        .route("/dags/{dag_id}/dagVersions/{number}", get(meta::version_of_dag))
        .route("/dagSources/{dag_id}", get(meta::source))
        .route("/dagStats", get(meta::dag_stats))
        .route("/dagTags", get(meta::dag_tags))
        .route("/importErrors", get(meta::import_errors))
        .route("/importErrors/{id}", get(meta::import_error))
        .route(
            "/dags/{dag_id}/dagRuns",
            get(runs::list).post(runs::trigger).patch(bulk_runs::dag_runs),
        )
        .route("/dags/{dag_id}/dagRuns/list", post(batch::dag_runs))
        .route(
            "/dags/{dag_id}/dagRuns/{run_id}/clear",
            post(clear_runs::clear_run),
        )
        .route("/dags/{dag_id}/dagRuns/{run_id}/wait", get(wait::wait))
        .route(
            "/dags/{dag_id}/dagRuns/{run_id}",
            get(runs::show).delete(runs::delete).patch(mark_run::patch),
        )
        .route("/dags/{dag_id}/clearDagRuns", post(clear_runs::clear_many))
        .route(
            "/dags/{dag_id}/clearPartitions",
            post(clear_runs::clear_partitions),
        )
        .route("/dags/{dag_id}/clearTaskInstances", post(clear::clear_tasks));
    const TI: &str = "/dags/{dag_id}/dagRuns/{run_id}/taskInstances";
    let task = Router::new()
        .route(TI, get(tasks::list).patch(bulk_runs::task_instances))
        .route(&format!("{TI}/list"), post(batch::task_instances))
        .route(
            &format!("{TI}/{{task_id}}"),
            get(tasks::show).patch(mark::mark_task::<false>),
        )
        .route(
            &format!("{TI}/{{task_id}}/dry_run"),
            patch(mark::mark_task::<true>),
        )
        .route(
            &format!("{TI}/{{task_id}}/{{map_index}}/dry_run"),
            patch(mark::mark_instance::<true>),
        )
        .route(
            "/dags/{dag_id}/dagRuns/{run_id}/taskGroupInstances/{group_id}",
            patch(mark::mark_group::<false>),
        )
        .route(
            "/dags/{dag_id}/dagRuns/{run_id}/taskGroupInstances/{group_id}/dry_run",
            patch(mark::mark_group::<true>),
        )
        .route(&format!("{TI}/{{task_id}}/listMapped"), get(tasks::list_mapped))
        .route(
            &format!("{TI}/{{task_id}}/dependencies"),
            get(dependencies::of_task),
        )
        .route(
            &format!("{TI}/{{task_id}}/{{map_index}}/dependencies"),
            get(dependencies::of_instance),
        )
        .route(&format!("{TI}/{{task_id}}/tries"), get(tries::all))
        .route(&format!("{TI}/{{task_id}}/tries/{{try_number}}"), get(tries::one))
        .route(
            &format!("{TI}/{{task_id}}/logs/{{try_number}}"),
            get(logs_page::show),
        )
        .route(
            &format!("{TI}/{{task_id}}/xcomEntries"),
            get(xcoms::list).post(xcoms::create),
        )
        .route(
            &format!("{TI}/{{task_id}}/xcomEntries/{{*key}}"),
            get(xcoms::show).patch(xcoms::patch).delete(xcoms::delete),
        )
        .route(
            &format!("{TI}/{{task_id}}/{{map_index}}"),
            get(tasks::show_mapped).patch(mark::mark_instance::<false>),
        )
        .route(
            &format!("{TI}/{{task_id}}/{{map_index}}/tries"),
            get(tries::all_of_mapped),
        );
    let assets = Router::new()
        .route("/assets", get(assets::list))
        .route("/assets/aliases", get(assets::aliases))
        .route("/assets/aliases/{id}", get(assets::alias))
        .route(
            "/assets/events",
            get(asset_events::list).post(asset_events::create),
        )
        .route("/assets/{id}", get(assets::show))
        .route("/assets/{id}/materialize", post(assets::materialize))
        .route(
            "/assets/{id}/queuedEvents",
            get(asset_events::queued_of_asset).delete(asset_events::drop_of_asset),
        )
        .route(
            "/assets/{id}/state-store",
            get(asset_states::list).delete(asset_states::clear),
        )
        .route(
            "/assets/{id}/state-store/{*key}",
            get(asset_states::show)
                .put(asset_states::set)
                .delete(asset_states::delete),
        )
        .route(
            "/dags/{dag_id}/assets/queuedEvents",
            get(asset_events::queued_of_dag).delete(asset_events::drop_of_dag),
        )
        .route(
            "/dags/{dag_id}/assets/{id}/queuedEvents",
            get(asset_events::queued_one).delete(asset_events::drop_one),
        )
        .route(
            "/dags/{dag_id}/dagRuns/{run_id}/upstreamAssetEvents",
            get(asset_events::of_run),
        );
    let hitl = format!("{TI}/{{task_id}}/{{map_index}}/hitlDetails");
    let assets = assets
        .route(&hitl, get(hitl::show).patch(hitl::answer))
        .route(&format!("{hitl}/tries/{{try_number}}"), get(hitl::show_try))
        .route("/dags/{dag_id}/dagRuns/{run_id}/hitlDetails", get(hitl::list))
        .route("/backfills", get(backfills::list).post(backfills::create))
        .route("/backfills/dry_run", post(backfills::try_out))
        .route("/backfills/{id}", get(backfills::show))
        .route("/backfills/{id}/pause", put(backfills::pause))
        .route("/backfills/{id}/unpause", put(backfills::unpause))
        .route("/backfills/{id}/cancel", put(backfills::cancel));
    let admin = Router::new()
        .route(
            "/variables",
            get(variables::list)
                .post(variables::create)
                .patch(variables::bulk),
        )
        .route(
            "/variables/{*key}",
            get(variables::show)
                .patch(variables::patch)
                .delete(variables::delete),
        )
        .route("/pools", get(pools::list).post(pools::create).patch(pools::bulk))
        .route(
            "/pools/{*name}",
            get(pools::show).patch(pools::patch).delete(pools::delete),
        )
        .route(
            "/connections",
            get(secrets::list).post(secrets::create).patch(secrets::bulk),
        )
        .route(
            "/connections/{conn_id}",
            get(secrets::show).patch(secrets::patch).delete(secrets::delete),
        )
        .route("/dagWarnings", get(meta::dag_warnings))
        .route("/version", get(meta::version))
        .route("/auth/login", get(logins::login))
        .route("/auth/logout", get(logins::logout))
        .route("/monitor/health", get(meta::health));
    Router::new()
        .nest("/api/v2", dag.merge(task).merge(assets).merge(admin))
        .route(
            "/auth/token",
            post(access::create_token).get(access::token_for_all),
        )
        .route("/auth/token/login", get(logins::token_login))
        .route("/auth/token/cli", post(access::create_cli_token))
        .route("/health", get(meta::old_health))
        .route("/metrics", get(meta::metrics))
        .method_not_allowed_fallback(|| async {
            ApiError::detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")
        })
        .fallback(unknown)
        .layer(axum::extract::DefaultBodyLimit::max(BODY))
        .layer(middleware::from_fn(guards::whole_body))
        .layer(middleware::from_fn(guards::errors_as_json))
        .layer(
            CompressionLayer::new()
                .gzip(true)
                .quality(CompressionLevel::Fastest),
        )
        .layer(middleware::from_fn_with_state(app.clone(), sharing::share))
        .layer(middleware::from_fn_with_state(app.clone(), guards::for_browsers))
        .layer(middleware::from_fn_with_state(app.clone(), observe))
        .with_state(app)
}

/// What no route knows.
async fn unknown(request: Request) -> Response {
    let path = request.uri().path();
    if request.method() != Method::GET {
        let answer = ApiError::detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed").into_response();
        return ([(header::ALLOW, "GET")], answer).into_response();
    }
    let error = |text: &str| (StatusCode::NOT_FOUND, Json(json!({"error": text}))).into_response();
    if path.starts_with("/api/v1/") || path == "/api/v1" {
        return error(
            "/api/v1 has been removed in Airflow 3, please use its upgraded version /api/v2 instead.",
        );
    }
    if path.starts_with("/api/") {
        return error("API route not found");
    }
    // Programs ask for these: a page would be taken for what they want.
    let is_file = ["/ui/", "/static/", "/auth/static/"]
        .iter()
        .any(|folder| path.starts_with(folder));
    if is_file || matches!(path, "/openapi.json" | "/docs" | "/redoc" | "/ui") {
        return ApiError::not_found("Not Found").into_response();
    }
    let page = "<!doctype html><html><head><base href=\"/\" /><title>Updraft</title></head><body>\
                <h1>Updraft</h1><p>The REST API is at <code>/api/v2</code>, tokens are at <code>/auth/token</code>.</p></body></html>";
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response()
}

/// Counts and times requests; a HEAD is none of ours, as in Airflow.
async fn observe(State(app): State<App>, request: Request, next: Next) -> Response {
    if request.method() == Method::HEAD {
        return (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET")]).into_response();
    }
    let begin = Instant::now();
    let response = next.run(request).await;
    let class = match response.status().as_u16() / 100 {
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    };
    metrics::counter!(metric::REQUESTS, "class" => class).increment(1);
    metrics::histogram!(metric::REQUEST_SECONDS).record(begin.elapsed());
    app.health.completed();
    response
}
