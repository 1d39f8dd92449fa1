//! Where DAG files come from (`[dag_processor] dag_bundle_config_list`).

use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The class of bundles that are folders of this machine.
pub const LOCAL_BUNDLE: &str = "airflow.dag_processing.bundles.local.LocalDagBundle";
/// The name that Airflow keeps for its example DAGs.
const RESERVED: &str = "example_dags";
/// Characters that a name may have.
const NAME: usize = 250;

/// A source of DAG files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DagBundle {
    /// Its name; no other bundle has the same.
    pub name: String,
    /// The Python class that knows where the files are.
    pub classpath: String,
    /// What the class is made with, beside the name.
    pub kwargs: Map<String, Value>,
    /// The folder of a local bundle; that of any other only its class knows.
    pub folder: Option<PathBuf>,
    /// Time between two refreshes, if it is not `[dag_processor] refresh_interval`.
    pub refresh_interval: Option<Duration>,
}

impl DagBundle {
    /// Reads the list. A local bundle without a path is the DAG folder.
    ///
    /// # Errors
    /// What is allowed, when the text is something else.
    pub(crate) fn read_all(text: &str, dags_folder: &Path) -> Result<Vec<Self>, String> {
        let text = if text.trim().is_empty() { "[]" } else { text };
        let list: Value = serde_json::from_str(text)
            .map_err(|error| format!("a JSON list of objects with name, classpath and kwargs ({error})"))?;
        let Value::Array(items) = list else {
            return Err("a JSON list of objects with name, classpath and kwargs".to_owned());
        };
        let mut bundles: Vec<Self> = Vec::with_capacity(items.len());
        for item in &items {
            let bundle = Self::read(item, dags_folder)?;
            if bundles.iter().any(|other| other.name == bundle.name) {
                return Err(format!("each name once, and {:?} is there twice", bundle.name));
            }
            bundles.push(bundle);
        }
        Ok(bundles)
    }

    fn read(item: &Value, dags_folder: &Path) -> Result<Self, String> {
        let text = |key: &str| item.get(key).and_then(Value::as_str);
        let (Some(name), Some(classpath), Some(Value::Object(kwargs))) =
            (text("name"), text("classpath"), item.get("kwargs"))
        else {
            return Err(format!(
                "objects with the texts name and classpath and the object kwargs, not {item}"
            ));
        };
        if name.is_empty() || name.chars().count() > NAME {
            return Err(format!("names of 1 to {NAME} characters"));
        }
        if name == RESERVED {
            return Err(format!(
                "any name but {RESERVED:?}; example DAGs are switched on with [core] load_examples"
            ));
        }
        if item.get("team_name").is_some_and(|team| !team.is_null()) {
            return Err("objects without a team_name: there are no teams".to_owned());
        }
        let refresh_interval = match kwargs.get("refresh_interval") {
            None => None,
            Some(value) => Some(
                value
                    .as_f64()
                    .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
                    .ok_or("kwargs with a refresh_interval in seconds")?,
            ),
        };
        let mut kwargs = kwargs.clone();
        let folder = if classpath == LOCAL_BUNDLE {
            let folder = match kwargs.get("path") {
                None | Some(Value::Null) => dags_folder.to_owned(),
                Some(Value::String(path)) if Path::new(path).is_absolute() => PathBuf::from(path),
                Some(_) => return Err("kwargs with an absolute path".to_owned()),
            };
            kwargs.insert("path".to_owned(), folder.to_string_lossy().into_owned().into());
            Some(folder)
        } else {
            None
        };
        Ok(Self {
            name: name.to_owned(),
            classpath: classpath.to_owned(),
            kwargs,
            folder,
            refresh_interval,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<DagBundle>, String> {
        DagBundle::read_all(text, Path::new("/dags"))
    }

    #[test]
    fn a_local_bundle_without_a_path_is_the_dag_folder() {
        let text = format!(
            r#"[{{"name": "dags-folder", "classpath": "{LOCAL_BUNDLE}", "kwargs": {{}}}},
                {{"name": "team", "classpath": "{LOCAL_BUNDLE}", "kwargs": {{"path": "/team", "refresh_interval": 5}}}},
                {{"name": "git", "classpath": "x.GitDagBundle", "kwargs": {{"tracking_ref": "main"}}}}]"#
        );
        let bundles = read(&text).unwrap();
        let folders: Vec<_> = bundles.iter().map(|bundle| bundle.folder.clone()).collect();
        assert_eq!(folders, [Some("/dags".into()), Some("/team".into()), None]);
        assert_eq!(bundles[1].refresh_interval, Some(Duration::from_secs(5)));
        assert_eq!(bundles[2].kwargs["tracking_ref"], "main");
        assert_eq!(read("").unwrap(), []);
    }

    #[test]
    fn what_airflow_refuses_is_refused() {
        let one = format!(r#"{{"name": "a", "classpath": "{LOCAL_BUNDLE}", "kwargs": {{"path": "/a"}}}}"#);
        for wrong in [
            "no json".to_owned(),
            "{}".to_owned(),
            "[1]".to_owned(),
            r#"[{"name": "a", "kwargs": {}}]"#.to_owned(),
            format!("[{one}, {one}]"),
            one.replace("\"a\"", "\"example_dags\""),
            format!("[{}]", one.replace("\"a\"", "\"example_dags\"")),
            format!("[{}]", one.replace("/a", "a")),
            format!(
                "[{}]",
                one.replace("\"kwargs\"", "\"team_name\": \"t\", \"kwargs\"")
            ),
        ] {
            assert!(read(&wrong).is_err(), "{wrong}");
        }
    }
}
