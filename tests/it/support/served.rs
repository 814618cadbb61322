//! A real model, loaded from a folder, without HTTP.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use embedserve::catalog::{self, ModelSpec};
use embedserve::config::{self, BatchConfig, DeviceConfig, RequestConfig};
use embedserve::engine::{Embedded, EngineError, Served};
use embedserve::kernel::{Isa, Target};
use embedserve::load::{self, LoadError, Loaded, Seat, Settings, Shared};
use embedserve::observe::metrics::Metrics;
use embedserve::observe::progress::LoadProgress;
use embedserve::request::{EmbedRequest, RawInputs, RawRequest, TokenArrays};
use embedserve::source::ModelFolder;
use embedserve::source::notes::Notes;
use embedserve::threads::Threads;
use embedserve::tokenize::workers::Workers;

use super::device::soon;

/// The thread budget and the tokenizer pool that all tests share, as all models of a process do.
pub fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| shared_with(2, Isa::detect()))
}

pub fn shared_with(n_threads: usize, isa: Isa) -> Shared {
    let metrics = Metrics::new(&["model".to_owned()]);
    let workers = Workers::new(2, &metrics).unwrap();
    // A place that nobody can write to: tests that keep notes bring their own.
    let notes = Notes::at("/dev/null/notes".into());
    let threads = Arc::new(Threads::new(n_threads).unwrap());
    Shared { seats: Seat::all(&[Target::Cpu], &threads), threads, workers, metrics, isa, notes, memory_limit: None }
}

pub fn requests() -> RequestConfig {
    RequestConfig {
        max_inputs: 2048,
        max_request_tokens: 300_000,
        max_input_bytes_per_token: 64,
        allow_empty_input: true,
        accept_any_model: false,
        token_arrays: TokenArrays::Auto,
        truncate: None,
        default_prompt: None,
        max_prompt_bytes: 64,
        allow_dimensions: false,
        request_timeout: Duration::from_mins(1),
    }
}

pub fn batches() -> BatchConfig {
    BatchConfig {
        queue_rows: 4096,
        queue_tokens: 1_000_000,
        queue_timeout: Duration::from_mins(1),
        max_batch_tokens: None,
        max_batch_rows: usize::MAX,
        threads: 2,
        device: device(),
        isa: Isa::detect(),
        device_choice: config::device::choose("cpu", config::device::Launches::Recorded).unwrap(),
    }
}

/// A watch that no test meets by accident.
pub fn device() -> DeviceConfig {
    DeviceConfig {
        canary_interval: Duration::from_hours(1),
        heartbeat: Duration::from_mins(1),
        stall_limit: Duration::from_mins(1),
        isolation_passes_per_second: 20,
        restart_delay: Duration::from_millis(1),
        restart_window: Duration::from_mins(1),
    }
}

/// A spec for a folder: the folder's own files answer every question. Its id is `model`, whatever the folder is called.
pub fn spec(folder: &Path) -> ModelSpec {
    let choice = format!("dir:{}", folder.display());
    ModelSpec { id: "model".to_owned(), ..catalog::resolve(&choice, &[]).unwrap() }
}

pub fn try_load(folder: &Path) -> Result<Loaded, LoadError> {
    try_load_with(folder, shared())
}

pub fn try_load_with(folder: &Path, shared: &Shared) -> Result<Loaded, LoadError> {
    try_load_as(&spec(folder), folder, shared)
}

pub fn try_load_as(spec: &ModelSpec, folder: &Path, shared: &Shared) -> Result<Loaded, LoadError> {
    let settings = Settings { requests: &requests(), batch: &batches() };
    load::load(spec, &obtained(folder), settings, shared, &LoadProgress::default())
}

/// A folder as its source hands it over.
pub fn obtained(folder: &Path) -> ModelFolder {
    ModelFolder { path: folder.to_owned(), source: "directory", revision: None, pinned: false }
}

/// Vectors of texts in one request.
pub async fn embed(served: &Served, texts: &[&str]) -> Result<Embedded, EngineError> {
    embed_raw(served, texts, RawRequest::default()).await
}

/// As [`embed`], with the other fields of `raw`.
pub async fn embed_raw(served: &Served, texts: &[&str], raw: RawRequest) -> Result<Embedded, EngineError> {
    let texts = texts.iter().map(|text| (*text).to_owned()).collect();
    let raw = RawRequest { inputs: RawInputs::Texts { single: false, texts }, ..raw };
    let request = EmbedRequest::parse("model".to_owned(), raw, &served.limits, soon())?;
    served.embed(request).await
}
