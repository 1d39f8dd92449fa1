//! Several changes in one request: `{"actions": [{"action": ..., "entities": [...]}]}`.
//!
//! The answer is always 200; what went wrong with an action stands in its errors, as Airflow's bulk services have it.

use super::body::Body;
use super::error::{ApiError, ApiResult};
use super::reply::Json;
use crate::App;
use axum::http::HeaderMap;
use model::python_text::repr as python_repr;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashSet};
use store::StoreError;

/// What to do about entities that are there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnExistence {
    Fail,
    Skip,
    Overwrite,
}

/// What an action does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verb {
    Create(OnExistence),
    Update { skip_missing: bool, mask: Vec<String> },
    Delete { skip_missing: bool },
}

/// One action.
#[derive(Debug)]
pub(crate) struct Action {
    pub(crate) verb: Verb,
    pub(crate) entities: Vec<Value>,
    place: Vec<Value>,
}

impl Action {
    fn read(value: Value, number: usize) -> ApiResult<Self> {
        let mut place = vec![json!("body"), json!("actions"), json!(number)];
        let word = value["action"].as_str().unwrap_or_default().to_owned();
        let mut body = Body::of(value, place.clone())?;
        let named = body.required_text("action");
        let entities = body.list("entities");
        let skips = |body: &mut Body| match body.text("action_on_non_existence", 20).as_deref() {
            None | Some("fail") => false,
            Some("skip") => true,
            Some(other) => {
                body.refuse_word("action_on_non_existence", "'fail' or 'skip'", other);
                false
            }
        };
        let verb = match named.as_str() {
            "create" => Verb::Create(match body.text("action_on_existence", 20).as_deref() {
                None | Some("fail") => OnExistence::Fail,
                Some("skip") => OnExistence::Skip,
                Some("overwrite") => OnExistence::Overwrite,
                Some(other) => {
                    body.refuse_word("action_on_existence", "'fail', 'skip' or 'overwrite'", other);
                    OnExistence::Fail
                }
            }),
            "update" => Verb::Update {
                skip_missing: skips(&mut body),
                mask: body
                    .texts("update_mask")
                    .unwrap_or_default()
                    .into_iter()
                    .flatten()
                    .collect(),
            },
            "delete" => Verb::Delete {
                skip_missing: skips(&mut body),
            },
            other => {
                body.refuse_word("action", "'create', 'update' or 'delete'", other);
                Verb::Delete { skip_missing: true }
            }
        };
        body.finish()?;
        place.extend([json!(word), json!("entities")]);
        Ok(Self {
            verb,
            entities,
            place,
        })
    }

    /// Where an entity stands in the request.
    pub(crate) fn place_of(&self, number: usize) -> Vec<Value> {
        let mut place = self.place.clone();
        place.push(json!(number));
        place
    }
}

/// The actions of a request.
pub(crate) fn read(headers: &HeaderMap, bytes: &[u8]) -> ApiResult<Vec<Action>> {
    let mut body = Body::read(headers, bytes)?;
    let actions = body.list("actions");
    body.finish()?;
    actions
        .into_iter()
        .enumerate()
        .map(|(number, value)| Action::read(value, number))
        .collect()
}

/// What came of the actions of one kind.
#[derive(Debug, Default)]
pub(crate) struct Results {
    success: Vec<String>,
    errors: Vec<Value>,
}

impl Results {
    pub(crate) fn succeeded(&mut self, key: impl Into<String>) {
        self.success.push(key.into());
    }

    pub(crate) fn failed(&mut self, error: &ApiError) {
        let (status, text) = error.in_words();
        self.errors.push(json!({"error": text, "status_code": status}));
    }
}

/// What came of a request.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    create: Option<Results>,
    update: Option<Results>,
    delete: Option<Results>,
}

impl Outcome {
    pub(crate) fn of(&mut self, verb: &Verb) -> &mut Results {
        let slot = match verb {
            Verb::Create(_) => &mut self.create,
            Verb::Update { .. } => &mut self.update,
            Verb::Delete { .. } => &mut self.delete,
        };
        slot.get_or_insert_default()
    }

    pub(crate) fn into_answer(self) -> Json<Value> {
        let shown = |results: Option<Results>| {
            results.map(|results| json!({"success": results.success, "errors": results.errors}))
        };
        Json(json!({
            "create": shown(self.create), "update": shown(self.update), "delete": shown(self.delete),
        }))
    }
}

/// Things with names that can be created, changed and deleted in bulk.
pub(crate) trait Collection {
    /// "variables with these keys"
    const NAMES: &'static str;
    /// One of them, as a request gives it.
    type Entity: Send;

