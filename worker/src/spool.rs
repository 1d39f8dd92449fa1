//! Reports that outlive their worker.
//!
//! Each report is written to a file of the worker's own before it is sent, and the file is removed once the report is
//! acknowledged. If the worker dies in between, its watchdog delivers the file before it tells of the death, or the worker
//! does so when it is back, before it registers: both while the claim is still current. A later delivery is stale and changes
//! nothing.
//!
//! What is written outlives the process at once. That it outlives the machine, too, takes much longer and is worth it only
//! for a report that waits for its answer: see [`Spool::harden`].
//!
//! The folder is the worker's alone, and each file is sealed with the join token of the worker's pool. The watchdog has no key;
//! it hears each file's digest through its pipe, which nobody else can write to.

use crate::control::{ControlPlane, is_transient};
use crate::running::Held;
use crate::watchdog::Watchdog;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::Membership;
use prost::Message as _;
use proto::v1::{ReportReply, ReportRequest};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::{Code, Status};

/// Between two attempts to deliver what an earlier life left behind.
const PAUSE: Duration = Duration::from_millis(500);
/// Bytes of a report that are written at once; larger ones are left to another thread.
const SMALL: usize = 256 << 10;
/// How often a report is sent to a control plane that is there but fails over it.
const MOST_FAILURES: u32 = 10;

/// A report with what it takes to deliver it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Page {
    /// Proof of the claim: it is good for nothing but this task instance and this claim.
    pub(crate) token: String,
    /// The report, encoded.
    report: String,
    seal: String,
}

impl Page {
    fn digest_of(token: &str, report: &str) -> String {
        hex(&Sha256::digest(format!("{token}\n{report}").as_bytes()))
    }

    /// The report, if it can be read.
    pub(crate) fn report(&self) -> Option<ReportRequest> {
        let bytes = STANDARD.decode(&self.report).ok()?;
        ReportRequest::decode(bytes.as_slice()).ok()
    }

    fn is_genuine(&self, membership: &Membership) -> bool {
        membership.is_sealed(&self.seal, &Self::digest_of(&self.token, &self.report))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The digest by which the watchdog knows a file.
pub(crate) fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The folder of a worker's reports. Clones share it.
#[derive(Clone)]
pub(crate) struct Spool {
    folder: PathBuf,
    membership: Membership,
    watchdog: Watchdog,
}

impl Spool {
    /// That of the worker of this name, below `$AIRFLOW_HOME`.
    pub(crate) fn new(home: &Path, name: &str, membership: Membership, watchdog: Watchdog) -> Self {
        let own = &digest(name.as_bytes())[..16];
        Self {
            folder: home.join(".updraft/reports").join(own),
            membership,
            watchdog,
        }
    }

    fn path(&self, (id, epoch): Held) -> PathBuf {
        self.folder.join(format!("{id}.{epoch}.report"))
    }

    /// Writes a report down, and tells the watchdog: from then on the report outlives this process. Returns `false` if that
    /// cannot be done: then it is lost with its worker.
    pub(crate) async fn keep(&self, claim: Held, token: &str, report: &ReportRequest) -> bool {
        let size = report.encoded_len();
        let (spool, token) = (self.clone(), token.to_owned());
        let kept = if size <= SMALL {
            spool.write(claim, token, STANDARD.encode(report.encode_to_vec()))
        } else {
            let report = report.clone();
            let writing = move || spool.write(claim, token, STANDARD.encode(report.encode_to_vec()));
            let kept = tokio::task::spawn_blocking(writing).await;
            kept.map_err(std::io::Error::other).and_then(|kept| kept)
        };
        self.say_if_unwritten(kept)
    }

    /// Makes sure that a report which was kept outlives this machine, too.
    pub(crate) async fn harden(&self, claim: Held) {
        let (path, folder) = (self.path(claim), self.folder.clone());
        let hardening = move || {
            std::fs::File::open(path)?.sync_all()?;
            std::fs::File::open(folder)?.sync_all()
        };
        let hardened = tokio::task::spawn_blocking(hardening).await;
        match hardened.map_err(std::io::Error::other).and_then(|done| done) {
            // It was acknowledged and removed meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => {
                self.say_if_unwritten(other);
            }
        }
    }

    fn say_if_unwritten(&self, kept: std::io::Result<()>) -> bool {
        match kept {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(
                    "a report cannot be written to {}; it is lost if this worker dies: {error}",
                    self.folder.display()
                );
                false
            }
        }
    }

    fn write(&self, claim: Held, token: String, report: String) -> std::io::Result<()> {
        self.make_folder()?;
        let seal = self
            .membership
            .seal(&Page::digest_of(&token, &report))
            .map_err(std::io::Error::other)?;
        let text = serde_json::to_vec(&Page { token, report, seal }).map_err(std::io::Error::other)?;
        let path = self.path(claim);
        let draft = path.with_extension("draft");
        std::fs::remove_file(&draft).ok();
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(&text)?;
        std::fs::rename(&draft, &path)?;
        self.watchdog.spooled(path, digest(&text));
        Ok(())
    }

