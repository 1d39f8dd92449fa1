//! How workers come to belong to an installation.
//!
//! Each pool of workers has a join token. It follows from `[api_auth] jwt_secret` and the pool's name, one way: who has it
//! can register workers of that pool, and can neither sign what API servers sign nor find the token of another pool. It is
//! a key, so it never travels: a worker signs its application with it.
//!
//! The application names the worker's own public key and carries a proof of the private one. As long as a life of the worker
//! lasts, nobody without that key registers under its name.

use crate::token::{TokenError, check, sign};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use config::Secret;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, crypto, decode_header};
use model::WorkerId;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::time::Duration;
use thiserror::Error;

const JOINS: &str = "urn:updraft:join";
const SEALS: &str = "urn:updraft:seal";
/// How long an application is good for: it is sent at once.
const APPLICATION_LIFETIME: Duration = Duration::from_secs(60);
/// Seconds by which the clocks of workers and API servers may differ.
const LEEWAY: u64 = 300;
/// A seal is good for as long as a claim's token; it opens nothing.
const SEAL_LIFETIME: Duration = Duration::from_secs(30 * 86_400);
/// Characters of a pool's name.
const LONGEST_POOL: usize = 64;
/// Bytes of the secret in a join token.
const SECRET: usize = 32;
const JOIN_CONTEXT: &str = "updraft join token v1";
const KEY_CONTEXT: &str = "updraft worker key v1";

/// A text that is no join token, or a name that no pool can have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JoinError {
    /// It does not have the form of a join token.
    #[error(
        "this is not a join token; `updraft workers join-token` prints one where [api_auth] jwt_secret is set"
    )]
    Form,
    /// The pool's name.
    #[error("{0:?} is no name of a pool of workers: it has 1 to {LONGEST_POOL} letters, digits, '-' and '_'")]
    Pool(String),
    /// The key cannot be used.
    #[error("no join token can be made from [api_auth] jwt_secret")]
    Key,
}

/// Keys from a key: the HMAC (SHA-256) of `context` and `input`.
fn derive(key: &[u8], context: &str, input: &[u8]) -> Option<[u8; SECRET]> {
    let message = [context.as_bytes(), b"\0", input].concat();
    let text = crypto::sign(&message, &EncodingKey::from_secret(key), Algorithm::HS256).ok()?;
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

fn is_pool(name: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=LONGEST_POOL).contains(&name.len()) && name.chars().all(known)
}

/// The join token of a pool of workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    pool: String,
    secret: Secret,
}

impl JoinToken {
    /// That of this pool, in the installation with this `[api_auth] jwt_secret`.
    ///
    /// # Errors
    /// When no pool can have that name.
    pub fn of_pool(jwt_secret: &Secret, pool: &str) -> Result<Self, JoinError> {
        if !is_pool(pool) {
            return Err(JoinError::Pool(pool.to_owned()));
        }
        let key = jwt_secret.expose().as_bytes();
        let secret = derive(key, JOIN_CONTEXT, pool.as_bytes()).ok_or(JoinError::Key)?;
        Ok(Self {
            pool: pool.to_owned(),
            secret: Secret::new(URL_SAFE_NO_PAD.encode(secret)),
        })
    }

    /// Reads what [`JoinToken::text`] wrote.
    ///
    /// # Errors
    /// When it has another form.
    pub fn read(text: &str) -> Result<Self, JoinError> {
        let (pool, secret) = text.trim().split_once('.').ok_or(JoinError::Form)?;
        let bytes = URL_SAFE_NO_PAD.decode(secret).map_err(|_| JoinError::Form)?;
        if !is_pool(pool) || bytes.len() != SECRET {
            return Err(JoinError::Form);
        }
        Ok(Self {
            pool: pool.to_owned(),
            secret: Secret::new(secret),
        })
    }

    /// The token as text: the pool, a dot, the secret.
    pub fn text(&self) -> Secret {
        Secret::new(format!("{}.{}", self.pool, self.secret.expose()))
    }

    /// The pool.
    pub fn pool(&self) -> &str {
        &self.pool
    }

    fn key(&self) -> &[u8] {
        self.secret.expose().as_bytes()
    }
}

/// What an application says, signed with the join token.
#[derive(Serialize, Deserialize)]
struct JoinBody {
    /// The worker's life.
    sub: String,
    name: String,
    /// The worker's public key.
    key: String,
}

/// What is sealed: a digest.
#[derive(Serialize, Deserialize)]
struct SealBody {
    sub: String,
}