    /// Takes one out of a request.
    fn read(body: Body) -> ApiResult<Self::Entity>;
    /// Its name.
    fn key(entity: &Self::Entity) -> &str;
    /// Names of all that there are.
    async fn existing(app: &App) -> ApiResult<HashSet<String>>;
    /// Creates it, unless there is one of that name.
    async fn create(app: &App, entity: &Self::Entity) -> Result<(), StoreError>;
    /// Creates it, overwrites it, or changes the fields that the mask names.
    async fn put(app: &App, entity: Self::Entity, mask: &[&str]) -> ApiResult<()>;
    /// Deletes the one of that name.
    async fn remove(app: &App, key: &str) -> ApiResult<()>;
}

/// `{'a', 'b'}`
fn python_set(keys: &BTreeSet<&str>) -> String {
    let shown: Vec<String> = keys.iter().map(|key| python_repr(&json!(key)).0).collect();
    format!("{{{}}}", shown.join(", "))
}

/// Carries out all actions of a request.
pub(crate) async fn run<C: Collection>(app: &App, headers: &HeaderMap, bytes: &[u8]) -> ApiResult {
    let mut work = Vec::new();
    for action in read(headers, bytes)? {
        let mut entities = Vec::new();
        for (number, entity) in action.entities.iter().enumerate() {
            entities.push(match (&action.verb, entity) {
                (Verb::Delete { .. }, Value::String(key)) => Named::Key(key.clone()),
                _ => Named::Whole(C::read(Body::of(entity.clone(), action.place_of(number))?)?),
            });
        }
        work.push((action.verb, entities));
    }
    let mut outcome = Outcome::default();
    for (verb, entities) in work {
        let results = outcome.of(&verb);
        if let Err(error) = carry_out::<C>(app, &verb, entities, results).await {
            results.failed(&error);
        }
    }
    Ok(outcome.into_answer())
}

fn there_already<C: Collection>(keys: &BTreeSet<&str>) -> ApiError {
    ApiError::conflict(format!("The {}: {} already exist.", C::NAMES, python_set(keys)))
}

/// An entity, or its name alone.
enum Named<E> {
    Key(String),
    Whole(E),
}

async fn carry_out<C: Collection>(
    app: &App,
    verb: &Verb,
    entities: Vec<Named<C::Entity>>,
    results: &mut Results,
) -> ApiResult<()> {
    let existing = C::existing(app).await?;
    let key_of = |entity: &Named<C::Entity>| match entity {
        Named::Key(key) => key.clone(),
        Named::Whole(entity) => C::key(entity).to_owned(),
    };
    let keys: Vec<String> = entities.iter().map(key_of).collect();
    let (there, absent): (BTreeSet<&str>, BTreeSet<&str>) = keys
        .iter()
        .map(String::as_str)
        .partition(|key| existing.contains(*key));
    let fails = match verb {
        Verb::Create(on) => *on == OnExistence::Fail && !there.is_empty(),
        Verb::Update { skip_missing, .. } | Verb::Delete { skip_missing } => {
            !skip_missing && !absent.is_empty()
        }
    };
    if fails {
        let names = C::NAMES;
        return Err(match verb {
            Verb::Create(_) => there_already::<C>(&there),
            Verb::Update { .. } | Verb::Delete { .. } => {
                ApiError::not_found(format!("The {names}: {} were not found.", python_set(&absent)))
            }
        });
    }
    for (entity, key) in entities.into_iter().zip(&keys) {
        let is_there = there.contains(key.as_str());
        match (verb, entity) {
            (Verb::Create(OnExistence::Skip), _) if is_there => continue,
            (Verb::Update { .. } | Verb::Delete { .. }, _) if !is_there => continue,
            (Verb::Create(OnExistence::Overwrite), Named::Whole(entity)) => C::put(app, entity, &[]).await?,
            (Verb::Create(on), Named::Whole(entity)) => match C::create(app, &entity).await {
                Ok(()) => {}
                // Somebody else was faster.
                Err(StoreError::Duplicate { .. }) if *on == OnExistence::Skip => continue,
                Err(StoreError::Duplicate { .. }) => {
                    return Err(there_already::<C>(&BTreeSet::from([key.as_str()])));
                }
                Err(error) => return Err(error.into()),
            },
            (Verb::Update { mask, .. }, Named::Whole(entity)) => {
                let mask: Vec<&str> = mask.iter().map(String::as_str).collect();
                C::put(app, entity, &mask).await?;
            }
            (Verb::Delete { .. }, _) => C::remove(app, key).await?,
            // Only deletions name entities by their keys alone.
            (Verb::Create(_) | Verb::Update { .. }, Named::Key(_)) => continue,
        }
        results.succeeded(key);
    }
    Ok(())
}
