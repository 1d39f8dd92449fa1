//! Where DAG files come from.

use serde_json::{Value, json};
use std::path::PathBuf;

/// The class of bundles that are folders of this machine.
const LOCAL: &str = "airflow.dag_processing.bundles.local.LocalDagBundle";

/// A source of DAG files, as Python is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Its name.
    pub name: String,
    /// The folder with the files. Empty while it is not known, see [`Bundle::is_local`].
    pub path: PathBuf,
    /// The Python class.
    pub classpath: String,
    /// What the class is made with, beside the name.
    pub kwargs: Value,
    /// Which version of the files is in the folder, if the class has versions.
    pub version: Option<String>,
    /// `true` if it is a folder of this machine; the folder of any other only its class knows.
    pub is_local: bool,
}

impl Bundle {
    /// A folder of this machine.
    pub fn local(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self {
            name: name.into(),
            kwargs: json!({"path": path}),
            path,
            classpath: LOCAL.to_owned(),
            version: None,
            is_local: true,
        }
    }
}
