//! Wishes for encryption. Each is honoured, or it is an error: none is passed over, so that nothing goes in clear where
//! somebody believes that it does not.

use crate::error::ConfigError;
use crate::raw::RawConfig;

const MODES: [&str; 5] = [
    "DISABLED",
    "PREFERRED",
    "REQUIRED",
    "VERIFY_CA",
    "VERIFY_IDENTITY",
];

/// Options of Airflow that ask for encryption in a way that is not there: section, name, what to do instead.
const NOT_THERE: [(&str, &str, &str); 3] = [
    (
        "api",
        "ssl_cert",
        "nothing: the API server's REST side speaks HTTP only, so let a proxy before it speak TLS (the control plane has [updraft] grpc_ssl_cert)",
    ),
    (
        "api",
        "ssl_key",
        "nothing: the API server's REST side speaks HTTP only, so let a proxy before it speak TLS (the control plane has [updraft] grpc_ssl_key)",
    ),
    (
        "database",
        "sql_alchemy_connect_args",
        "nothing: write it into [database] sql_alchemy_conn, such as ...?ssl_ca=FILE",
    ),
];

/// Refuses options that cannot be honoured.
pub(super) fn check(raw: &RawConfig) -> Result<(), ConfigError> {
    let text = |section: &str, key: &str| raw.get(section, key).map_or("", |(value, _)| value.trim());
    for (section, key, allowed) in NOT_THERE {
        if !text(section, key).is_empty() {
            return Err(raw.bad_value(section, key, allowed));
        }
    }
    if !is_true(text("celery", "ssl_active")).unwrap_or(false) {
        return Ok(());
    }
    for key in ["ssl_cacert", "ssl_cert", "ssl_key"] {
        if !text("celery", key).is_empty() {
            let allowed = "nothing: an amqps:// server is trusted by the certificates of the machine, or those of the variable SSL_CERT_FILE";
            return Err(raw.bad_value("celery", key, allowed));
        }
    }
    if text("celery", "broker_url").starts_with("amqps://") {
        return Ok(());
    }
    let allowed = "an amqps:// URL, as [celery] ssl_active is set";
    Err(raw.bad_value("celery", "broker_url", allowed))
}

fn is_true(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "t" | "1" | "yes" | "on" => Some(true),
        "false" | "f" | "0" | "no" | "off" | "" => Some(false),
        _ => None,
    }
}

/// What the query of a database URL says about encryption, in the words of Python's drivers or of MySQL's own.
#[derive(Default)]
struct Wishes {
    mode: Option<String>,
    /// `ssl_ca` and its like, as they are passed on.
    files: Vec<String>,
    verifies: bool,
    checks_name: Option<bool>,
    is_on: Option<bool>,
}

impl Wishes {
    fn add(&mut self, key: &str, value: &str) -> Option<()> {
        let word: String = key
            .chars()
            .filter(|c| *c != '_' && *c != '-')
            .collect::<String>()
            .to_ascii_lowercase();
        match word.as_str() {
            "sslmode" => {
                let mode = value.to_ascii_uppercase().replace('-', "_");
                self.mode = Some(MODES.contains(&mode.as_str()).then_some(mode)?);
            }
            "sslca" => {
                self.files.push(format!("ssl-ca={value}"));
                self.verifies = true;
                self.checks_name.get_or_insert(true);
            }
            "sslcert" => self.files.push(format!("ssl-cert={value}")),
            "sslkey" => self.files.push(format!("ssl-key={value}")),
            "sslverifycert" => self.verifies |= is_true(value)?,
            "sslverifyidentity" | "sslcheckhostname" => self.checks_name = Some(is_true(value)?),
            "ssldisabled" => self.is_on = Some(!is_true(value)?),
            "ssl" => self.is_on = Some(is_true(value)?),
            _ => return None,
        }
        Some(())
    }

    /// The mode that all of it amounts to; `None` when nothing was wished for.
    fn mode(&self) -> Option<String> {
        let amounts_to = match (self.is_on, self.checks_name, self.verifies) {
            (Some(false), _, _) => Some("DISABLED"),
            (_, Some(true), _) => Some("VERIFY_IDENTITY"),
            (_, _, true) => Some("VERIFY_CA"),
            (Some(true), _, _) => Some("REQUIRED"),
            (None, _, false) if !self.files.is_empty() => Some("REQUIRED"),
            (None, _, false) => None,
        };
        self.mode.clone().or_else(|| amounts_to.map(str::to_owned))
    }
}

