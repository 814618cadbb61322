//! The whole server in process: real sockets, real models (tiny ones), and a client.
//!
//! `TestApp::with(|setup| ..)` changes the configuration before the start. Two models are served by default:
//! [`M`] with Matryoshka vectors and [`F`] without; both have 32 dimensions, 64 tokens, and one token per word.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use embedserve::catalog::{ModelSpec, Names};
use embedserve::config::{ApiKey, BatchConfig, HttpConfig, KeyPolicy, RequestConfig};
use embedserve::engine::{Engine, FailedAt, Failure, Served};
use embedserve::http;
use embedserve::http::server::{self, ServeReport, ShutdownSignals, StopServing};
use embedserve::kernel::Target;
use embedserve::load::{self, Seat, Settings, Shared};
use embedserve::observe::metrics::Metrics;
use embedserve::observe::secret::Secret;
use embedserve::pool::{Head, PoolingMode, Step};
use embedserve::request::{Dimensions, Prompts, RequestLimits};
use embedserve::runner::{self, Computation, Device, warmup};
use embedserve::threads::Threads;
use embedserve::tokenize::workers::Workers;
use embedserve::tokenize::{Tokenizer, TokenizerSource};
use reqwest::Method;
use reqwest::header::{HeaderName, HeaderValue};
use serde_json::{Value, json};
use tempfile::TempDir;

pub use super::answer::{Answer, length, vector, words};
use super::evil::{Evil, HIDDEN};
use super::log;
use super::raw::RawClient;
use super::served;
use super::tiny_model::{TinyModel, vocabulary};

/// The Matryoshka model.
pub const M: &str = "tiny/matryoshka";
/// The model with one vector length.
pub const F: &str = "tiny/fixed";
/// Of both models.
pub const DIMENSIONS: usize = 32;
pub const MAX_TOKENS: usize = 64;

/// What a test may change before the start.
pub struct Setup {
    pub http: HttpConfig,
    pub requests: RequestConfig,
    pub batch: BatchConfig,
    pub models: Vec<TestModel>,
    /// `(alias, id)`
    pub aliases: Vec<(String, String)>,
    /// Time for in-flight work after [`TestApp::stop`].
    pub grace: Duration,
}

/// A model to serve.
pub struct TestModel {
    pub spec: ModelSpec,
    pub kind: Kind,
}

/// What computes.
pub enum Kind {
    /// A real encoder.
    Tiny(TinyModel),
    /// An encoder that fails, panics or blocks on command, behind the real tokenizer and queue.
    Evil(Evil),
    /// Nothing: it stays in the state of loading.
    Loading,
    /// Nothing: loading failed.
    Failed,
}

/// A running server.
pub struct TestApp {
    pub address: SocketAddr,
    pub engine: Arc<Engine>,
    pub client: reqwest::Client,
    stop: StopServing,
    server: Option<tokio::task::JoinHandle<ServeReport>>,
    served: Vec<Arc<Served>>,
    device_threads: Vec<JoinHandle<()>>,
    folders: Vec<TempDir>,
}

/// Two models, no keys, the defaults of a release.
impl Default for Setup {
    fn default() -> Self {
        let tiny = |id: &str, matryoshka, seed| TestModel {
            spec: ModelSpec { matryoshka: Some(matryoshka), ..spec(id) },
            kind: Kind::Tiny(TinyModel { seed, hidden: DIMENSIONS, positions: MAX_TOKENS, ..TinyModel::default() }),
        };
        Self {
            http: http_config(),
            requests: RequestConfig { allow_empty_input: false, ..served::requests() },
            batch: served::batches(),
            models: vec![tiny(M, true, 7), tiny(F, false, 8)],
            aliases: vec![("gpt-4o".to_owned(), M.to_owned())],
            grace: Duration::from_secs(10),
        }
    }
}

impl Setup {
    /// Requires this key.
    pub fn key(&mut self, key: &str) {
        self.limited_key("tester", key, KeyPolicy::default());
    }

    /// Requires this key or another one, and lets it do this much.
    pub fn limited_key(&mut self, name: &str, key: &str, policy: KeyPolicy) {
        let key = ApiKey::unlimited(name.to_owned(), Secret::new(key.to_owned()));
        self.http.api_keys.push(ApiKey { policy, ..key });
    }

    /// Serves one model only.
    pub fn only(&mut self, id: &str, kind: Kind) {
        self.models = vec![TestModel { spec: spec(id), kind }];
        self.aliases.clear();
    }
}

