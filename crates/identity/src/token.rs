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
const SEALS: &str = "urn:updraft:seal";
/// How long a worker's own token is good for; it signs a new one for every connection.
const WORKER_LIFETIME: Duration = Duration::from_secs(3600);
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

#[derive(Serialize, Deserialize)]
struct WorkerBody {
    sub: String,
}

/// What is sealed: a digest, as a token tells.
#[derive(Serialize, Deserialize)]
struct SealBody {
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
        header.kid = Some("not-used".to_owned());
        encode(&header, &envelope, &self.signing).map_err(|_| TokenError::Invalid)
    }

    fn check<T: DeserializeOwned>(&self, token: &str, audience: &str) -> Result<T, TokenError> {
        let mut validation = Validation::new(Algorithm::HS512);
        validation.leeway = 10;
        validation.validate_nbf = true;
        validation.set_audience(&[audience]);
        validation.set_required_spec_claims(&["exp", "nbf", "aud"]);
        match decode(token, &self.checking, &validation) {
            Ok(data) => Ok(data.claims),
            Err(error) if matches!(error.kind(), ErrorKind::ExpiredSignature) => Err(TokenError::Expired),
            Err(_) => Err(TokenError::Invalid),
        }
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

    /// A token with which a worker registers.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn for_worker(&self, id: WorkerId) -> Result<String, TokenError> {
        self.sign(&WorkerBody { sub: id.to_string() }, WORKERS, WORKER_LIFETIME)
    }

    /// The worker that a token is about.
    ///
    /// # Errors
    /// When it is expired or not a worker's token of ours.
    pub fn worker(&self, token: &str) -> Result<WorkerId, TokenError> {
        let body: WorkerBody = self.check(token, WORKERS)?;
        body.sub.parse().map_err(|_| TokenError::Invalid)
    }

    /// A token for one claim.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn for_claim(&self, claim: &ClaimToken) -> Result<String, TokenError> {
        self.sign(claim, CLAIMS, CLAIM_LIFETIME)
    }

    /// A token that proves that a holder of the key has written what has that digest. It opens nothing.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn seal(&self, digest: &str) -> Result<String, TokenError> {
        let sub = digest.to_owned();
        self.sign(&SealBody { sub }, SEALS, CLAIM_LIFETIME)
    }

    /// Returns `true` if `seal` is one of ours for that digest.
    pub fn is_sealed(&self, seal: &str, digest: &str) -> bool {
        let body: Result<SealBody, TokenError> = self.check(seal, SEALS);
        body.is_ok_and(|body| body.sub == digest)
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
        assert_eq!(ours.worker(&ours.for_worker(worker).unwrap()), Ok(worker));
        assert_eq!(
            ours.user(&ours.for_worker(worker).unwrap()),
            Err(TokenError::Invalid)
        );
        let claim = ClaimToken {
            task_instance: TaskInstanceId::new(Uuid::from_u128(2)),
            epoch: ClaimEpoch(3),
            try_number: 1,
            worker,
        };
        assert_eq!(ours.claim(&ours.for_claim(&claim).unwrap()), Ok(claim));
        assert!(ours.worker(&ours.for_claim(&claim).unwrap()).is_err());
        let seal = ours.seal("abc").unwrap();
        assert!(ours.is_sealed(&seal, "abc") && !ours.is_sealed(&seal, "abd"));
        assert!(!tokens("two").is_sealed(&seal, "abc"));
        assert!(ours.claim(&seal).is_err() && ours.worker(&seal).is_err());
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
