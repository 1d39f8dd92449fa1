//! Signed tokens (JWT, HS512), as Airflow's simple auth manager issues them.

use config::Secret;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode, get_current_timestamp,
};
use model::{ClaimEpoch, TaskInstanceId, WorkerId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use thiserror::Error;
use uuid::Uuid;

const WORKERS: &str = "urn:updraft:worker";
const CLAIMS: &str = "urn:updraft:claim";
const FAREWELLS: &str = "urn:updraft:farewell";
/// Seconds by which the clocks of API servers may differ.
const LEEWAY: u64 = 10;
/// A claim's token dies with the claim; this only bounds what a leak could do after the database is gone.
const CLAIM_LIFETIME: Duration = Duration::from_secs(30 * 86_400);

/// What a user may do. Each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Look.
    Viewer,
    /// Trigger and change runs.
    User,
    /// Configure.
    Op,
    /// Everything.
    Admin,
}

impl Role {
    /// Reads a role's word, in either case.
    pub fn parse(word: &str) -> Option<Self> {
        match word.to_ascii_lowercase().as_str() {
            "viewer" => Some(Self::Viewer),
            "user" => Some(Self::User),
            "op" => Some(Self::Op),
            "admin" => Some(Self::Admin),
            _ => None,
        }
    }
}

/// Why a token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TokenError {
    /// Its time is over.
    #[error("Token Expired")]
    Expired,
    /// It is no token of ours, or not of this kind.
    #[error("Invalid JWT token")]
    Invalid,
}

/// A user, as a token tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserToken {
    /// Login name.
    pub sub: String,
    /// Role, as configured.
    pub role: Option<String>,
    /// Teams; none here.
    #[serde(default)]
    pub teams: Vec<String>,
}

/// One claim of a worker, as a token tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimToken {
    /// The task instance.
    #[serde(rename = "sub")]
    pub task_instance: TaskInstanceId,
    /// The claim.
    pub epoch: ClaimEpoch,
    /// The try, which names its log.
    pub try_number: u32,
    /// The worker's life.
    pub worker: WorkerId,
}

#[derive(Serialize)]
struct Envelope<'a, T> {
    #[serde(flatten)]
    body: &'a T,
    jti: String,
    aud: &'a str,
    nbf: u64,
    exp: u64,
    iat: u64,
}

/// Signs `body` for that audience; `key_id` names the key.
pub(crate) fn sign<T: Serialize>(
    key: &EncodingKey,
    key_id: &str,
    body: &T,
    audience: &str,
    lifetime: Duration,
) -> Result<String, TokenError> {
    let now = get_current_timestamp();
    let envelope = Envelope {
        body,
        jti: Uuid::new_v4().simple().to_string(),
        aud: audience,
        nbf: now,
        exp: now + lifetime.as_secs(),
        iat: now,
    };
    let mut header = Header::new(Algorithm::HS512);
    header.kid = Some(key_id.to_owned());
    encode(&header, &envelope, key).map_err(|_| TokenError::Invalid)
}

/// What is signed with that key for that audience, where clocks differ by `leeway` seconds at most.
pub(crate) fn check<T: DeserializeOwned>(
    key: &DecodingKey,
    token: &str,
    audience: &str,
    leeway: u64,
) -> Result<T, TokenError> {
    let mut validation = Validation::new(Algorithm::HS512);
    validation.leeway = leeway;
    validation.validate_nbf = true;
    validation.set_audience(&[audience]);
    validation.set_required_spec_claims(&["exp", "nbf", "aud"]);
    match decode(token, key, &validation) {
        Ok(data) => Ok(data.claims),
        Err(error) if matches!(error.kind(), ErrorKind::ExpiredSignature) => Err(TokenError::Expired),
        Err(_) => Err(TokenError::Invalid),
    }
}

#[derive(Serialize, Deserialize)]
struct WorkerBody {
    sub: String,
}

/// Signs and checks tokens.
#[derive(Clone)]
pub struct Tokens {
    signing: EncodingKey,
    checking: DecodingKey,
    audience: String,
}

impl Tokens {
    /// With this key, and this audience for users' tokens.
    pub fn new(secret: &Secret, audience: &str) -> Self {
        Self {
            signing: EncodingKey::from_secret(secret.expose().as_bytes()),
            checking: DecodingKey::from_secret(secret.expose().as_bytes()),
            audience: audience.to_owned(),
        }
    }

    fn sign<T: Serialize>(&self, body: &T, audience: &str, lifetime: Duration) -> Result<String, TokenError> {
        sign(&self.signing, "not-used", body, audience, lifetime)
    }

    fn check<T: DeserializeOwned>(&self, token: &str, audience: &str) -> Result<T, TokenError> {
        check(&self.checking, token, audience, LEEWAY)
    }