/// What a worker registers with.
#[derive(Debug, Clone)]
pub struct Application {
    /// Goes where calls carry their token.
    pub token: String,
    /// Signature of the worker's key over that token.
    pub proof: Vec<u8>,
}

/// A worker's own view: the pool that it belongs to, and its key. Clones share nothing that changes.
#[derive(Clone)]
pub struct Membership {
    pool: String,
    signing: EncodingKey,
    checking: DecodingKey,
    key: SigningKey,
}

impl Membership {
    /// Of a worker with that join token. Its key follows from the token and `seed` together: who reads only one of them does
    /// not have it, and with the same two it is the same after a restart.
    ///
    /// # Errors
    /// When the token cannot be used.
    pub fn new(token: &JoinToken, seed: &[u8]) -> Result<Self, JoinError> {
        let key = derive(token.key(), KEY_CONTEXT, seed).ok_or(JoinError::Key)?;
        Ok(Self {
            pool: token.pool.clone(),
            signing: EncodingKey::from_secret(token.key()),
            checking: DecodingKey::from_secret(token.key()),
            key: SigningKey::from_bytes(&key),
        })
    }

    /// What registers a life of the worker of that name.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn apply(&self, id: WorkerId, name: &str) -> Result<Application, TokenError> {
        let body = JoinBody {
            sub: id.to_string(),
            name: name.to_owned(),
            key: URL_SAFE_NO_PAD.encode(self.key.verifying_key().as_bytes()),
        };
        let token = sign(&self.signing, &self.pool, &body, JOINS, APPLICATION_LIFETIME)?;
        let proof = self.key.sign(token.as_bytes()).to_vec();
        Ok(Application { token, proof })
    }

    /// A token that proves that a worker of this pool has written what has that digest. It opens nothing.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn seal(&self, digest: &str) -> Result<String, TokenError> {
        let sub = digest.to_owned();
        sign(&self.signing, &self.pool, &SealBody { sub }, SEALS, SEAL_LIFETIME)
    }

    /// Returns `true` if `seal` is one of this pool for that digest.
    pub fn is_sealed(&self, seal: &str, digest: &str) -> bool {
        let body: Result<SealBody, TokenError> = check(&self.checking, seal, SEALS, LEEWAY);
        body.is_ok_and(|body| body.sub == digest)
    }
}

/// A worker that may register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applicant {
    /// Its life.
    pub id: WorkerId,
    /// Its name.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// Its public key, as text.
    pub key: String,
}

/// The pools whose workers may register, as API servers know them.
pub struct Pools(HashMap<String, DecodingKey>);

impl Pools {
    /// These pools.
    ///
    /// # Errors
    /// When no pool can have one of the names.
    pub fn new(jwt_secret: &Secret, pools: &[String]) -> Result<Self, JoinError> {
        let keyed = |pool: &String| {
            let token = JoinToken::of_pool(jwt_secret, pool)?;
            Ok((pool.clone(), DecodingKey::from_secret(token.key())))
        };
        pools.iter().map(keyed).collect::<Result<_, _>>().map(Self)
    }

    /// The worker that applies, if it has the join token of one of the pools and the key that it names.
    ///
    /// # Errors
    /// When it has not, or the application is too old.
    pub fn admit(&self, token: &str, proof: &[u8]) -> Result<Applicant, TokenError> {
        let pool = decode_header(token).ok().and_then(|header| header.kid);
        let (pool, checking) = pool
            .and_then(|pool| self.0.get_key_value(&pool))
            .ok_or(TokenError::Invalid)?;
        let body: JoinBody = check(checking, token, JOINS, LEEWAY)?;
        is_proven(&body.key, token, proof)
            .filter(|proven| *proven)
            .ok_or(TokenError::Invalid)?;
        Ok(Applicant {
            id: body.sub.parse().map_err(|_| TokenError::Invalid)?,
            name: body.name,
            pool: pool.clone(),
            key: body.key,
        })
    }
}

