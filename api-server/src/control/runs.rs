//! What clients call: trigger, get and watch runs, and follow logs.

use super::{store_status, token_of};
use crate::App;
use crate::logs::LogName;
use crate::trigger::{TriggerError, TriggerRequest, trigger_run};
use identity::Role;
use lifecycle::{Kind, Lifecycle};
use model::dag_run::DagRunType;
use model::time::rest_format;
use model::{DagId, MapIndex, RunId, TaskId};
use proto::v1::run_service_server::RunService;
use proto::v1::{
    LogLines, Run, RunName, RunUpdate, TailLogRequest, TaskState, TriggerRequest as TriggerMessage,
};
use std::pin::Pin;
use std::time::Duration;
use store::StoreError;
use store::repo::RunRecord;
use tokio::sync::mpsc::{self, Sender};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// How often a watched run is looked at when no hint comes.
const LOOK: Duration = Duration::from_millis(500);
/// Bytes of a log in one message.
const CHUNK: u64 = 1 << 20;
/// How often a log is looked at.
const TAIL: Duration = Duration::from_millis(250);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// `RunService`
#[derive(Clone)]
pub(crate) struct Runs {
    pub(crate) app: App,
    pub(crate) lifecycle: Lifecycle,
}

fn shown(run: &RunRecord) -> Run {
    Run {
        dag_id: run.dag_id.to_string(),
        run_id: run.run_id.to_string(),
        state: run.state.as_str().to_owned(),
        run_type: run.run_type.as_str().to_owned(),
        logical_date: run.logical_date.map(rest_format),
        run_after: rest_format(run.run_after),
        start_date: run.start_date.map(rest_format),
        end_date: run.end_date.map(rest_format),
        conf: run.conf.clone(),
    }
}

/// Who follows something for long: only as long as the token would open it, too.
struct Follower(Option<String>);

impl Runs {
    /// Lets only users that may look pass.
    fn follower<T>(&self, request: &Request<T>) -> Result<Follower, Status> {
        self.user(request, Role::Viewer)?;
        let token = match self.app.config.core.all_admins {
            true => None,
            false => Some(token_of(request)?.to_owned()),
        };
        Ok(Follower(token))
    }

    /// An error once a follower has logged out, or the token has run out.
    fn may_go_on(&self, follower: &Follower) -> Result<(), Status> {
        let Some(token) = &follower.0 else {
            return Ok(());
        };
        let user = self.app.user_of(token);
        user.map(|_| ())
            .map_err(|error| Status::unauthenticated(error.to_string()))
    }

    /// Lets only users of this role pass; returns the name.
    fn user<T>(&self, request: &Request<T>, role: Role) -> Result<String, Status> {
        if self.app.config.core.all_admins {
            return Ok("Anonymous".to_owned());
        }
        let user = self
            .app
            .user_of(token_of(request)?)
            .map_err(|error| Status::unauthenticated(error.to_string()))?;
        match user.role.as_deref().and_then(Role::parse) {
            Some(own) if own >= role => Ok(user.sub),
            Some(_) | None => Err(Status::permission_denied("Forbidden")),
        }
    }

    async fn find(&self, name: &RunName) -> Result<RunRecord, Status> {
        let found = async {
            let mut db = self.app.store.reader().await?;
            db.run(
                &DagId::new(name.dag_id.as_str()),
                &RunId::new(name.run_id.as_str()),
            )
            .await
        };
        let found = found.await.map_err(|error: StoreError| store_status(&error))?;
        found.ok_or_else(|| Status::not_found(format!("DAG {} has no run {}", name.dag_id, name.run_id)))
    }

    async fn update(&self, name: &RunName) -> Result<(RunUpdate, bool), Status> {
        let run = self.find(name).await?;
        let tasks = async { self.app.store.reader().await?.task_instances_of(run.key).await };
        let tasks = tasks.await.map_err(|error: StoreError| store_status(&error))?;
        let tasks = tasks.iter().map(|ti| TaskState {
            task_id: ti.task_id.to_string(),
            map_index: ti.map_index.0,
            state: ti.state.rest_word().unwrap_or_default().to_owned(),
            try_number: ti.try_number.0,
        });
        let update = RunUpdate {
            run: Some(shown(&run)),
            tasks: tasks.collect(),
        };
        Ok((update, run.state.is_finished()))
    }

    async fn watch_to_end(
        self,
        name: RunName,
        follower: Follower,
        sender: Sender<Result<RunUpdate, Status>>,
    ) {
        let mut hints = self.app.watchers.subscribe();
        let mut last = None;
        loop {
            if let Err(status) = self.may_go_on(&follower) {
                sender.send(Err(status)).await.ok();
                return;
            }
            match self.update(&name).await {
                Ok((update, ended)) => {
                    if last.as_ref() != Some(&update) {
                        last = Some(update.clone());
                        if sender.send(Ok(update)).await.is_err() {
                            return;
                        }
                    }
                    if ended {
                        return;
                    }
                }
                Err(status) => {
                    // Whoever has gone does not hear it.
                    sender.send(Err(status)).await.ok();
                    return;
                }
            }
            tokio::select! {
                // Any hint will do: it may be about this run, and looking costs little.
                _ = hints.recv() => {}
                () = tokio::time::sleep(LOOK) => {}
                () = sender.closed() => return,
                () = self.lifecycle.stop().now().cancelled() => return,
            }
        }
    }

