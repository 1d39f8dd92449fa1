//! Where the control plane is, and how it is spoken to.

use anyhow::Context;
use config::Config;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

/// The control plane's address. With `https://` it is spoken to by TLS, and in no other way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Address {
    url: String,
    /// Certificates (PEM) that it is trusted by; `None` for those of the machine.
    trusted: Option<String>,
}

impl Address {
    /// That of `[updraft] control_plane`.
    ///
    /// # Errors
    /// When it is no URL, or the certificates of `control_plane_ca` cannot be read.
    pub fn of(config: &Config) -> anyhow::Result<Self> {
        let trusted = config.updraft.control_plane_ca.as_ref().map(|path| {
            std::fs::read_to_string(path)
                .with_context(|| format!("[updraft] control_plane_ca: cannot read {}", path.display()))
        });
        let address = Self {
            url: config.updraft.control_plane.clone(),
            trusted: trusted.transpose()?,
        };
        address
            .endpoint()
            .with_context(|| format!("[updraft] control_plane cannot be spoken to at {}", address.url))?;
        Ok(address)
    }

    /// How to connect to it.
    ///
    /// # Errors
    /// When the address is no URL, or the certificates are none.
    pub fn endpoint(&self) -> Result<Endpoint, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(self.url.clone())?.connect_timeout(Duration::from_secs(5));
        if !self.url.starts_with("https://") {
            return Ok(endpoint);
        }
        let tls = match &self.trusted {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        endpoint.tls_config(tls)
    }
}