    /// A token for a user.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn for_user(&self, user: &UserToken, lifetime: Duration) -> Result<String, TokenError> {
        self.sign(user, &self.audience, lifetime)
    }

    /// The user that a token is about.
    ///
    /// # Errors
    /// When it is expired or not a user's token of ours.
    pub fn user(&self, token: &str) -> Result<UserToken, TokenError> {
        self.check(token, &self.audience)
    }

    /// A token for one life of a worker.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn for_worker(&self, id: WorkerId, lifetime: Duration) -> Result<String, TokenError> {
        self.sign(&WorkerBody { sub: id.to_string() }, WORKERS, lifetime)
    }

    /// The worker that a token is about.
    ///
    /// # Errors
    /// When it is expired or not a worker's token of ours.
    pub fn worker(&self, token: &str) -> Result<WorkerId, TokenError> {
        self.life(token, WORKERS)
    }

    /// A token that can only say that this life of a worker has ended: for its watchdog.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn for_farewell(&self, id: WorkerId, lifetime: Duration) -> Result<String, TokenError> {
        self.sign(&WorkerBody { sub: id.to_string() }, FAREWELLS, lifetime)
    }

    /// The worker of whose death a token may tell.
    ///
    /// # Errors
    /// When it is expired or not such a token of ours.
    pub fn farewell(&self, token: &str) -> Result<WorkerId, TokenError> {
        self.life(token, FAREWELLS)
    }

    fn life(&self, token: &str, audience: &str) -> Result<WorkerId, TokenError> {
        let body: WorkerBody = self.check(token, audience)?;
        body.sub.parse().map_err(|_| TokenError::Invalid)
    }

    /// A token for one claim.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn for_claim(&self, claim: &ClaimToken) -> Result<String, TokenError> {
        self.sign(claim, CLAIMS, CLAIM_LIFETIME)
    }

    /// The claim that a token is about.
    ///
    /// # Errors
    /// When it is expired or not a claim's token of ours.
    pub fn claim(&self, token: &str) -> Result<ClaimToken, TokenError> {
        self.check(token, CLAIMS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(secret: &str) -> Tokens {
        Tokens::new(&Secret::new(secret), "apache-airflow")
    }

    fn user() -> UserToken {
        UserToken {
            sub: "admin".to_owned(),
            role: Some("admin".to_owned()),
            teams: Vec::new(),
        }
    }

    #[test]
    fn a_token_opens_only_what_it_is_for() {
        let ours = tokens("one");
        let worker = WorkerId::new(Uuid::from_u128(1));
        let token = ours.for_user(&user(), Duration::from_secs(60)).unwrap();
        assert_eq!(ours.user(&token), Ok(user()));
        assert_eq!(ours.worker(&token), Err(TokenError::Invalid));
        assert_eq!(tokens("two").user(&token), Err(TokenError::Invalid));
        let minute = Duration::from_secs(60);
        let (living, dead) = (
            ours.for_worker(worker, minute).unwrap(),
            ours.for_farewell(worker, minute).unwrap(),
        );
        assert_eq!(ours.worker(&living), Ok(worker));
        assert_eq!(ours.user(&living), Err(TokenError::Invalid));
        assert_eq!(ours.farewell(&dead), Ok(worker));
        let claim = ClaimToken {
            task_instance: TaskInstanceId::new(Uuid::from_u128(2)),
            epoch: ClaimEpoch(3),
            try_number: 1,
            worker,
        };
        let claimed = ours.for_claim(&claim).unwrap();
        assert_eq!(ours.claim(&claimed), Ok(claim));
        for other in [&token, &dead, &claimed] {
            assert_eq!(ours.worker(other), Err(TokenError::Invalid));
        }
        for other in [&token, &living, &claimed] {
            assert_eq!(ours.farewell(other), Err(TokenError::Invalid));
        }
        for other in [&token, &living, &dead] {
            assert_eq!(ours.claim(other), Err(TokenError::Invalid));
        }
    }

    #[test]
    fn expired_unsigned_and_garbled_tokens_are_refused() {
        let ours = tokens("one");
        let mut old = ours.clone();
        old.audience = "other".to_owned();
        let foreign = old.for_user(&user(), Duration::from_secs(60)).unwrap();
        assert_eq!(ours.user(&foreign), Err(TokenError::Invalid));
        assert_eq!(ours.user("garbage"), Err(TokenError::Invalid));
        // {"alg":"none","typ":"JWT"} . {"sub":"admin","aud":"apache-airflow","nbf":0,"exp":99999999999}
        let unsigned = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJzdWIiOiJhZG1pbiIsImF1ZCI6ImFwYWNoZS1haXJmbG93IiwibmJmIjowLCJleHAiOjk5OTk5OTk5OTk5fQ.";
        assert_eq!(ours.user(unsigned), Err(TokenError::Invalid));
    }
}