    /// Makes the folder, for this user alone.
    fn make_folder(&self) -> std::io::Result<()> {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.folder)?;
        let facts = std::fs::symlink_metadata(&self.folder)?;
        if !facts.is_dir() || facts.uid() != nix::unistd::geteuid().as_raw() {
            return Err(std::io::Error::other("it is not a folder of this user's own"));
        }
        if facts.mode() & 0o077 != 0 {
            std::fs::set_permissions(&self.folder, std::fs::Permissions::from_mode(0o700))?;
        }
        Ok(())
    }

    /// A report was acknowledged, or is of no use any more.
    pub(crate) fn forget(&self, claim: Held) {
        self.remove(&self.path(claim));
    }

    fn remove(&self, path: &Path) {
        std::fs::remove_file(path).ok();
        self.watchdog.unspooled(path);
    }

    /// Delivers what an earlier life of this worker left behind. Waits for a control plane that is away.
    pub(crate) async fn deliver_earlier(&self, control: &ControlPlane) {
        let Ok(entries) = std::fs::read_dir(&self.folder) else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|extension| extension == "report") {
                self.deliver(control, &path).await;
            } else {
                std::fs::remove_file(&path).ok();
            }
        }
    }

    async fn deliver(&self, control: &ControlPlane, path: &Path) {
        let page = std::fs::read(path)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Page>(&bytes).ok())
            .filter(|page| page.is_genuine(&self.membership));
        let Some((page, report)) = page.and_then(|page| page.report().map(|report| (page, report))) else {
            tracing::error!(
                "{} is not as this worker wrote it; it is not delivered",
                path.display()
            );
            self.remove(path);
            return;
        };
        let mut attempts = Attempts::default();
        let delivered = loop {
            match control.report(&page.token, report.clone()).await {
                Err(status) if attempts.again(&status).await => {}
                other => break other,
            }
        };
        say(delivered.as_ref());
        self.remove(path);
    }
}

/// Counts what goes wrong with the delivery of one report.
#[derive(Default)]
pub(crate) struct Attempts {
    failures: u32,
}

impl Attempts {
    /// Returns `true`, after a pause, if the report is to be sent again: a control plane that is away is waited for, one
    /// that fails over the report is not for ever.
    pub(crate) async fn again(&mut self, status: &Status) -> bool {
        let is_there = matches!(
            status.code(),
            Code::Internal | Code::Unknown | Code::ResourceExhausted
        );
        self.failures += u32::from(is_there);
        if !is_transient(status) || self.failures >= MOST_FAILURES {
            return false;
        }
        tokio::time::sleep(PAUSE).await;
        true
    }
}

fn say(delivered: Result<&ReportReply, &Status>) {
    match delivered {
        Ok(reply) if reply.stale => tracing::warn!(
            "a report that an earlier life of this worker left behind came too late: its claim had ended; it changed nothing"
        ),
        Ok(_) => tracing::info!("a report that an earlier life of this worker left behind was delivered"),
        Err(status) => tracing::error!("a report of an earlier life of this worker was refused: {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::Secret;
    use identity::JoinToken;
    use model::{ClaimEpoch, TaskInstanceId};

    fn spool(home: &Path) -> Spool {
        Spool::new(home, "me@here", membership("a secret"), Watchdog::deaf())
    }

    fn membership(jwt_secret: &str) -> Membership {
        let token = JoinToken::of_pool(&Secret::new(jwt_secret), "default").unwrap();
        Membership::new(&token, b"seed").unwrap()
    }

    fn claim() -> Held {
        (TaskInstanceId::new(uuid::Uuid::from_u128(1)), ClaimEpoch(2))
    }

    fn read(path: &Path) -> Page {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_report_is_kept_for_the_worker_alone_and_comes_back_as_it_was() {
        let home = tempfile::tempdir().unwrap();
        let spool = spool(home.path());
        let report = ReportRequest {
            end_date: 7,
            exit_cause: Some("é".to_owned()),
            ..ReportRequest::default()
        };
        assert!(spool.keep(claim(), "token", &report).await);
        let path = spool.path(claim());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&path), mode(&spool.folder)), (0o600, 0o700));
        let page = read(&path);
        assert!(page.is_genuine(&spool.membership));
        assert_eq!(
            (page.token.as_str(), page.report()),
            ("token", Some(report.clone()))
        );
        // Written by anybody else, or for another claim, it is not.
        let forged = Page {
            token: "another token".to_owned(),
            ..read(&path)
        };
        assert!(!forged.is_genuine(&spool.membership));
        assert!(!page.is_genuine(&membership("another secret")));
        spool.forget(claim());
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_folder_that_others_could_read_is_closed_and_one_that_cannot_be_made_is_no_error() {
        let home = tempfile::tempdir().unwrap();
        let spool = spool(home.path());
        std::fs::create_dir_all(&spool.folder).unwrap();
        std::fs::set_permissions(&spool.folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(spool.keep(claim(), "token", &ReportRequest::default()).await);
        assert_eq!(std::fs::metadata(&spool.folder).unwrap().mode() & 0o777, 0o700);
        let blocked = tempfile::tempdir().unwrap();
        std::fs::write(blocked.path().join(".updraft"), "a file").unwrap();
        let other = super::tests::spool(blocked.path());
        assert!(!other.keep(claim(), "token", &ReportRequest::default()).await);
    }
}
