//! `embedserve serve`: from the configuration to a draining server.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;

use crate::app::DEVICE_FAILED;
use crate::app::keys::Hangups;
use crate::app::loading::{self, Loading, StartOutcome};
use crate::app::watch::{Alarm, Watch};
use crate::cli::ServeArgs;
use crate::config::{self, Config, Environment, ResidencyConfig};
use crate::engine::residency::Limits;
use crate::engine::{Engine, Policy};
use crate::http;
use crate::http::auth::Keys;
use crate::http::server::{self, ServeReport, ShutdownSignals, StopServing};
use crate::load::{Seat, Shared, memory};
use crate::observe::log::{self, LogFormat};
use crate::observe::metrics::Metrics;
use crate::source::{self, notes::Notes};
use crate::threads::Threads;
use crate::tokenize::workers::Workers;

/// Threads of the asynchronous runtime: they move bytes and never compute.
const RUNTIME_THREADS: usize = 2;
/// The signal of Ctrl-C.
const INTERRUPT: &str = "SIGINT";
/// How long a stopping process waits for a load or for a device thread's last batch.
const THREADS_JOIN: Duration = Duration::from_secs(2);

/// Whoever ends a process group reaches the server twice within milliseconds: as one of the group, and through the
/// program that started it (`timeout`, foreman, a terminal's Ctrl-C). This soon, a further signal is the same wish, and no
/// reason to cut off work; a person who presses Ctrl-C once more takes longer, or does it again.
const SAME_WISH: Duration = Duration::from_millis(500);

/// How long a process whose device failed goes on, so that requests get their refusals.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Resolves the configuration, serves until told to stop, drains.
pub(super) fn run(args: &ServeArgs, environment: &Environment) -> anyhow::Result<ExitCode> {
    log::init(&config::log(&args.logs, environment));
    super::log_panics();
    let config = Config::resolve(args, environment)?;
    if args.print_config {
        writeln!(std::io::stdout(), "{}\n{}", config.describe(), memory_estimate(&config))?;
        return Ok(ExitCode::SUCCESS);
    }
    allow_descriptors(&config);
    let runtime = runtime()?;
    let code = runtime.block_on(serve(config))?;
    // A blocking task that is still running must not keep a drained process alive.
    runtime.shutdown_timeout(Duration::from_millis(200));
    Ok(code)
}

/// Raises the soft limit on open files to the hard one: it is often 1,024, as many as there may be connections, and none
/// would be left for models and keys. The hard limit is the operator's word.
fn allow_descriptors(config: &Config) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::debug!(%error, "the limit on open files stays as it is");
            limit = getrlimit(Resource::Nofile);
        }
    }
    let (may_open, max_connections) = (limit.current.unwrap_or(u64::MAX), config.http.max_connections);
    if may_open < (max_connections as u64).saturating_add(OTHER_DESCRIPTORS) {
        tracing::warn!(may_open, max_connections, "open files are limited to fewer than --max-connections needs");
    }
}

/// Files and sockets beside connections: epoll, eventfd, logs, a model's files while it is loaded.
const OTHER_DESCRIPTORS: u64 = 64;

