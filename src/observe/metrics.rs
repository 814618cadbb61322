//! Every metric, its name and meaning, in three tables: `Table::new`, `HttpMetrics::new` and the process's own (`process`);
//! and the handles that the rest of the crate counts with.
//!
//! A series exists at zero from the start for every model and every closed label value, so that a rate is right from
//! the first event on. Label values never come from clients.

mod kinds;
mod model;
mod process;
mod sheet;
mod wire;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

use sheet::{Counters, Gauges, Histograms, Labels, Scale, Sheet, labels, zero};

pub use kinds::{ArrayReading, BatchFailure, CanaryResult, ModelState, PanicThread, Refusal, Split, UnloadReason};
pub use model::{ModelInfo, ModelMetrics};
pub use process::resident_bytes;
pub use wire::{Answer, AuthFailure, ConnectionEnd, Gone, HttpMetrics, LimitKind, Receipt, UNMATCHED};

/// The content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The `model` label of events that no model is to blame for.
pub const UNKNOWN_MODEL: &str = "unknown";

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    table: Arc<Table>,
    http: HttpMetrics,
    models: HashMap<String, Arc<ModelMetrics>>,
    unknown: Arc<ModelMetrics>,
}

/// Seconds since 1970, for answers and metrics alone: deadlines use the monotonic clock.
#[expect(clippy::disallowed_methods, reason = "the one place that tells the date")]
pub fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The metrics that are not about HTTP.
#[derive(Debug)]
struct Table {
    queue_rows: Gauges,
    queue_tokens: Gauges,
    queue_limit_rows: Gauges,
    queue_limit_tokens: Gauges,
    queue_refused: Counters,
    queue_expired: Counters,
    queue_cancelled: Counters,
    batches: Counters,
    batch_failures: Counters,
    batch_splits: Counters,
    batch_limit: Gauges,
    isolations_refused: Counters,
    rows_quarantined: Counters,
    canary: Counters,
    model_restarts: Counters,
    batch_rows: Histograms,
    batch_tokens: Histograms,
    batch_duration: Histograms,
    computed_tokens: Counters,
    rows_non_finite: Counters,
    stage_duration: Histograms,
    token_arrays: Counters,
    model_info: Gauges,
    model_state: Gauges,
    model_loads: Counters,
    model_unloads: Counters,
    model_waiting: Gauges,
    model_load_seconds: Gauges,
    model_weight_bytes: Gauges,
    scratch_bytes: Gauges,
    model_last_success: Gauges,
    source_failures: Counters,
    key_reloads: Counters,
    threads: Gauges,
    panics: Counters,
    build_info: Gauges,
}

impl Table {
    #[rustfmt::skip]
    fn new(s: &mut Sheet) -> Self {
        use Scale::{Rows, Stages, Tokens};
        Self {
            queue_rows: s.gauges("embedserve_queue_rows", "Rows waiting, by model and lane"),
            queue_tokens: s.gauges("embedserve_queue_tokens", "Tokens waiting, by model and lane"),
            queue_limit_rows: s.gauges("embedserve_queue_limit_rows", "Rows that may wait, by model"),
            queue_limit_tokens: s.gauges("embedserve_queue_limit_tokens", "Tokens that may wait, by model"),
            queue_refused: s.counters("embedserve_queue_refused", "Requests refused at once, by model and reason"),
            queue_expired: s.counters("embedserve_queue_expired", "Rows whose deadline passed while waiting, by model"),
            queue_cancelled: s.counters("embedserve_queue_cancelled", "Waiting rows whose client left, by model"),
            batches: s.counters("embedserve_batches", "Forward passes, by model and device"),
            batch_failures: s.counters("embedserve_batch_failures", "Forward passes without a result, by reason"),
            batch_splits: s.counters("embedserve_batch_splits", "Batches tried again in halves, by reason"),
            batch_limit: s.gauges("embedserve_batch_limit_tokens", "Tokens that one batch may have now, by model"),
            isolations_refused: s.counters(
                "embedserve_batch_isolations_refused",
                "Batches that failed as a whole: finding the rows to blame had used up its budget",
            ),
            rows_quarantined: s.counters("embedserve_rows_quarantined", "Rows refused because they failed alone just before"),
            canary: s.counters("embedserve_canary", "Probes of an idle device compared with their vector, by result"),
            model_restarts: s.counters("embedserve_model_restarts", "Loads after the death of a device thread, by model"),
            batch_rows: s.histograms(Rows, "embedserve_batch_rows", "Rows of one forward pass"),
            batch_tokens: s.histograms(Tokens, "embedserve_batch_tokens", "Tokens of one forward pass"),
            batch_duration: s.histograms(Stages, "embedserve_batch_duration_seconds", "Time of one forward pass"),
            computed_tokens: s.counters("embedserve_computed_tokens", "Tokens through the model, by device"),
            rows_non_finite: s.counters("embedserve_rows_non_finite", "Rows refused because of a NaN or an infinity"),
            stage_duration: s.histograms(Stages, "embedserve_stage_duration_seconds", "Time in one stage of a request"),
            token_arrays: s.counters("embedserve_token_arrays", "Token arrays, by the encoding they were read in"),
            model_info: s.gauges("embedserve_model_info", "1, with what is served as labels"),
            model_state: s.gauges("embedserve_model_state", "1 for the state a model is in"),
            model_loads: s.counters("embedserve_model_loads", "Loads into memory, by outcome"),
            model_unloads: s.counters("embedserve_model_unloads", "Unloads from memory, by reason"),
            model_waiting: s.gauges("embedserve_model_waiting_requests", "Requests that wait for a load, by model"),
            model_load_seconds: s.gauges("embedserve_model_load_seconds", "Time from files to the first vector"),
            model_weight_bytes: s.gauges("embedserve_model_weight_bytes", "Memory of the packed weights"),
            scratch_bytes: s.gauges("embedserve_scratch_bytes", "Estimate of the memory of one full batch, by model"),
            model_last_success: s.gauges(
                "embedserve_model_last_success_timestamp_seconds",
                "Unix time of the last forward pass that gave a vector",
            ),
            source_failures: s.counters(
                "embedserve_source_failures",
                "Attempts to obtain a model's files that failed, by model and source",
            ),
            key_reloads: s.counters("embedserve_key_reloads", "Files of keys read again, by outcome"),
            threads: s.gauges("embedserve_threads", "Configured threads, by pool"),
            panics: s.counters("embedserve_panics", "Panics caught, by kind of thread"),
            build_info: s.gauges("embedserve_build_info", "1, with the build as labels"),
        }
    }
}