/// `None` when the key or the proof has not the form of one.
fn is_proven(key: &str, token: &str, proof: &[u8]) -> Option<bool> {
    let key: [u8; 32] = URL_SAFE_NO_PAD.decode(key).ok()?.try_into().ok()?;
    let key = VerifyingKey::from_bytes(&key).ok()?;
    let proof = Signature::from_slice(proof).ok()?;
    Some(key.verify_strict(token.as_bytes(), &proof).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tokens;
    use uuid::Uuid;

    fn secret(text: &str) -> Secret {
        Secret::new(text)
    }

    fn member(jwt_secret: &str, pool: &str, seed: &str) -> Membership {
        let token = JoinToken::of_pool(&secret(jwt_secret), pool).unwrap();
        Membership::new(&token, seed.as_bytes()).unwrap()
    }

    fn pools(names: &[&str]) -> Pools {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Pools::new(&secret("one"), &names).unwrap()
    }

    #[test]
    fn a_join_token_is_the_same_every_time_and_another_for_each_pool_and_installation() {
        let token = |jwt_secret, pool| JoinToken::of_pool(&secret(jwt_secret), pool).unwrap();
        assert_eq!(token("one", "gpu"), token("one", "gpu"));
        assert_ne!(token("one", "gpu").secret, token("one", "default").secret);
        assert_ne!(token("one", "gpu").secret, token("two", "gpu").secret);
        let text = token("one", "gpu").text();
        assert_eq!(JoinToken::read(text.expose()), Ok(token("one", "gpu")));
        for garbled in ["", "gpu", "gpu.", "gpu.c2hvcnQ", ".AAAA", "one"] {
            assert_eq!(JoinToken::read(garbled), Err(JoinError::Form), "{garbled}");
        }
        for pool in ["", "a.b", "a b", &"x".repeat(65)] {
            assert!(JoinToken::of_pool(&secret("one"), pool).is_err(), "{pool}");
        }
    }

    #[test]
    fn only_workers_of_the_pools_are_admitted_and_each_with_its_own_key() {
        let id = WorkerId::new(Uuid::from_u128(1));
        let worker = member("one", "gpu", "seed");
        let application = worker.apply(id, "me").unwrap();
        let applicant = pools(&["default", "gpu"])
            .admit(&application.token, &application.proof)
            .unwrap();
        assert_eq!((applicant.id, applicant.name.as_str()), (id, "me"));
        assert_eq!(applicant.pool, "gpu");
        let refused = |pools: &Pools, token: &str, proof: &[u8]| pools.admit(token, proof).is_err();
        let (ours, token) = (pools(&["gpu"]), application.token.as_str());
        // A pool that is not served any more, a token of another installation, a proof by another key, or of another text.
        assert!(refused(&pools(&["default"]), token, &application.proof));
        let foreign = member("two", "gpu", "seed").apply(id, "me").unwrap();
        assert!(refused(&ours, &foreign.token, &foreign.proof));
        let other = member("one", "gpu", "another seed").apply(id, "me").unwrap();
        assert!(refused(&ours, token, &other.proof));
        assert!(refused(&ours, token, &[]) && refused(&ours, token, &[0; 64]));
        let again = worker.apply(id, "me").unwrap();
        assert!(refused(&ours, &again.token, &application.proof));
        // The key is known by token and seed, and by no less.
        let key = |member: &Membership| {
            let application = member.apply(id, "me").unwrap();
            ours.admit(&application.token, &application.proof).unwrap().key
        };
        assert_eq!(key(&worker), key(&member("one", "gpu", "seed")));
        assert_ne!(key(&worker), key(&member("one", "gpu", "another seed")));
    }

    #[test]
    fn a_join_token_signs_nothing_that_api_servers_sign() {
        let id = WorkerId::new(Uuid::from_u128(1));
        let join = JoinToken::of_pool(&secret("one"), "default").unwrap();
        let (ours, forged) = (
            Tokens::new(&secret("one"), "apache-airflow"),
            Tokens::new(&join.secret, "apache-airflow"),
        );
        let minute = Duration::from_secs(60);
        assert!(ours.worker(&forged.for_worker(id, minute).unwrap()).is_err());
        let application = member("one", "default", "seed").apply(id, "me").unwrap();
        assert!(ours.worker(&application.token).is_err() && ours.user(&application.token).is_err());
    }

    #[test]
    fn a_seal_is_good_for_its_digest_and_pool_only() {
        let ours = member("one", "default", "seed");
        let seal = ours.seal("abc").unwrap();
        assert!(ours.is_sealed(&seal, "abc") && !ours.is_sealed(&seal, "abd"));
        assert!(member("one", "default", "another seed").is_sealed(&seal, "abc"));
        assert!(!member("one", "gpu", "seed").is_sealed(&seal, "abc"));
        assert!(pools(&["default"]).admit(&seal, &[0; 64]).is_err());
    }
}
