//! `embedserve serve`: from the configuration to a draining server.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::cli::ServeArgs;
use crate::config::{self, Config, Environment};
use crate::engine::{Engine, Slot, SlotState};
use crate::http;
use crate::http::server::{self, ServeReport, ShutdownSignals, StopServing};
use crate::load::{self, Shared};
use crate::observe::log;
use crate::observe::metrics::{Metrics, ModelState};
use crate::source;
use crate::threads::Threads;
use crate::tokenize::workers::Workers;

/// Threads of the asynchronous runtime: they move bytes and never compute.
const RUNTIME_THREADS: usize = 2;
/// The signal of Ctrl-C.
const INTERRUPT: &str = "SIGINT";
/// How long a stopping process waits for a device thread to finish its last batch.
const DEVICE_JOIN: Duration = Duration::from_secs(2);

/// Resolves the configuration, serves until told to stop, drains.
pub(super) fn run(args: &ServeArgs, environment: &Environment) -> anyhow::Result<ExitCode> {
    log::init(&config::log(&args.logs, environment));
    super::log_panics();
    let config = Config::resolve(args, environment)?;
    if args.print_config {
        writeln!(std::io::stdout(), "{}", config.describe())?;
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .thread_name("http")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let code = runtime.block_on(serve(config))?;
    // A blocking task that is still running must not keep a drained process alive.
    runtime.shutdown_timeout(Duration::from_millis(200));
    Ok(code)
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let host = config.http.host.clone();
    let addresses = config::addresses(&host, config.http.port)?;
    let listener = TcpListener::bind(addresses.as_slice())
        .await
        .with_context(|| format!("cannot listen on {host}:{}", config.http.port))?;
    let running = start(config, listener)?;
    announce(&running);
    let mut signals = Signals::new()?;
    let signal = tokio::select! {
        signal = signals.next() => signal,
        failure = running.failed() => anyhow::bail!("{failure}"),
    };
    tracing::info!(signal, "draining");
    // Whoever presses Ctrl-C has no balancer that must notice first.
    let delay = if signal == INTERRUPT { Duration::ZERO } else { running.config.lifecycle.drain_delay };
    tokio::select! {
        cut = running.stop(delay) => {
            if cut == 0 {
                tracing::info!("stopped: every accepted request was answered");
                return Ok(ExitCode::SUCCESS);
            }
            tracing::warn!(cut, "stopped: the grace period ended before these connections did");
            Ok(ExitCode::FAILURE)
        }
        signal = signals.next() => {
            tracing::warn!(signal, "stopped at once by a second signal");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// A server with its models, from the first accepted connection to the end of its drain.
#[derive(Debug)]
pub struct Running {
    pub address: SocketAddr,
    pub engine: Arc<Engine>,
    config: Config,
    stop_serving: StopServing,
    server: tokio::task::JoinHandle<ServeReport>,
    stop_loading: Arc<AtomicBool>,
    loader: std::thread::JoinHandle<Vec<std::thread::JoinHandle<()>>>,
    loaded: watch::Receiver<LoadOutcome>,
}

/// How far the loading thread has come.
#[derive(Debug, Clone, PartialEq, Eq)]
enum LoadOutcome {
    Working,
    Done,
    Failed(String),
}

/// Starts serving on `listener`: the socket answers at once, the models load behind it.
///
/// # Errors
/// Threads could not be started.
pub fn start(config: Config, listener: TcpListener) -> anyhow::Result<Running> {
    let address = listener.local_addr()?;
    let ids: Vec<String> = config.names.models().iter().map(|model| model.id.clone()).collect();
    let metrics = Metrics::new(&ids);
    let threads = Arc::new(Threads::new(config.batch.threads)?);
    metrics.build("cpu", config.batch.isa.name());
    metrics.threads("compute", threads.count());
    metrics.threads("tokenize", config.batch.threads);
    let workers = Workers::new(config.batch.threads, &metrics)?;
    let shared = Shared { threads, workers, metrics: Arc::clone(&metrics), isa: config.batch.isa };
    let engine = Arc::new(Engine::new(config.names.clone(), metrics));

    let (stop_serving, signals) = ShutdownSignals::new(config.lifecycle.drain_grace);
    let router = http::router(Arc::clone(&engine), &config.http, &config.requests);
    let (http, metrics) = (config.http.clone(), Arc::clone(&engine.metrics));
    #[expect(clippy::disallowed_methods, reason = "the one server task; `stop` waits for it")]
    let server = tokio::spawn(async move { server::serve(listener, router, &http, metrics, signals).await });

    let stop_loading = Arc::new(AtomicBool::new(false));
    let (outcome, loaded) = watch::channel(LoadOutcome::Working);
    let loader = {
        let (engine, config, stop) = (Arc::clone(&engine), config.clone(), Arc::clone(&stop_loading));
        let load = move || load_all(&engine, &config, &shared, &stop, &outcome);
        std::thread::Builder::new().name("load".to_owned()).spawn(load)?
    };
    Ok(Running { address, engine, config, stop_serving, server, stop_loading, loader, loaded })
}

/// Obtains and loads every model in turn; the first failure ends the process.
fn load_all(
    engine: &Engine,
    config: &Config,
    shared: &Shared,
    stop: &AtomicBool,
    outcome: &watch::Sender<LoadOutcome>,
) -> Vec<std::thread::JoinHandle<()>> {
    let mut threads = Vec::new();
    for slot in engine.slots() {
        if stop.load(Ordering::Relaxed) {
            return threads;
        }
        match load_one(slot, config, shared, stop) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                let reason = format!("cannot serve {}: {error:#}", slot.spec.id);
                engine.metrics.model(&slot.spec.id).set_state(ModelState::Dead);
                slot.set_failed(format!("{error:#}"));
                let _ = outcome.send(LoadOutcome::Failed(reason));
                return threads;
            }
        }
    }
    let _ = outcome.send(LoadOutcome::Done);
    threads
}

fn load_one(
    slot: &Slot,
    config: &Config,
    shared: &Shared,
    stop: &AtomicBool,
) -> anyhow::Result<std::thread::JoinHandle<()>> {
    let folder = source::obtain(&slot.spec, &config.source, &slot.progress, stop)?;
    let revision = folder.revision.as_deref();
    let settings = (&config.requests, &config.batch);
    let loaded = load::load(&slot.spec, &folder.path, revision, settings, (shared, &slot.progress))?;
    slot.set_ready(Arc::new(loaded.served));
    shared.metrics.model(&slot.spec.id).set_state(ModelState::Ready);
    Ok(loaded.thread)
}

impl Running {
    /// Waits until every model serves.
    ///
    /// # Errors
    /// Why one of them does not.
    pub async fn ready(&self) -> Result<(), String> {
        let mut loaded = self.loaded.clone();
        let outcome = loaded.wait_for(|outcome| *outcome != LoadOutcome::Working).await;
        match outcome.as_deref() {
            Ok(LoadOutcome::Failed(reason)) => Err(reason.clone()),
            Ok(LoadOutcome::Done) => Ok(()),
            Ok(LoadOutcome::Working) | Err(_) => Err("the loading thread ended".to_owned()),
        }
    }

    /// Waits for a failure that ends the process; never returns while all is well.
    async fn failed(&self) -> String {
        if let Err(reason) = self.ready().await {
            return reason;
        }
        ready_line(self);
        std::future::pending().await
    }

    /// Drains and stops; returns how many connections the grace period cut off. For `delay` the server is not ready but
    /// still accepts.
    pub async fn stop(self, delay: Duration) -> usize {
        self.stop_loading.store(true, Ordering::Relaxed);
        self.engine.leave();
        // Balancers look at readiness before they stop sending; until then they are served.
        tokio::time::sleep(delay).await;
        self.engine.drain();
        self.stop_serving.stop();
        let cut = self.server.await.map_or(0, |report| report.cut);
        for slot in self.engine.slots() {
            if let SlotState::Ready(served) = slot.state() {
                served.queue.close();
            }
        }
        join_device_threads(self.loader).await;
        cut
    }
}

/// Device threads end when their queues are closed; one that hangs is left behind, the process ends anyway.
async fn join_device_threads(loader: std::thread::JoinHandle<Vec<std::thread::JoinHandle<()>>>) {
    let join = tokio::task::spawn_blocking(move || {
        let threads = loader.join().unwrap_or_default();
        for thread in threads {
            // A device thread that panicked has said so already.
            let _ = thread.join();
        }
    });
    if tokio::time::timeout(DEVICE_JOIN, join).await.is_err() {
        tracing::warn!("a device or loading thread did not end in time");
    }
}

/// What an operator reads first: the address, and what is being loaded.
fn announce(running: &Running) {
    let config = &running.config;
    tracing::info!(
        address = %format!("http://{}", running.address),
        keys = config.http.api_keys.len(),
        threads = config.batch.threads,
        kernels = %config.batch.isa,
        device = "cpu",
        "listening"
    );
    if config.http.api_keys.is_empty() && !config::is_loopback(running.address.ip()) {
        tracing::warn!("no key is set: anyone who reaches this address can use it");
    }
    if config.requests.accept_any_model {
        tracing::warn!("unknown model names are answered by the default model (--accept-any-model)");
    }
}

/// A line to copy into a terminal.
fn ready_line(running: &Running) {
    let config = &running.config;
    let key = if config.http.api_keys.is_empty() { "" } else { " -H 'Authorization: Bearer YOUR_KEY'" };
    let model = config.names.models().get(config.names.default_index()).map(|model| model.id.as_str());
    tracing::info!("ready");
    let _ = writeln!(
        std::io::stderr(),
        "\nTry it:\n  curl http://{}/v1/embeddings{key} -H 'Content-Type: application/json' \\\n    -d '{{\"model\": \"{}\", \"input\": \"hello world\"}}'\n",
        reachable(running.address),
        model.unwrap_or_default(),
    );
}

/// An address to connect to: the unspecified one means this machine.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    address
}

/// SIGTERM and SIGINT, in the order they come.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => INTERRUPT,
        }
    }
}
