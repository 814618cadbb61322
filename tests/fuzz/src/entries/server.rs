//! One server of one tiny model for all inputs: its router, open and locked, and a real socket in front of it.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use embedserve::catalog::{ModelSpec, Names};
use embedserve::config::{ApiKey, HttpConfig, RequestConfig};
use embedserve::engine::Engine;
use embedserve::http::server::{self, ShutdownSignals, StopServing};
use embedserve::kernel::{Isa, Target};
use embedserve::observe::metrics::Metrics;
use embedserve::observe::secret::Secret;
use embedserve::source::notes::Notes;
use embedserve::threads::Threads;
use embedserve::tokenize::workers::Workers;
use embedserve::{http, load};
use tokio::runtime::Runtime;

use crate::support::served::{batches, obtained, requests, spec};
use crate::support::tiny_model::TinyModel;

/// The one model; `gpt-4o` is another name of it.
pub const MODEL: &str = "tiny/model";
/// Nobody guesses it.
const KEY: &str = "k-3f9c1d7e5b2a48068f1e9d0c7b6a5f43-only-for-these-tests";

pub struct Serving {
    pub runtime: Runtime,
    /// Anybody may use it.
    pub open: Router,
    /// Needs a key that no input has.
    pub locked: Router,
    pub locked_config: HttpConfig,
    /// Where `open` listens.
    pub address: SocketAddr,
    /// Dropped, it would stop the server.
    _stop: StopServing,
}

/// Starts on first use and stays for the life of the process.
pub fn serving() -> &'static Serving {
    static SERVING: OnceLock<Serving> = OnceLock::new();
    SERVING.get_or_init(start)
}

fn start() -> Serving {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    let folder = TinyModel::default().write();
    let spec = ModelSpec { id: MODEL.to_owned(), ..spec(folder.path()) };
    let metrics = Metrics::new(&[MODEL.to_owned()]);
    let aliases = vec![("gpt-4o".to_owned(), MODEL.to_owned())];
    let names = Names::new(vec![Arc::new(spec.clone())], aliases, 0, false).expect("two names");
    let engine = Arc::new(Engine::new(names, Arc::clone(&metrics)));
    let workers = Workers::new(1, &metrics).expect("a thread");
    let threads = Arc::new(Threads::new(1).expect("a thread"));
    let notes = Notes::at("/dev/null/notes".into());
    let shared = load::Shared {
        seats: load::Seat::all(&[Target::Cpu], &threads),
        threads,
        workers,
        metrics: Arc::clone(&metrics),
        isa: Isa::detect(),
        notes,
        memory_limit: None,
    };
    let requests = RequestConfig { max_inputs: 32, max_request_tokens: 256, allow_empty_input: false, ..requests() };
    let slot = engine.slots().first().expect("one model");
    let settings = load::Settings { requests: &requests, batch: &batches() };
    let loaded = load::load(&spec, &obtained(folder.path()), settings, &shared, &slot.progress).expect("it loads");
    slot.set_ready(Arc::new(loaded.served));

    let (config, locked_config) = (config(Vec::new()), config(vec![KEY]));
    let open = http::router(Arc::clone(&engine), &config, &requests);
    let locked = http::router(Arc::clone(&engine), &locked_config, &requests);
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("a port");
    let (stop, signals) = ShutdownSignals::new(Duration::from_secs(1));
    let router = open.clone();
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
        server::serve(listener, router, &config, metrics, signals).await
    });
    Serving { runtime, open, locked, locked_config, address, _stop: stop }
}

/// Small limits, so that small inputs reach them, and little patience.
fn config(keys: Vec<&str>) -> HttpConfig {
    let key = |key: &str| ApiKey::unlimited("tester".to_owned(), Secret::new(key.to_owned()));
    HttpConfig {
        host: "127.0.0.1".to_owned(),
        port: 0,
        api_keys: keys.into_iter().map(key).collect(),
        insecure: false,
        cors_origins: Vec::new(),
        allowed_hosts: Vec::new(),
        max_body_bytes: 16 << 10,
        max_bodies_bytes: 256 << 10,
        max_answers_bytes: 256 << 10,
        max_header_bytes: 16 << 10,
        max_headers: 20,
        max_connections: 64,
        header_timeout: Duration::from_secs(2),
        idle_timeout: Duration::from_secs(2),
        body_timeout: Duration::from_secs(2),
        write_timeout: Duration::from_secs(2),
        answer_timeout: Duration::from_secs(4),
        metrics_public: false,
    }
}
