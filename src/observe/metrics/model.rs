//! The metrics of one model.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use super::kinds::{ArrayReading, BatchFailure, CanaryResult, ModelState, Refusal, Split, UnloadReason};
use super::sheet::{FloatGauge, Labels, Value, labels, zero};
use super::{Table, unix_time};

/// The metrics of one model.
#[derive(Debug)]
pub struct ModelMetrics {
    model: String,
    table: Arc<Table>,
    /// By lane, in the order of [`LANES`].
    queue_rows: [FloatGauge; 2],
    queue_tokens: [FloatGauge; 2],
    waiting: FloatGauge,
    cancelled: Counter,
    expired: Counter,
    tokenize: Histogram,
    queue: Histogram,
    run: Histogram,
    parse: Histogram,
    write: Histogram,
    last_success: FloatGauge,
    /// The series that carry a device, by its number; replaced when the devices become known.
    devices: RwLock<Vec<DeviceMetrics>>,
}

/// What is served under a model's id.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    pub revision: String,
    pub architecture: String,
    pub dtype: String,
    /// By number, at least one.
    pub devices: Vec<String>,
    pub pooling: String,
    pub dimensions: usize,
}

/// The handles whose series name a device.
#[derive(Debug)]
struct DeviceMetrics {
    device: String,
    batches: Counter,
    computed_tokens: Counter,
    batch_rows: Histogram,
    batch_tokens: Histogram,
    batch_duration: Histogram,
}

// === impl ModelMetrics ===

impl ModelMetrics {
    pub(super) fn new(model: &str, table: &Arc<Table>) -> Self {
        let own = || labels([("model", model.to_owned().into())]);
        let with = |name: &'static str, value: &'static str| {
            labels([("model", model.to_owned().into()), (name, value.into())])
        };
        let limits = [&table.queue_limit_rows, &table.queue_limit_tokens, &table.batch_limit];
        for gauges in limits {
            zero(gauges, &own());
        }
        for counters in
            [&table.isolations_refused, &table.rows_non_finite, &table.rows_quarantined, &table.model_restarts]
        {
            zero(counters, &own());
        }
        for result in CanaryResult::ALL {
            zero(&table.canary, &with("result", result.label()));
        }
        for reason in Refusal::ALL {
            zero(&table.queue_refused, &with("reason", reason.label()));
        }
        for encoding in ArrayReading::ALL {
            zero(&table.token_arrays, &with("encoding", encoding.label()));
        }
        for reason in Split::ALL {
            zero(&table.batch_splits, &with("reason", reason.label()));
        }
        for outcome in [LOADED, NOT_LOADED] {
            zero(&table.model_loads, &with("outcome", outcome));
        }
        for reason in UnloadReason::ALL {
            zero(&table.model_unloads, &with("reason", reason.label()));
        }
        let lane = |name| with("lane", name);
        let stage = |name| table.stage_duration.get_or_create_owned(&with("stage", name));
        let metrics = Self {
            model: model.to_owned(),
            queue_rows: LANES.map(|name| table.queue_rows.get_or_create_owned(&lane(name))),
            queue_tokens: LANES.map(|name| table.queue_tokens.get_or_create_owned(&lane(name))),
            waiting: table.model_waiting.get_or_create_owned(&own()),
            cancelled: table.queue_cancelled.get_or_create_owned(&own()),
            expired: table.queue_expired.get_or_create_owned(&own()),
            tokenize: stage("tokenize"),
            queue: stage("queue"),
            run: stage("run"),
            parse: stage("parse"),
            write: stage("write"),
            last_success: table.model_last_success.get_or_create_owned(&own()),
            devices: RwLock::new(vec![DeviceMetrics::new(model, "cpu", table)]),
            table: Arc::clone(table),
        };
        metrics.set_state(ModelState::Loading);
        metrics
    }

    pub fn queue_limits(&self, rows: usize, tokens: usize) {
        self.table.queue_limit_rows.get_or_create(&self.own()).set(rows as f64);
        self.table.queue_limit_tokens.get_or_create(&self.own()).set(tokens as f64);
    }