fn spec(id: &str) -> ModelSpec {
    ModelSpec { id: id.to_owned(), ..served::spec(&std::env::temp_dir()) }
}

fn http_config() -> HttpConfig {
    HttpConfig {
        host: "127.0.0.1".to_owned(),
        port: 0,
        api_keys: Vec::new(),
        insecure: false,
        cors_origins: Vec::new(),
        allowed_hosts: Vec::new(),
        max_body_bytes: 32 << 20,
        max_bodies_bytes: 256 << 20,
        max_answers_bytes: 256 << 20,
        max_header_bytes: 64 << 10,
        max_headers: 100,
        max_connections: 1024,
        header_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_mins(1),
        body_timeout: Duration::from_secs(20),
        write_timeout: Duration::from_secs(30),
        answer_timeout: Duration::from_mins(5),
        metrics_public: false,
    }
}

impl TestApp {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Setup)) -> Self {
        log::install();
        let mut setup = Setup::default();
        change(&mut setup);
        let specs: Vec<Arc<ModelSpec>> = setup.models.iter().map(|model| Arc::new(model.spec.clone())).collect();
        let metrics = Metrics::new(&specs.iter().map(|spec| spec.id.clone()).collect::<Vec<_>>());
        let names = Names::new(specs, setup.aliases.clone(), 0, setup.requests.accept_any_model).unwrap();
        let engine = Arc::new(Engine::new(names, Arc::clone(&metrics)));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut app = Self {
            address,
            engine: Arc::clone(&engine),
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            stop: ShutdownSignals::new(setup.grace).0,
            server: None,
            served: Vec::new(),
            device_threads: Vec::new(),
            folders: Vec::new(),
        };
        app.load(&setup, &metrics);
        let (stop, signals) = ShutdownSignals::new(setup.grace);
        app.stop = stop;
        let router = http::router(engine, &setup.http, &setup.requests);
        let config = setup.http;
        app.server =
            Some(tokio::spawn(async move { server::serve(listener, router, &config, metrics, signals).await }));
        app
    }

    fn load(&mut self, setup: &Setup, metrics: &Arc<Metrics>) {
        let workers = Workers::new(2, metrics).unwrap();
        let metrics = Arc::clone(metrics);
        let seats = Seat::all(&[Target::Cpu], &threads());
        let shared = Shared { seats, threads: threads(), workers, metrics, ..served::shared_with(1, setup.batch.isa) };
        let engine = Arc::clone(&self.engine);
        for (slot, model) in engine.slots().iter().zip(&setup.models) {
            let (served, threads) = match &model.kind {
                Kind::Tiny(tiny) => {
                    let folder = tiny.write();
                    let obtained = served::obtained(folder.path());
                    let settings = Settings { requests: &setup.requests, batch: &setup.batch };
                    let loaded = load::load(&model.spec, &obtained, settings, &shared, &slot.progress).unwrap();
                    self.folders.push(folder);
                    (loaded.served, loaded.threads)
                }
                Kind::Evil(evil) => evil_model(&model.spec, evil, setup, &shared),
                Kind::Loading => continue,
                Kind::Failed => {
                    let reason = "cannot read /secret/folder/model.safetensors".to_owned();
                    slot.set_failed(Failure { at: FailedAt::Load, reason, retry_at: None });
                    continue;
                }
            };
            let served = Arc::new(served);
            slot.set_ready(Arc::clone(&served));
            self.served.push(served);
            self.device_threads.extend(threads);
        }
    }

    /// Starts a drain and waits for its end.
    pub async fn stop(mut self) -> ServeReport {
        self.engine.drain();
        self.stop.stop();
        self.server.take().unwrap().await.unwrap()
    }

    /// Closes the listener and drains in the background.
    pub fn begin_stop(&self) {
        self.engine.drain();
        self.stop.stop();
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn raw(&self) -> RawClient {
        RawClient::connect(self.address)
    }

    /// `POST /v1/embeddings`.
    pub async fn embed(&self, body: Value) -> Answer {
        self.post("/v1/embeddings", &[], body.to_string()).await
    }

    /// As [`Self::embed`] with the model [`M`], expecting vectors.
    pub async fn vectors(&self, input: Value) -> Vec<Vec<f32>> {
        self.embed(json!({"model": M, "input": input})).await.vectors()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], Vec::new()).await
    }

    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Answer {
        self.send(Method::POST, path, headers, body.into()).await
    }

    pub async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        let mut request = self.client.request(method, self.url(path));
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            request = request.header(name, HeaderValue::from_str(value).unwrap());
        }
        if !body.is_empty() {
            request = request.body(body);
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answer { status, headers, text: response.text().await.unwrap() }
    }

    /// The sum of the series whose labels hold `labels`, which may be a part of them, in order. There is at least one.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        let page = self.engine.metrics.encode();
        let lines = page.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(labels))
        });
        let values: Vec<f64> = lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert!(!values.is_empty(), "no series {name} with {labels} in\n{page}");
        values.iter().sum()
    }

    /// Fails unless a series has this value now.
    #[track_caller]
    pub fn check_metric(&self, name: &str, labels: &str, value: f64) {
        let now = self.metric(name, labels);
        assert!((now - value).abs() < 1e-9, "{name}{{{labels}}} is {now}, expected {value}");
    }

    /// Waits until a series has a value; metrics of an answer are counted when it ends, not when it is read.
    pub async fn until_metric(&self, name: &str, labels: &str, value: f64) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let now = self.metric(name, labels);
            if (now - value).abs() < 1e-9 {
                return;
            }
            assert!(Instant::now() < deadline, "{name}{{{labels}}} is {now}, expected {value}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        self.stop.stop();
        for served in &self.served {
            served.queue.close();
        }
        // Threads end with their queues; one that a test blocked for ever is left behind.
        drop(std::mem::take(&mut self.device_threads));
    }
}

