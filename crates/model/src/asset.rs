//! Assets: what tasks read and write, and the conditions over them that start runs.
//!
//! Follows `airflow/serialization/definitions/assets.py` and `airflow/assets/evaluation.py`.

use crate::serialized::decode;
use serde_json::{Map, Value, json};

/// What tells assets apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AssetKey {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub uri: String,
}

impl AssetKey {
    /// Reads `{"name": ..., "uri": ...}`.
    pub fn read(value: &Value) -> Option<Self> {
        Some(Self {
            name: value.get("name")?.as_str()?.to_owned(),
            uri: value.get("uri")?.as_str()?.to_owned(),
        })
    }
}

/// An asset as a DAG file defines it.
#[derive(Debug, Clone, PartialEq)]
pub struct Asset {
    /// Which it is.
    pub key: AssetKey,
    /// What kind of thing it is; Airflow's default is `asset`.
    pub group: String,
    /// What the file says about it.
    pub extra: Map<String, Value>,
    /// Triggers that update it.
    pub watchers: Vec<Watcher>,
}

/// A trigger that updates an asset when it fires.
#[derive(Debug, Clone, PartialEq)]
pub struct Watcher {
    /// Its name.
    pub name: String,
    /// Import path of the trigger's class.
    pub classpath: String,
    /// Its arguments, as Airflow serializes them.
    pub kwargs: Value,
}

impl Watcher {
    fn read(value: &Value) -> Option<Self> {
        let value = value.get("__var").unwrap_or(value);
        let trigger = value.get("trigger")?;
        let trigger = trigger.get("__var").unwrap_or(trigger);
        Some(Self {
            name: value.get("name")?.as_str()?.to_owned(),
            classpath: trigger.get("classpath")?.as_str()?.to_owned(),
            kwargs: trigger.get("kwargs").cloned().unwrap_or_default(),
        })
    }
}

/// What may stand where an asset is wanted.
#[derive(Debug, Clone, PartialEq)]
pub enum AssetLike {
    /// An asset itself.
    Asset(Asset),
    /// The asset of that name.
    NameRef(String),
    /// The asset at that URI.
    UriRef(String),
    /// Whatever a task attaches to the alias at run time.
    Alias {
        /// The alias.
        name: String,
        /// What kind of thing it is.
        group: String,
    },
}

impl AssetLike {
    /// Reads the serialized form, `{"__type": ..., ...}` with or without `__var`. `None` for what is no asset.
    pub fn from_serialized(value: &Value) -> Option<Self> {
        let body = value.get("__var").unwrap_or(value);
        let text = |key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
        let group = || text("group").unwrap_or_else(|| "asset".to_owned());
        match value.get("__type")?.as_str()? {
            "asset" => Some(Self::Asset(Asset {
                key: AssetKey::read(body)?,
                group: group(),
                extra: extra(body.get("extra")),
                watchers: body
                    .get("watchers")
                    .map(|list| list.get("__var").unwrap_or(list))
                    .and_then(Value::as_array)
                    .map(|list| list.iter().filter_map(Watcher::read).collect())
                    .unwrap_or_default(),
            })),
            "asset_ref" => text("name")
                .map(Self::NameRef)
                .or_else(|| text("uri").map(Self::UriRef)),
            "asset_alias" => Some(Self::Alias {
                name: text("name")?,
                group: group(),
            }),
            _ => None,
        }
    }

    /// As Airflow's `asset_expression` shows it.
    fn expression(&self) -> Value {
        match self {
            Self::Asset(asset) => {
                let Asset { key, group, .. } = asset;
                json!({"asset": {"uri": key.uri, "name": key.name, "group": group}})
            }
            Self::NameRef(name) => json!({"asset_ref": {"name": name}}),
            Self::UriRef(uri) => json!({"asset_ref": {"uri": uri}}),
            Self::Alias { name, group } => json!({"alias": {"name": name, "group": group}}),
        }
    }
}