    /// Rows and tokens waiting in the interactive and in the bulk lane.
    pub fn queue_now(&self, lanes: [(usize, usize); 2]) {
        for (lane, (rows, tokens)) in lanes.into_iter().enumerate() {
            self.queue_rows[lane].set(rows as f64);
            self.queue_tokens[lane].set(tokens as f64);
        }
    }

    pub fn refused(&self, reason: Refusal) {
        self.table.queue_refused.get_or_create(&self.with("reason", reason.label())).inc();
    }

    pub fn expired(&self, rows: usize) {
        self.expired.inc_by(rows as u64);
    }

    pub fn cancelled(&self, rows: usize) {
        self.cancelled.inc_by(rows as u64);
    }

    /// A batch of so many rows and tokens on the device of this number.
    pub fn batch_done(&self, device: usize, rows: usize, tokens: usize, took: Duration) {
        let devices = self.devices.read().unwrap_or_else(PoisonError::into_inner);
        let Some(device) = devices.get(device) else { return };
        device.batches.inc();
        device.computed_tokens.inc_by(tokens as u64);
        device.batch_rows.observe(rows as f64);
        device.batch_tokens.observe(tokens as f64);
        device.batch_duration.observe(took.as_secs_f64());
    }

    pub fn batch_failed(&self, device: usize, reason: BatchFailure) {
        let devices = self.devices.read().unwrap_or_else(PoisonError::into_inner);
        let Some(device) = devices.get(device) else { return };
        let series = failure_labels(&self.model, &device.device, reason);
        self.table.batch_failures.get_or_create(&series).inc();
    }

    pub fn batch_split(&self, reason: Split) {
        self.table.batch_splits.get_or_create(&self.with("reason", reason.label())).inc();
    }

    /// Tokens that one batch may have from now on.
    pub fn batch_limit(&self, tokens: usize) {
        self.table.batch_limit.get_or_create(&self.own()).set(tokens as f64);
    }

    pub fn isolation_refused(&self) {
        self.table.isolations_refused.get_or_create(&self.own()).inc();
    }

    pub fn rows_quarantined(&self, rows: usize) {
        self.table.rows_quarantined.get_or_create(&self.own()).inc_by(rows as u64);
    }

    pub fn canary(&self, result: CanaryResult) {
        self.table.canary.get_or_create(&self.with("result", result.label())).inc();
    }

    /// Its device thread died, and it is loaded again.
    pub fn restarted(&self) {
        self.table.model_restarts.get_or_create(&self.own()).inc();
    }

    pub fn row_non_finite(&self) {
        self.table.rows_non_finite.get_or_create(&self.own()).inc();
    }

    pub fn parsed(&self, took: Duration) {
        self.parse.observe(took.as_secs_f64());
    }

    pub fn tokenized(&self, took: Duration) {
        self.tokenize.observe(took.as_secs_f64());
    }

    pub fn queued(&self, waited: Duration) {
        self.queue.observe(waited.as_secs_f64());
    }

    pub fn ran(&self, took: Duration) {
        self.run.observe(took.as_secs_f64());
    }

    pub fn wrote(&self, took: Duration) {
        self.write.observe(took.as_secs_f64());
    }

    pub fn token_array(&self, encoding: ArrayReading) {
        self.table.token_arrays.get_or_create(&self.with("encoding", encoding.label())).inc();
    }

    pub fn set_state(&self, state: ModelState) {
        for other in ModelState::ALL {
            let value = if other == state { 1.0 } else { 0.0 };
            self.table.model_state.get_or_create(&self.with("state", other.label())).set(value);
        }
    }

    /// Moves the per-device series to the devices that were chosen; nothing has been counted on them yet.
    pub fn set_info(&self, info: &ModelInfo) {
        let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
        if devices.iter().map(|device| &device.device).ne(&info.devices) {
            devices.iter().for_each(|device| device.remove(&self.model, &self.table));
            *devices = info.devices.iter().map(|name| DeviceMetrics::new(&self.model, name, &self.table)).collect();
        }
        drop(devices);
        let series = labels([
            ("model", self.model.clone().into()),
            ("revision", info.revision.clone().into()),
            ("architecture", info.architecture.clone().into()),
            ("dtype", info.dtype.clone().into()),
            ("device", info.devices.join(", ").into()),
            ("pooling", info.pooling.clone().into()),
            ("dimensions", info.dimensions.to_string().into()),
        ]);
        self.table.model_info.get_or_create(&series).set(1.0);
    }

