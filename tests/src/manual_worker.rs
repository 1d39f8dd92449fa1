//! A worker whose calls are made one by one.

use crate::Installation;
use crate::installation::SECRET;
use config::Secret;
use identity::{JoinToken, Membership};
use model::WorkerId;
use proto::v1::claim_reply::Outcome;
use proto::v1::worker_service_client::WorkerServiceClient;
use proto::v1::{
    AskReply, AskRequest, ClaimRequest, HeartbeatReply, HeartbeatRequest, Pass, RegisterRequest, StartTask,
};
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// A call with a token.
///
/// # Panics
/// When the token is not text.
pub fn signed<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}").parse().expect("a header");
    request.metadata_mut().insert("authorization", value);
    request
}

/// A worker of the tests' installation, of that pool, with a key from that seed.
///
/// # Panics
/// When no pool can have that name.
pub fn membership(pool: &str, seed: &str) -> Membership {
    let token = JoinToken::of_pool(&Secret::new(SECRET), pool).expect("a join token");
    Membership::new(&token, seed.as_bytes()).expect("a key")
}

/// A worker that has registered.
pub struct ManualWorker {
    /// The connection.
    pub client: WorkerServiceClient<Channel>,
    /// Its life.
    pub id: String,
    /// Its tokens.
    pub pass: Pass,
}

impl ManualWorker {
    /// A connection to the control plane of an installation.
    ///
    /// # Panics
    /// When there is none.
    pub async fn connect(installation: &Installation) -> WorkerServiceClient<Channel> {
        let url = format!("http://127.0.0.1:{}", installation.control_port);
        let channel = Endpoint::from_shared(url).expect("a URL").connect().await;
        WorkerServiceClient::new(channel.expect("the control plane"))
    }

    /// Registers under that name, for a queue that nobody serves.
    ///
    /// # Errors
    /// As the control plane says.
    ///
    /// # Panics
    /// When there is no control plane.
    pub async fn register(
        installation: &Installation,
        membership: &Membership,
        name: &str,
    ) -> Result<Self, Status> {
        let mut client = Self::connect(installation).await;
        let id = WorkerId::new(uuid::Uuid::now_v7());
        let application = membership.apply(id, name).expect("an application");
        let message = RegisterRequest {
            worker_id: id.to_string(),
            name: name.to_owned(),
            queues: vec!["nobody".to_owned()],
            concurrency: 1,
            proof: application.proof.into(),
            ..RegisterRequest::default()
        };
        let reply = client.register(signed(message, &application.token)).await?;
        let pass = reply.into_inner().pass.expect("tokens");
        let id = id.to_string();
        Ok(Self { client, id, pass })
    }

    /// A heartbeat that names no claims.
    ///
    /// # Errors
    /// As the control plane says.
    pub async fn beat(&mut self, number: i64) -> Result<HeartbeatReply, Status> {
        let message = HeartbeatRequest {
            worker_id: self.id.clone(),
            number,
            ..HeartbeatRequest::default()
        };
        let request = signed(message, &self.pass.worker_token);
        self.client
            .heartbeat(request)
            .await
            .map(|reply| reply.into_inner())
    }

    /// Claims the first try of a task instance.
    ///
    /// # Panics
    /// When it is not granted.
    pub async fn claim(&mut self, task_instance_id: &str) -> StartTask {
        let message = ClaimRequest {
            worker_id: self.id.clone(),
            task_instance_id: task_instance_id.to_owned(),
            try_number: 1,
            claim_id: uuid::Uuid::new_v4().to_string(),
            ..ClaimRequest::default()
        };
        let request = signed(message, &self.pass.worker_token);
        let reply = self.client.claim(request).await.expect("a claim").into_inner();
        match reply.outcome {
            Some(Outcome::Start(start)) => start,
            other => panic!("{other:?}"),
        }
    }

    /// Asks what a task asks, with that token.
    ///
    /// # Errors
    /// As the control plane says.
    pub async fn ask(&mut self, token: &str, question: &Value) -> Result<AskReply, Status> {
        let message = AskRequest {
            request: question.to_string().into_bytes().into(),
        };
        self.client
            .ask(signed(message, token))
            .await
            .map(|reply| reply.into_inner())
    }
}