/// The extra facts of an asset, which serialization may have wrapped.
fn extra(value: Option<&Value>) -> Map<String, Value> {
    // Without a mark it is the user's own, as it is.
    let is_marked = |value: &Value| value.get("__type").is_some() && value.get("__var").is_some();
    match value.map(|value| {
        if is_marked(value) {
            decode(value)
        } else {
            value.clone()
        }
    }) {
        Some(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

/// Which assets must have been updated for a run.
#[derive(Debug, Clone, PartialEq)]
pub enum AssetCondition {
    /// This one.
    One(AssetLike),
    /// Any of these.
    Any(Vec<Self>),
    /// All of these.
    All(Vec<Self>),
}

/// An asset that has been updated since the last run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdatedAsset {
    /// Which it is.
    pub key: AssetKey,
    /// Whether it has its name and URI for itself, so that references find it.
    pub is_active: bool,
    /// The aliases that it has been attached to.
    pub aliases: Vec<String>,
}

impl AssetCondition {
    /// Reads the serialized form. `None` when a part of it is none.
    pub fn from_serialized(value: &Value) -> Option<Self> {
        let body = value.get("__var").unwrap_or(value);
        let parts = || -> Option<Vec<Self>> {
            let parts = body.get("objects")?.as_array()?;
            parts.iter().map(Self::from_serialized).collect()
        };
        match value.get("__type")?.as_str()? {
            "asset_any" => parts().map(Self::Any),
            "asset_all" => parts().map(Self::All),
            _ => AssetLike::from_serialized(value).map(Self::One),
        }
    }

    /// Whether it is met by these updates.
    pub fn is_met(&self, updated: &[UpdatedAsset]) -> bool {
        match self {
            Self::Any(parts) => parts.iter().any(|part| part.is_met(updated)),
            Self::All(parts) => parts.iter().all(|part| part.is_met(updated)),
            Self::One(AssetLike::Asset(asset)) => updated.iter().any(|found| found.key == asset.key),
            Self::One(AssetLike::NameRef(name)) => updated
                .iter()
                .any(|found| found.is_active && found.key.name == *name),
            Self::One(AssetLike::UriRef(uri)) => updated
                .iter()
                .any(|found| found.is_active && found.key.uri == *uri),
            Self::One(AssetLike::Alias { name, .. }) => {
                updated.iter().any(|found| found.aliases.contains(name))
            }
        }
    }

    /// Everything that it names, from left to right.
    pub fn leaves(&self) -> Vec<&AssetLike> {
        match self {
            Self::One(leaf) => vec![leaf],
            Self::Any(parts) | Self::All(parts) => parts.iter().flat_map(Self::leaves).collect(),
        }
    }

    /// As Airflow's REST API shows it.
    pub fn expression(&self) -> Value {
        let all = |parts: &[Self]| -> Vec<Value> { parts.iter().map(Self::expression).collect() };
        match self {
            Self::One(leaf) => leaf.expression(),
            Self::Any(parts) => json!({"any": all(parts)}),
            Self::All(parts) => json!({"all": all(parts)}),
        }
    }
}

/// An outlet as a task that succeeded names it (the SDK's `AssetProfile`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outlet {
    /// An asset.
    Asset(AssetKey),
    /// The asset of that name.
    NameRef(String),
    /// The asset at that URI.
    UriRef(String),
    /// An alias; what was attached to it is told by [`OutletEvent::alias`].
    Alias(String),
}

impl Outlet {
    /// Reads an `AssetProfile`. `None` for what names nothing.
    pub fn read(profile: &Value) -> Option<Self> {
        let text = |key: &str| profile.get(key).and_then(Value::as_str).map(str::to_owned);
        match profile.get("type")?.as_str()? {
            "Asset" => AssetKey::read(profile).map(Self::Asset),
            "AssetNameRef" => text("name").map(Self::NameRef),
            "AssetUriRef" => text("uri").map(Self::UriRef),
            "AssetAlias" => text("name").map(Self::Alias),
            _ => None,
        }
    }
}

/// What a task says about one update of an outlet.
#[derive(Debug, Clone, PartialEq)]
pub struct OutletEvent {
    /// The asset that was updated.
    pub asset: AssetKey,
    /// The alias through which it was.
    pub alias: Option<String>,
    /// For an alias: the extra facts of the asset, should it be new.
    pub asset_extra: Map<String, Value>,
    /// What the task says about the update.
    pub extra: Map<String, Value>,
    /// The partition that was updated, where the task names one.
    pub partition_key: Option<String>,
}

impl OutletEvent {
    /// Reads one of the SDK's `outlet_events`.
    pub fn read(event: &Value) -> Option<Self> {
        let text = |key: &str| event.get(key).and_then(Value::as_str).map(str::to_owned);
        Some(Self {
            asset: AssetKey::read(event.get("dest_asset_key")?)?,
            alias: text("source_alias_name"),
            asset_extra: extra(event.get("dest_asset_extra")),
            extra: extra(event.get("extra")),
            partition_key: text("partition_key"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn updated(name: &str, is_active: bool, aliases: &[&str]) -> UpdatedAsset {
        UpdatedAsset {
            key: AssetKey {
                name: name.to_owned(),
                uri: format!("s3://{name}"),
            },
            is_active,
            aliases: aliases.iter().map(|&alias| alias.to_owned()).collect(),
        }
    }

    fn condition() -> AssetCondition {
        let asset = |name: &str| json!({"__type": "asset", "name": name, "uri": format!("s3://{name}"), "group": "asset", "extra": {}});
        let alias = json!({"__type": "asset_alias", "name": "al", "group": "asset"});
        let by_name = json!({"__type": "asset_ref", "name": "c"});
        let both = json!({"__type": "asset_all", "objects": [asset("b"), alias]});
        AssetCondition::from_serialized(
            &json!({"__type": "asset_any", "objects": [asset("a"), both, by_name]}),
        )
        .expect("a condition")
    }

    #[test]
    fn any_all_aliases_and_references_are_told_apart() {
        let condition = condition();
        assert!(!condition.is_met(&[]));
        assert!(condition.is_met(&[updated("a", false, &[])]));
        assert!(!condition.is_met(&[updated("b", true, &[])]));
        assert!(condition.is_met(&[updated("b", true, &[]), updated("x", true, &["al"])]));
        assert!(condition.is_met(&[updated("c", true, &[])]));
        assert!(
            !condition.is_met(&[updated("c", false, &[])]),
            "a reference finds active assets only"
        );
        assert_eq!(condition.leaves().len(), 4);
    }

    #[test]
    fn the_expression_is_that_of_airflow() {
        let shown = condition().expression();
        assert_eq!(
            shown["any"][0],
            json!({"asset": {"uri": "s3://a", "name": "a", "group": "asset"}})
        );
        assert_eq!(
            shown["any"][1]["all"][1],
            json!({"alias": {"name": "al", "group": "asset"}})
        );
        assert_eq!(shown["any"][2], json!({"asset_ref": {"name": "c"}}));
    }

    #[test]
    fn what_the_sdk_reports_is_read() {
        let profile = json!({"name": "a", "uri": "s3://a", "type": "Asset"});
        assert!(matches!(Outlet::read(&profile), Some(Outlet::Asset(key)) if key.name == "a"));
        let profile = json!({"name": "al", "uri": null, "type": "AssetAlias"});
        assert_eq!(Outlet::read(&profile), Some(Outlet::Alias("al".to_owned())));
        let event = json!({"dest_asset_key": {"name": "a", "uri": "u"}, "source_alias_name": "al",
                           "dest_asset_extra": {}, "extra": {"rows": 3}});
        let event = OutletEvent::read(&event).expect("an event");
        assert_eq!(event.extra["rows"], 3);
        assert_eq!(event.alias.as_deref(), Some("al"));
    }
}