    /// Each of its devices holds all of the weights.
    pub fn loaded(&self, took: Duration, weight_bytes: u64) {
        self.table.model_loads.get_or_create(&self.with("outcome", LOADED)).inc();
        self.on_each_device(|table, series| {
            table.model_load_seconds.get_or_create(series).set(took.as_secs_f64());
            table.model_weight_bytes.get_or_create(series).set(weight_bytes as f64);
        });
    }

    pub fn not_loaded(&self) {
        self.table.model_loads.get_or_create(&self.with("outcome", NOT_LOADED)).inc();
    }

    pub fn scratch(&self, bytes: u64) {
        self.on_each_device(|table, series| {
            table.scratch_bytes.get_or_create(series).set(bytes as f64);
        });
    }

    /// Its memory is free again.
    pub fn unloaded(&self, reason: UnloadReason) {
        self.table.model_unloads.get_or_create(&self.with("reason", reason.label())).inc();
        self.on_each_device(|table, series| {
            table.model_weight_bytes.get_or_create(series).set(0.0);
            table.scratch_bytes.get_or_create(series).set(0.0);
        });
    }

    /// Requests that wait for it to be loaded.
    pub fn waiting(&self, requests: usize) {
        self.waiting.set(requests as f64);
    }

    /// A forward pass gave a vector just now.
    pub fn success_now(&self) {
        self.last_success.set(unix_time().as_secs_f64());
    }

    fn on_each_device(&self, set: impl Fn(&Table, &Labels)) {
        for device in self.devices.read().unwrap_or_else(PoisonError::into_inner).iter() {
            set(&self.table, &device_labels(&self.model, &device.device));
        }
    }

    fn own(&self) -> Labels {
        labels([("model", self.model.clone().into())])
    }

    fn with(&self, name: &'static str, value: &'static str) -> Labels {
        labels([("model", self.model.clone().into()), (name, value.into())])
    }
}

// === impl DeviceMetrics ===

impl DeviceMetrics {
    fn new(model: &str, device: &str, table: &Table) -> Self {
        let series = device_labels(model, device);
        for reason in BatchFailure::ALL {
            zero(&table.batch_failures, &failure_labels(model, device, reason));
        }
        Self {
            device: device.to_owned(),
            batches: table.batches.get_or_create_owned(&series),
            computed_tokens: table.computed_tokens.get_or_create_owned(&series),
            batch_rows: table.batch_rows.get_or_create_owned(&series),
            batch_tokens: table.batch_tokens.get_or_create_owned(&series),
            batch_duration: table.batch_duration.get_or_create_owned(&series),
        }
    }

    fn remove(&self, model: &str, table: &Table) {
        let series = device_labels(model, &self.device);
        for reason in BatchFailure::ALL {
            table.batch_failures.remove(&failure_labels(model, &self.device, reason));
        }
        table.batches.remove(&series);
        table.computed_tokens.remove(&series);
        table.batch_rows.remove(&series);
        table.batch_tokens.remove(&series);
        table.batch_duration.remove(&series);
    }
}

/// Labels of the series that name a device.
fn device_labels(model: &str, device: &str) -> Labels {
    labels([("model", model.to_owned().into()), ("device", device.to_owned().into())])
}

fn failure_labels(model: &str, device: &str, reason: BatchFailure) -> Labels {
    let device: Value = device.to_owned().into();
    labels([("model", model.to_owned().into()), ("device", device), ("reason", reason.label().into())])
}

/// How a load ends.
const LOADED: &str = "ok";
const NOT_LOADED: &str = "failed";
/// Small requests and large ones, as the batch planner tells them apart.
const LANES: [&str; 2] = ["interactive", "bulk"];
