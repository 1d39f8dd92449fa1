//! Everything in one process: SQLite (or the configured database), an in-process queue, one of each component. The
//! components are the same as in a cluster and talk to each other the same way.

use crate::database::{connect, migrate};
use crate::output::print;
use anyhow::Context;
use api_server::ApiServer;
use bootstrap::{DEFAULT_POOL, Health, fork_server, open_cipher, shared_secret};
use broker::{Broker, LocalBroker};
use config::{Config, Secret};
use dag_processor::DagProcessor;
use identity::{JoinToken, Passwords, Tokens};
use lifecycle::{Kind, Lifecycle};
use python::{ForkServer, environment};
use scheduler::Scheduler;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use store::Store;
use telemetry::Telemetry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use worker::watchdog::{ARGUMENT, Watchdog};
use worker::{Address, Life, Worker, WorkerName, membership};

pub(crate) async fn run(
    mut config: Config,
    telemetry: &Telemetry,
    lifecycle: Lifecycle,
) -> anyhow::Result<()> {
    std::fs::create_dir_all(&config.home)
        .with_context(|| format!("cannot make {}", config.home.display()))?;
    if config.api_auth.jwt_secret.is_empty() {
        config.api_auth.jwt_secret = shared_secret(&config.home)?;
    }
    let rest = bind(&config.api.host, config.api.port, "[api] port").await?;
    let control = bind("127.0.0.1", config.updraft.grpc_port, "[updraft] grpc_port").await?;
    config.updraft.control_plane = format!("http://{}", control.local_addr()?);
    // The one worker is of this same process.
    (config.updraft.grpc_ssl, config.updraft.worker_pools) = (None, vec![DEFAULT_POOL.to_owned()]);
    let port = rest.local_addr()?.port();
    let store = connect(&config).await?;
    migrate(&store, &config).await?;
    let passwords = Passwords::new(&config.core.passwords_file).ensure(&config.core.users)?;
    let parts = Parts {
        tokens: Tokens::new(&config.api_auth.jwt_secret, &config.api_auth.jwt_audience),
        broker: Arc::new(LocalBroker::for_one_worker()),
        name: WorkerName::take(&config)?,
        watchdog: Watchdog::start(&[ARGUMENT]).context("cannot start the watchdog")?,
        lifecycle,
        last: CancellationToken::new(),
        store: store.clone(),
        config,
    };
    parts.serve(rest, control, telemetry)?;
    parts.schedule();
    welcome(&parts.config, port, &passwords);
    parts.start_python().await?;
    let grace = parts.config.updraft.drain_grace + Duration::from_secs(15);
    let ended = parts.lifecycle.run_to_end(grace).await;
    store.close().await;
    ended
}

async fn bind(host: &str, port: u16, option: &str) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind((host, port)).await;
    listener.with_context(|| format!("cannot listen on {host}:{port} ({option}); is another one running?"))
}

fn welcome(config: &Config, port: u16, passwords: &[(String, Secret)]) {
    let url = if config.api.base_url.is_empty() {
        format!("http://localhost:{port}")
    } else {
        config.api.base_url.clone()
    };
    let mut text = format!("\nUpdraft is ready: UI and API at {url}\n");
    for (name, password) in passwords {
        text.push_str(&format!(
            "Simple auth manager | Password for user '{name}': {}\n",
            password.expose()
        ));
    }
    let from = config.dag_processor.bundles.iter().map(|bundle| {
        let folder = bundle.folder.as_ref();
        folder.map_or_else(|| bundle.name.clone(), |folder| folder.display().to_string())
    });
    text.push_str(&format!(
        "DAG files are read from {}\n\n",
        from.collect::<Vec<_>>().join(", ")
    ));
    print(&text);
}

struct Parts {
    config: Config,
    store: Store,
    broker: Arc<dyn Broker>,
    tokens: Tokens,
    watchdog: Watchdog,
    name: WorkerName,
    lifecycle: Lifecycle,
    /// Cancelled when the worker has ended: until then people can look, and it can report.
    last: CancellationToken,
}

impl Parts {
    fn serve(&self, rest: TcpListener, control: TcpListener, telemetry: &Telemetry) -> anyhow::Result<()> {
        let metrics = telemetry.metrics();
        let cipher = open_cipher(&self.config)?;
        let (store, broker, tokens) = (self.store.clone(), self.broker.clone(), self.tokens.clone());
        let server = ApiServer::new(&self.config, store, broker, cipher, tokens, move || {
            metrics.render()
        })?;
        let stop = self.lifecycle.stop().clone();
        let serving = server
            .clone()
            .serve_rest(rest, self.lifecycle.clone(), self.last.clone());
        self.lifecycle.spawn("REST server", Kind::Service, serving);
        // A worker that drains still reports; this one ends last.
        let serving = server
            .clone()
            .serve_control(control, self.lifecycle.clone(), self.last.clone());
        self.lifecycle.spawn("control plane", Kind::Service, serving);
        self.lifecycle
            .spawn("hint listener", Kind::Service, server.pass_hints_on(stop));
        Ok(())
    }

    fn schedule(&self) {
        let scheduler = Scheduler::new(
            &self.config,
            self.store.clone(),
            self.broker.clone(),
            Health::default(),
        );
        self.lifecycle
            .spawn("scheduler", Kind::Service, scheduler.run(self.lifecycle.clone()));
    }

    /// Starts the worker at once, and the DAG processor as soon as there is a Python.
    async fn start_python(&self) -> anyhow::Result<()> {
        let interpreter = self.interpreter().await?;
        let env = self.watchdog.environment(&self.name);
        let python = fork_server(&self.config, interpreter, &env, &self.lifecycle)?;
        let address = Address::of(&self.config)?;
        let channel = address.endpoint()?.tcp_nodelay(true).connect_lazy();
        let token = JoinToken::of_pool(&self.config.api_auth.jwt_secret, DEFAULT_POOL)?;
        let belonging = (membership(&token, &self.name)?, address);
        let broker = self.broker.clone();
        let life = Life {
            name: self.name.clone(),
            watchdog: self.watchdog.clone(),
            health: Health::default(),
        };
        let worker = Worker::new(
            &self.config,
            channel,
            belonging,
            broker,
            Some(python.clone()),
            life,
        );
        let (own, last) = (self.lifecycle.clone(), self.last.clone());
        self.lifecycle.spawn("worker", Kind::Service, async move {
            let ended = worker.run(own).await;
            // With the worker's last report, nothing needs the control plane any more.
            last.cancel();
            ended
        });
        self.parse(python)
    }

    fn parse(&self, python: ForkServer) -> anyhow::Result<()> {
        let (store, broker) = (self.store.clone(), self.broker.clone());
        let cipher = open_cipher(&self.config)?;
        let processor = DagProcessor::new(&self.config, store, cipher, broker, python, Health::default());
        self.lifecycle.spawn(
            "dag processor",
            Kind::Service,
            processor.run(self.lifecycle.clone()),
        );
        Ok(())
    }

    async fn interpreter(&self) -> anyhow::Result<PathBuf> {
        if let Some(python) = &self.config.updraft.python {
            return Ok(python.clone());
        }
        Ok(environment::ensure(&self.config.home, &|step| print(&format!("{step}\n"))).await?)
    }
}
