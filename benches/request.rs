//! A whole request around a model that costs nothing: what the server adds to a forward pass.
//! `cargo bench --bench compute -- request 2>/dev/null`, because every request is logged to standard error as in the
//! server. Each line is one JSON object.
//!
//! `router` calls the router in process, over and over: the work of one request. `socket` is one client on one
//! connection, each request sent when the answer to the last is there: the latency that is added, thread hand-overs and
//! the kernel's part included. `EMBEDSERVE_BENCH_REQUEST=1x16` and `EMBEDSERVE_BENCH_WAY=router` choose one of each, for
//! a profiler. The load generator of `embedserve bench` measures the server with its model.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use candle_core::{Device as CandleDevice, Tensor};
use clap::Parser;
use embedserve::arch::packed::PackedBatch;
use embedserve::arch::{Encoder, EncoderError};
use embedserve::batch::plan::Budget;
use embedserve::batch::{Queue, QueueLimits};
use embedserve::cli::Cli;
use embedserve::config::{self, Config, Environment};
use embedserve::engine::{Engine, Served};
use embedserve::http;
use embedserve::http::server::{self, ShutdownSignals};
use embedserve::observe::log;
use embedserve::observe::metrics::Metrics;
use embedserve::pool::{Head, PoolingMode};
use embedserve::request::Dimensions;
use embedserve::runner::{self, Computation, Device, warmup};
use embedserve::tokenize::workers::Workers;
use http_body_util::BodyExt;
use serde_json::json;
use tower::ServiceExt;

use crate::support::texts::{FORWARD_128, MAX_TOKENS, SERVER_SHARE, english, limits, tokenizer};
use crate::support::{median, rounds};

const DIMENSIONS: usize = 384;
/// Requests of one round.
const REQUESTS: usize = 400;
/// Threads of the asynchronous runtime, as the server's.
const RUNTIME_THREADS: usize = 2;

pub fn run() {
    let arguments = Cli::parse_from(["embedserve"]).serve;
    let environment = Environment::of_process();
    log::init(&config::log(&arguments.logs, &environment));
    let config = Config::resolve(&arguments, &environment).expect("settings");
    let engine = engine(&config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .enable_all()
        .build()
        .expect("runtime");
    let router = http::router(Arc::clone(&engine), &config.http, &config.requests);
    let listener = runtime.block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0))).expect("a socket");
    let address = listener.local_addr().expect("an address");
    let (stop, signals) = ShutdownSignals::new(Duration::from_secs(1));
    let serving = (router.clone(), config.http.clone(), Arc::clone(&engine.metrics));
    let server = runtime.spawn(async move {
        let (router, http, metrics) = serving;
        server::serve(listener, router, &http, metrics, signals).await
    });
    let skipped = |variable: &str, name: &str| std::env::var(variable).is_ok_and(|wanted| wanted != name);
    for (name, n, words) in [("1x16", 1, 11), ("1x128", 1, 97), ("32x128", 32, 97)] {
        if skipped("EMBEDSERVE_BENCH_REQUEST", name) {
            continue;
        }
        for encoding in ["float", "base64"] {
            let model = config.names.models()[config.names.default_index()].id.as_str();
            let body = json!({"model": model, "input": english(n, words), "encoding_format": encoding}).to_string();
            if !skipped("EMBEDSERVE_BENCH_WAY", "router") {
                print("router", (name, encoding, n), &times(|| through_router(&runtime, &router, &body)));
            }
            if skipped("EMBEDSERVE_BENCH_WAY", "socket") {
                continue;
            }
            let mut socket = TcpStream::connect(address).expect("a connection");
            socket.set_nodelay(true).expect("an option");
            let length = body.len();
            let head = format!("POST /v1/embeddings HTTP/1.1\r\nhost: {address}\r\ncontent-length: {length}\r\n\r\n");
            let request = [head.as_bytes(), body.as_bytes()].concat();
            print("socket", (name, encoding, n), &times(|| through_socket(&mut socket, &request)));
        }
    }
    stop.stop();
    runtime.block_on(server).expect("the server's end");
}

/// Every request's own time; those of the first round do not count.
fn times(mut request: impl FnMut()) -> Vec<Duration> {
    let mut times = Vec::new();
    for index in 0..REQUESTS * (1 + rounds()) {
        let start = Instant::now();
        request();
        if index >= REQUESTS {
            times.push(start.elapsed());
        }
    }
    times
}