/// The rest of a database URL (`user:password@host/database?query`) with its wishes for encryption in the words of our
/// driver. The error is the key and value that cannot be honoured.
pub(super) fn database_url(rest: &str) -> Result<String, String> {
    let Some((place, query)) = rest.split_once('?') else {
        return Ok(rest.to_owned());
    };
    let mut wishes = Wishes::default();
    let mut kept: Vec<String> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let lower = key.to_ascii_lowercase();
        if lower.starts_with("ssl") || lower.starts_with("tls") {
            wishes.add(key, value).ok_or_else(|| pair.to_owned())?;
        } else {
            kept.push(pair.to_owned());
        }
    }
    if let Some(mode) = wishes.mode() {
        kept.push(format!("ssl-mode={mode}"));
    }
    kept.append(&mut wishes.files);
    match kept.is_empty() {
        true => Ok(place.to_owned()),
        false => Ok(format!("{place}?{}", kept.join("&"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, RawConfig};
    use std::collections::BTreeMap;

    #[test]
    fn a_database_url_says_what_is_wished_for_in_the_drivers_words() {
        let query = |query: &str| {
            database_url(&format!("u:p@h/d?{query}")).map(|url| url.trim_start_matches("u:p@h/d").to_owned())
        };
        for (given, expected) in [
            ("charset=utf8mb4", "?charset=utf8mb4"),
            ("", ""),
            ("ssl_ca=/ca.pem", "?ssl-mode=VERIFY_IDENTITY&ssl-ca=/ca.pem"),
            (
                "ssl_ca=/ca.pem&ssl_check_hostname=false",
                "?ssl-mode=VERIFY_CA&ssl-ca=/ca.pem",
            ),
            (
                "ssl_check_hostname=0&ssl-ca=/ca.pem",
                "?ssl-mode=VERIFY_CA&ssl-ca=/ca.pem",
            ),
            (
                "ssl_cert=/c.pem&ssl_key=/k.pem&charset=utf8mb4",
                "?charset=utf8mb4&ssl-mode=REQUIRED&ssl-cert=/c.pem&ssl-key=/k.pem",
            ),
            ("ssl=true", "?ssl-mode=REQUIRED"),
            ("ssl_mode=required", "?ssl-mode=REQUIRED"),
            ("sslmode=verify-identity", "?ssl-mode=VERIFY_IDENTITY"),
            ("ssl_verify_cert=true", "?ssl-mode=VERIFY_CA"),
            ("ssl_verify_identity=true", "?ssl-mode=VERIFY_IDENTITY"),
            ("ssl_disabled=true", "?ssl-mode=DISABLED"),
            ("ssl_disabled=false", "?ssl-mode=REQUIRED"),
        ] {
            assert_eq!(query(given).as_deref(), Ok(expected), "{given}");
        }
        for refused in [
            "ssl_cipher=AES",
            "ssl_capath=/etc",
            "ssl_mode=strong",
            "ssl_verify_cert=perhaps",
            "tls_version=TLSv1.3",
        ] {
            assert_eq!(query(refused), Err(refused.to_owned()));
        }
    }

    fn with(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let home = [("AIRFLOW_HOME", "/nonexistent")];
        let env: BTreeMap<String, String> = home
            .iter()
            .chain(pairs)
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        Config::from_raw(&RawConfig::load_from(env)?)
    }

    #[test]
    fn no_wish_for_encryption_is_passed_over() {
        for (pairs, expected) in [
            (
                &[("AIRFLOW__API__SSL_CERT", "/c.pem")][..],
                "[api] ssl_cert is \"/c.pem\"",
            ),
            (
                &[("AIRFLOW__DATABASE__SQL_ALCHEMY_CONNECT_ARGS", "a.b")],
                "sql_alchemy_conn, such as",
            ),
            (
                &[("AIRFLOW__CELERY__SSL_ACTIVE", "True")],
                "an amqps:// URL, as [celery] ssl_active is set",
            ),
            (
                &[
                    ("AIRFLOW__CELERY__SSL_ACTIVE", "True"),
                    ("AIRFLOW__CELERY__BROKER_URL", "amqps://mq"),
                    ("AIRFLOW__CELERY__SSL_CACERT", "/ca.pem"),
                ],
                "SSL_CERT_FILE",
            ),
            (
                &[(
                    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
                    "mysql://u:hunter2@h/d?ssl_cipher=AES",
                )],
                "ssl_cipher=AES",
            ),
            (
                &[("AIRFLOW__UPDRAFT__GRPC_SSL_CERT", "/c.pem")],
                "[updraft] grpc_ssl_key",
            ),
        ] {
            let error = with(pairs).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
        }
        let both = [
            ("AIRFLOW__CELERY__SSL_ACTIVE", "True"),
            ("AIRFLOW__CELERY__BROKER_URL", "amqps://mq"),
        ];
        assert!(with(&both).is_ok());
        assert!(with(&[("AIRFLOW__CELERY__SSL_ACTIVE", "False")]).is_ok());
    }
}
