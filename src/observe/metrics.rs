//! stub
use std::sync::Arc;
use std::time::Duration;
#[derive(Debug)]
pub struct Metrics;
#[derive(Debug)]
pub struct ModelMetrics;
#[derive(Debug, Clone, Copy)]
pub enum Refusal {
    Full,
    Loading,
    Draining,
    Dead,
}
#[derive(Debug, Clone, Copy)]
pub enum BatchFailure {
    Oom,
    Device,
    Panic,
    NonFinite,
}
#[derive(Debug, Clone, Copy)]
pub enum PanicThread {
    Http,
    Tokenizer,
    Runner,
}
#[derive(Debug, Clone, Copy)]
pub enum ArrayReading {
    Cl100k,
    O200k,
    Model,
    Refused,
}
impl Metrics {
    pub fn new(_: &[String]) -> Arc<Self> {
        Arc::new(Self)
    }
    pub fn model(&self, _: &str) -> Arc<ModelMetrics> {
        Arc::new(ModelMetrics)
    }
    pub fn panicked(&self, _: PanicThread) {}
}
impl ModelMetrics {
    pub fn queue_limits(&self, _: usize, _: usize) {}
    pub fn queue_now(&self, _: usize, _: usize) {}
    pub fn refused(&self, _: Refusal) {}
    pub fn expired(&self, _: usize) {}
    pub fn cancelled(&self, _: usize) {}
    pub fn batch_done(&self, _: usize, _: usize, _: Duration) {}
    pub fn batch_failed(&self, _: BatchFailure) {}
    pub fn batch_split(&self) {}
    pub fn row_non_finite(&self) {}
    pub fn tokenized(&self, _: Duration) {}
    pub fn queued(&self, _: Duration) {}
    pub fn ran(&self, _: Duration) {}
    pub fn token_array(&self, _: ArrayReading) {}
    pub fn success_now(&self) {}
}

#[derive(Debug, Clone)]
pub struct ModelInfo {
    pub revision: String,
    pub architecture: String,
    pub dtype: String,
    pub device: String,
    pub pooling: String,
    pub dimensions: usize,
}
impl ModelMetrics {
    pub fn set_info(&self, _: &ModelInfo) {}
    pub fn loaded(&self, _: Duration, _: u64) {}
}