    async fn tail_to_end(
        self,
        request: TailLogRequest,
        follower: Follower,
        sender: Sender<Result<LogLines, Status>>,
    ) {
        let (dag_id, run_id) = (
            DagId::new(request.dag_id.as_str()),
            RunId::new(request.run_id.as_str()),
        );
        let (task_id, map_index) = (TaskId::new(request.task_id.as_str()), MapIndex(request.map_index));
        let mut try_number = request.try_number;
        let mut offset = 0;
        loop {
            if let Err(status) = self.may_go_on(&follower) {
                sender.send(Err(status)).await.ok();
                return;
            }
            let found = async {
                self.app
                    .store
                    .reader()
                    .await?
                    .task_instance(&dag_id, &run_id, &task_id, map_index)
                    .await
            };
            let ti = match found.await {
                Ok(Some(ti)) => ti,
                Ok(None) => {
                    sender
                        .send(Err(Status::not_found("there is no such task instance")))
                        .await
                        .ok();
                    return;
                }
                Err(error) => {
                    sender.send(Err(store_status(&error))).await.ok();
                    return;
                }
            };
            if try_number == 0 {
                try_number = ti.try_number.0;
            }
            let ended = try_number > 0
                && (ti.state.is_finished()
                    || ti.try_number.0 > try_number
                    || ti.state == model::task_instance::StateName::UpForRetry);
            if try_number > 0 {
                let name = LogName::of(&ti, try_number);
                let logs = self.app.logs.clone();
                let page = tokio::task::spawn_blocking(move || logs.read(&name, offset, CHUNK)).await;
                if let Ok(Ok((bytes, end))) = page
                    && !bytes.is_empty()
                {
                    offset = end;
                    let lines = String::from_utf8_lossy(&bytes)
                        .lines()
                        .map(str::to_owned)
                        .collect();
                    if sender.send(Ok(LogLines { lines })).await.is_err() {
                        return;
                    }
                    continue;
                }
            }
            if ended {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(TAIL) => {}
                () = sender.closed() => return,
                () = self.lifecycle.stop().now().cancelled() => return,
            }
        }
    }
}

#[tonic::async_trait]
impl RunService for Runs {
    type WatchStream = Answers<RunUpdate>;
    type TailLogStream = Answers<LogLines>;

    async fn trigger(&self, request: Request<TriggerMessage>) -> Result<Response<Run>, Status> {
        let user = self.user(&request, Role::User)?;
        let message = request.into_inner();
        let invalid = |text: String| Status::invalid_argument(text);
        let conf = match message.conf.as_str() {
            "" => serde_json::json!({}),
            text => {
                serde_json::from_str(text).map_err(|error| invalid(format!("conf is not JSON: {error}")))?
            }
        };
        if !conf.is_object() {
            return Err(invalid("conf is not a JSON object".to_owned()));
        }
        let logical_date = match message.logical_date.as_str() {
            "" => None,
            text => Some(
                crate::rest_instant(text)
                    .ok_or_else(|| invalid(format!("{text:?} is not an RFC 3339 instant")))?,
            ),
        };
        let wish = TriggerRequest {
            dag_id: DagId::new(message.dag_id),
            run_id: Some(message.run_id).filter(|id| !id.is_empty()),
            logical_date,
            interval: None,
            run_after: None,
            conf,
            note: Some(message.note).filter(|note| !note.is_empty()),
            run_type: DagRunType::Manual,
            triggered_by: "rest_api",
            user: Some(user),
            partition_key: None,
        };
        let app = &self.app;
        let run = trigger_run(&app.store, &app.graphs, &*app.broker, &wish)
            .await
            .map_err(|error| match &error {
                TriggerError::UnknownDag(_) => Status::not_found(error.to_string()),
                TriggerError::ImportErrors(_) => Status::failed_precondition(error.to_string()),
                TriggerError::Invalid(_) => Status::invalid_argument(error.to_string()),
                TriggerError::Duplicate { .. } => Status::already_exists(error.to_string()),
                TriggerError::Store(error) => store_status(error),
            })?;
        Ok(Response::new(shown(&run)))
    }

    async fn get(&self, request: Request<RunName>) -> Result<Response<Run>, Status> {
        self.user(&request, Role::Viewer)?;
        Ok(Response::new(shown(&self.find(request.get_ref()).await?)))
    }

    async fn watch(&self, request: Request<RunName>) -> Result<Response<Self::WatchStream>, Status> {
        let follower = self.follower(&request)?;
        self.find(request.get_ref()).await?;
        let (sender, receiver) = mpsc::channel(16);
        let watching = self.clone().watch_to_end(request.into_inner(), follower, sender);
        self.lifecycle.spawn("watched run", Kind::Request, watching);
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn tail_log(
        &self,
        request: Request<TailLogRequest>,
    ) -> Result<Response<Self::TailLogStream>, Status> {
        let follower = self.follower(&request)?;
        let (sender, receiver) = mpsc::channel(16);
        let tailing = self.clone().tail_to_end(request.into_inner(), follower, sender);
        self.lifecycle.spawn("followed log", Kind::Request, tailing);
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