/// Where files come from.
const SOURCES: [&str; 3] = ["hub", "wheel", "directory"];

fn source_labels(model: &str, source: &'static str) -> Labels {
    labels([("model", model.to_owned().into()), ("source", source.into())])
}

fn reload_labels(taken: bool) -> Labels {
    labels([("outcome", if taken { "taken" } else { "refused" }.into())])
}

// === impl Metrics ===

impl Metrics {
    /// Creates every series that can exist before a request arrives.
    pub fn new(model_ids: &[String]) -> Arc<Self> {
        let mut sheet = Sheet::default();
        let table = Arc::new(Table::new(&mut sheet));
        let http = HttpMetrics::new(&mut sheet, model_ids);
        let mut registry = sheet.0;
        registry.register_collector(Box::new(process::Process));
        for thread in PanicThread::ALL {
            zero(&table.panics, &labels([("thread", thread.label().into())]));
        }
        for taken in [true, false] {
            zero(&table.key_reloads, &reload_labels(taken));
        }
        for (id, source) in model_ids.iter().flat_map(|id| SOURCES.map(|source| (id, source))) {
            zero(&table.source_failures, &source_labels(id, source));
        }
        let models = model_ids.iter().map(|id| (id.clone(), Arc::new(ModelMetrics::new(id, &table)))).collect();
        let unknown = Arc::new(ModelMetrics::new(UNKNOWN_MODEL, &table));
        let metrics = Self { registry, table, http, models, unknown };
        metrics.build("cpu", "unknown");
        Arc::new(metrics)
    }

    /// The metrics of a canonical id; any other name counts as `unknown`.
    pub fn model(&self, id: &str) -> Arc<ModelMetrics> {
        Arc::clone(self.models.get(id).unwrap_or(&self.unknown))
    }

    pub const fn http(&self) -> &HttpMetrics {
        &self.http
    }

    pub fn panicked(&self, thread: PanicThread) {
        self.table.panics.get_or_create(&labels([("thread", thread.label().into())])).inc();
    }

    /// The files of keys were read again, and taken or not.
    pub fn keys_reloaded(&self, taken: bool) {
        self.table.key_reloads.get_or_create(&reload_labels(taken)).inc();
    }

    /// A source did not yield a model's files.
    pub fn source_failed(&self, model: &str, source: &'static str) {
        self.table.source_failures.get_or_create(&source_labels(model, source)).inc();
    }

    /// The size of a thread pool; `pool` is one of ours.
    pub fn threads(&self, pool: &'static str, n_threads: usize) {
        self.table.threads.get_or_create(&labels([("pool", pool.into())])).set(n_threads as f64);
    }

    /// What this build is and which kernels it chose, once that is known.
    pub fn build(&self, features: &str, isa: &str) {
        let version = env!("CARGO_PKG_VERSION");
        self.table.build_info.clear();
        let series =
            [("version", version.into()), ("features", features.to_owned().into()), ("isa", isa.to_owned().into())];
        self.table.build_info.get_or_create(&labels(series)).set(1.0);
    }

    /// Every metric in the `OpenMetrics` text format.
    pub fn encode(&self) -> String {
        let mut page = String::new();
        // Writing to a string cannot fail, and none of our values refuses to be written.
        let written = text::encode(&mut page, &self.registry);
        debug_assert!(written.is_ok(), "a metric could not be written");
        page
    }
}