#[inline(never)]
fn through_router(runtime: &tokio::runtime::Runtime, router: &axum::Router, body: &str) {
    let request = Request::post("/v1/embeddings").header("host", "localhost").body(Body::from(body.to_owned()));
    let answer = router.clone().oneshot(request.expect("a request"));
    let bytes = runtime.block_on(async {
        let answer = answer.await.expect("an answer");
        assert!(answer.status().is_success(), "{}", answer.status());
        answer.into_body().collect().await.expect("a body").to_bytes()
    });
    std::hint::black_box(bytes);
}

fn through_socket(socket: &mut TcpStream, request: &[u8]) {
    socket.write_all(request).expect("the request is sent");
    let (mut answer, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let n = socket.read(&mut chunk).expect("an answer");
        assert!(n > 0, "the server hung up");
        answer.extend_from_slice(&chunk[..n]);
        let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = std::str::from_utf8(&answer[..end]).expect("a head").to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        if answer.len() >= end + 4 + length.parse::<usize>().expect("a number") {
            return;
        }
    }
}

fn print(way: &str, (name, encoding, n_texts): (&str, &str, usize), times: &[Duration]) {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let micros = |time: Duration| (time.as_secs_f64() * 1e7).round() / 10.0;
    let per_text = median(times).as_secs_f64() / n_texts as f64;
    let mut figures = json!({
        "bench": "request", "way": way, "request": name, "encoding": encoding, "p50_us": micros(median(times)),
        "p99_us": micros(sorted[sorted.len() * 99 / 100]), "us_per_text": (per_text * 1e7).round() / 10.0,
    });
    if name.ends_with("128") {
        for (dtype, seconds) in FORWARD_128 {
            let percent = json!((1e3 * per_text / (seconds * SERVER_SHARE)).round() / 10.0);
            figures[format!("percent_of_{dtype}_budget")] = percent;
        }
    }
    println!("{figures}");
}

/// The default model, as far as requests can tell: its tokenizer, its queue, its threads.
fn engine(config: &Config) -> Arc<Engine> {
    let metrics = Metrics::new(&config.names.models().iter().map(|model| model.id.clone()).collect::<Vec<_>>());
    let engine = Arc::new(Engine::new(config.names.clone(), Arc::clone(&metrics)));
    let slot = &engine.slots()[0];
    let workers = Workers::new(config.batch.threads, &metrics).expect("workers");
    let head = Head { pooling: vec![PoolingMode::Cls], steps: Vec::new() };
    let mut computation = Computation { encoder: Box::new(Instantly::new()), head, turns: Arc::default() };
    let canary = warmup::self_test(&mut computation, &[1, 2], Dimensions::unlimited()).expect("a canary");
    let batch = Budget { rows: usize::MAX, tokens: 2048 };
    let bounds = QueueLimits {
        rows: config.batch.queue_rows,
        tokens: config.batch.queue_tokens,
        timeout: config.batch.queue_timeout,
        batch,
    };
    let queue = Queue::new(bounds, metrics.model(&slot.spec.id));
    let limits = runner::Limits {
        canary_interval: config.batch.device.canary_interval,
        heartbeat: config.batch.device.heartbeat,
        longest_row: MAX_TOKENS,
        isolation_passes_per_second: 1,
    };
    let device = Device {
        model: slot.spec.id.clone(),
        device: "cpu".to_owned(),
        computation,
        canary,
        queue: queue.clone(),
        limits,
    };
    let runner = runner::spawn(device, &metrics).expect("a thread").info;
    slot.set_ready(Arc::new(Served { limits: self::limits(), tokenizer: tokenizer(workers, &metrics), queue, runner }));
    engine
}

/// An encoder that takes as little time as there can be: its states are copies of one row.
struct Instantly(Tensor);

impl Instantly {
    fn new() -> Self {
        let values: Vec<f32> = (0..DIMENSIONS).map(|index| (index as f32).sin() / 14.0).collect();
        Self(Tensor::from_vec(values, (1, DIMENSIONS), &CandleDevice::Cpu).expect("a row"))
    }
}

impl Encoder for Instantly {
    fn forward(&mut self, batch: &PackedBatch) -> Result<Tensor, EncoderError> {
        Ok(self.0.broadcast_as((batch.n_tokens(), DIMENSIONS))?.contiguous()?)
    }

    fn hidden_size(&self) -> usize {
        DIMENSIONS
    }
}