/// The compute pool of all apps of this process.
fn threads() -> Arc<Threads> {
    static THREADS: OnceLock<Arc<Threads>> = OnceLock::new();
    Arc::clone(THREADS.get_or_init(|| Arc::new(Threads::new(2).unwrap())))
}

/// The tiny model's tokenizer and a real queue around an encoder that does as it is told. Its words: see `evil`.
fn evil_model(spec: &ModelSpec, evil: &Evil, setup: &Setup, shared: &Shared) -> (Served, Vec<JoinHandle<()>>) {
    let folder = TinyModel::default().write();
    let limits = RequestLimits {
        max_tokens: MAX_TOKENS,
        dimensions: HIDDEN,
        matryoshka: false,
        max_inputs: setup.requests.max_inputs,
        max_request_tokens: setup.requests.max_request_tokens,
        max_input_bytes: 4096,
        allow_empty_input: setup.requests.allow_empty_input,
        token_arrays: setup.requests.token_arrays,
        truncate: setup.requests.truncate,
        prompts: Prompts::default(),
        max_prompt_bytes: setup.requests.max_prompt_bytes,
    };
    let metrics = shared.metrics.model(&spec.id);
    let source = TokenizerSource {
        name: &spec.id,
        path: &folder.path().join("tokenizer.json"),
        vocab_rows: vocabulary().len(),
        lower_case: false,
        include_prompt: true,
        limits: limits.clone(),
    };
    let tokenizer = Tokenizer::load(source, shared.workers.clone(), Arc::clone(&metrics)).unwrap();
    let queue_limits = embedserve::batch::QueueLimits {
        rows: setup.batch.queue_rows,
        tokens: setup.batch.queue_tokens,
        timeout: setup.batch.queue_timeout,
        batch: embedserve::batch::plan::Budget { rows: setup.batch.max_batch_rows, tokens: 2048 },
    };
    let queue = embedserve::batch::Queue::new(queue_limits, metrics);
    let head = Head { pooling: vec![PoolingMode::Mean], steps: vec![Step::Normalize] };
    // Turns of its own: a blocked encoder must not hold up the other tests.
    let mut computation = Computation { encoder: evil.encoder(), head, turns: Arc::default() };
    let canary = warmup::self_test(&mut computation, &[1, 2], Dimensions::native(&limits)).unwrap();
    evil.forget();
    let device = &setup.batch.device;
    let bounds = runner::Limits {
        canary_interval: device.canary_interval,
        heartbeat: device.heartbeat,
        longest_row: limits.max_tokens,
        isolation_passes_per_second: device.isolation_passes_per_second,
    };
    let (model, device) = (spec.id.clone(), "cpu".to_owned());
    let device = Device { model, device, computation, canary, queue: queue.clone(), limits: bounds };
    let runner = runner::spawn(device, &shared.metrics).unwrap();
    (Served { limits, tokenizer, queue, runner: runner.info }, vec![runner.thread])
}