/// The asynchronous runtime of a server.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .thread_name("http")
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// What the models would need, as far as their files are on this machine: nothing is fetched for it.
fn memory_estimate(config: &Config) -> String {
    let (mut lines, mut total) = (Vec::new(), 0);
    for spec in config.names.models() {
        let folder = source::cached(spec, &config.source);
        let estimate = folder.and_then(|folder| memory::estimate(&folder.path, spec.precision()).ok());
        total += estimate.unwrap_or(0);
        let shown = estimate.map_or_else(|| "not on this machine".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
        lines.push(format!("weights in memory    = {shown} ({})", spec.id));
    }
    lines.push(format!("weights together     = {} MiB", total >> 20));
    lines.join("\n")
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    // First of all: the first process of a container never hears of a signal that nobody waits for yet.
    let mut signals = Signals::new()?;
    let host = config.http.host.clone();
    let addresses = config::addresses(&host, config.http.port)?;
    let listener = TcpListener::bind(addresses.as_slice())
        .await
        .with_context(|| format!("cannot listen on {host}:{}", config.http.port))?;
    let running = start(config, listener).context("cannot start the server")?;
    let hangups = Hangups::new(&running)?;
    announce(&running);
    let signal = tokio::select! {
        signal = signals.next() => signal,
        end = running.failed() => match end {
            End::NotStarted(reason) => anyhow::bail!("{reason}"),
            End::Device(reason) => {
                tracing::error!(reason, "stopped: the device failed");
                running.give_up().await;
                return Ok(ExitCode::from(DEVICE_FAILED));
            }
        },
        never = hangups.serve(&running) => match never {},
    };
    tracing::info!(signal, "draining");
    // Whoever presses Ctrl-C has no balancer that must notice first, and what was never ready no balancer has sent to.
    let unnoticed = signal == INTERRUPT || running.is_starting();
    let delay = if unnoticed { Duration::ZERO } else { running.config.lifecycle.drain_delay };
    tokio::select! {
        cut = running.stop(delay) => {
            if cut == 0 {
                tracing::info!("stopped: every accepted request was answered");
                return Ok(ExitCode::SUCCESS);
            }
            tracing::warn!(cut, "stopped: the grace period ended before these connections did");
            Ok(ExitCode::FAILURE)
        }
        signal = signals.next_wish() => {
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
    pub(super) config: Config,
    pub(super) keys: Arc<Keys>,
    stop_serving: StopServing,
    server: tokio::task::JoinHandle<ServeReport>,
    loading: Loading,
    watch: Watch,
    alarm: Arc<Alarm>,
}

/// Why the process has to end although nobody asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// A model cannot be served.
    NotStarted(String),
    /// A device failed while it served.
    Device(String),
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
    metrics.build(if cfg!(feature = "cuda") { "cpu,cuda" } else { "cpu" }, config.batch.isa.name());
    metrics.threads("compute", threads.count());
    metrics.threads("tokenize", config.batch.threads);
    let workers = Workers::beside(config.batch.threads, Arc::clone(threads.computing()), &metrics)
        .context("cannot start the threads that tokenise")?;
    let shared = Shared {
        seats: Seat::all(&config.batch.device_choice.targets, &threads),
        threads,
        workers,
        metrics: Arc::clone(&metrics),
        isa: config.batch.isa,
        notes: Notes::new(&config.source),
        memory_limit: super::memory::limit(&config),
    };
    let engine = Arc::new(Engine::with(config.names.clone(), metrics, policy(config.residency)));

    let (stop_serving, signals) = ShutdownSignals::new(config.lifecycle.drain_grace);
    let keys = Arc::new(Keys::new(&config.http.api_keys));
    let router = http::router_with(Arc::clone(&engine), &config.http, &config.requests, Arc::clone(&keys));
    let (http, metrics) = (config.http.clone(), Arc::clone(&engine.metrics));
    #[expect(clippy::disallowed_methods, reason = "the one server task; `stop` waits for it")]
    let server = tokio::spawn(async move { server::serve(listener, router, &http, metrics, signals).await });

    let alarm = Arc::new(Alarm::default());
    let watch = Watch::start(&engine, config.batch.device.stall_limit, &alarm)?;
    let loading = loading::start(&engine, config.clone(), shared, &alarm)?;
    Ok(Running { address, engine, config, keys, stop_serving, server, loading, watch, alarm })
}

const fn policy(config: ResidencyConfig) -> Policy {
    let ResidencyConfig { keep_going, max_models, max_bytes, idle_unload, turn, max_waiting, .. } = config;
    Policy { residency: Limits { max_models, max_bytes, idle_unload, turn }, max_waiting, keep_going }
}

impl Running {
    /// Waits until every model serves; with `--keep-going`, until each does or has failed.
    ///
    /// # Errors
    /// Why one of them does not, or why none does.
    pub async fn ready(&self) -> Result<(), String> {
        let mut outcome = self.loading.outcome.clone();
        let outcome = outcome.wait_for(|outcome| *outcome != StartOutcome::Working).await;
        match outcome.as_deref() {
            Ok(StartOutcome::Failed(reason)) => Err(reason.clone()),
            Ok(StartOutcome::Done) => Ok(()),
            Ok(StartOutcome::Working) | Err(_) => Err("the loading thread ended".to_owned()),
        }
    }

    /// Whether the models of the start are still on their way.
    fn is_starting(&self) -> bool {
        *self.loading.outcome.borrow() == StartOutcome::Working
    }

    /// Waits for a failure that ends the process; never returns while all is well.
    pub async fn failed(&self) -> End {
        let not_started = async {
            if let Err(reason) = self.ready().await {
                return reason;
            }
            ready_line(self);
            std::future::pending().await
        };
        tokio::select! {
            reason = self.alarm.raised() => End::Device(reason),
            reason = not_started => End::NotStarted(reason),
        }
    }

    /// Refuses what comes and waits a moment for what can still be answered.
    async fn give_up(self) {
        self.engine.leave();
        self.engine.drain();
        self.stop_serving.stop();
        // What hangs on the device is cut off with the process.
        let _ = tokio::time::timeout(LAST_WORDS, self.server).await;
    }

    /// Drains and stops; returns how many connections the grace period cut off. For `delay` the server is not ready but
    /// still accepts.
    pub async fn stop(self, delay: Duration) -> usize {
        self.engine.leave();
        self.loading.stop_fetching();
        // Balancers look at readiness before they stop sending; until then they are served.
        tokio::time::sleep(delay).await;
        self.engine.drain();
        self.stop_serving.stop();
        // Requests that wait for a model are served like all others: the loading thread goes on until they are done.
        let cut = self.server.await.map_or(0, |report| report.cut);
        // From here on, device threads end because they are told to.
        drop(self.watch);
        let loading = self.loading;
        // Threads end when their work does; one that hangs is left behind, the process ends anyway.
        let join = tokio::task::spawn_blocking(move || loading.join());
        if tokio::time::timeout(THREADS_JOIN, join).await.is_err() {
            tracing::warn!("a device or loading thread did not end in time");
        }
        cut
    }
}

/// What an operator reads first: the address, where it computes, and what is open to strangers.
fn announce(running: &Running) {
    let config = &running.config;
    tracing::info!(
        address = %format!("http://{}", running.address),
        keys = config.http.api_keys.len(),
        threads = config.batch.threads,
        kernels = %config.batch.isa,
        device = config.batch.device_choice.label(),
        device_why = config.batch.device_choice.why,
        "listening"
    );
    if config.http.api_keys.is_empty() && !config::is_loopback(running.address.ip()) {
        tracing::warn!("no key is set: anyone who reaches this address can use it");
    }
    if config.requests.accept_any_model {
        tracing::warn!("unknown model names are answered by the default model (--accept-any-model)");
    }
}

/// For people, a line to copy into a terminal too.
fn ready_line(running: &Running) {
    let config = &running.config;
    let key = if config.http.api_keys.is_empty() { "" } else { " -H 'Authorization: Bearer YOUR_KEY'" };
    let model = config.names.models().get(config.names.default_index()).map(|model| model.id.as_str());
    tracing::info!("ready");
    if config.log_format == LogFormat::Json {
        return;
    }
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

    /// The next signal that is not an echo of the one that has just come.
    async fn next_wish(&mut self) -> &'static str {
        let echoes = async {
            loop {
                let signal = self.next().await;
                tracing::info!(signal, "draining already; one more signal stops at once");
            }
        };
        // Never ends by itself, so this is a pause.
        let _: Result<(), _> = tokio::time::timeout(SAME_WISH, echoes).await;
        self.next().await
    }
}
