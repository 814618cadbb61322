//! Forward passes of a real model beside candle-transformers' own BertModel on the same weights and token ids, in
//! turn, in one process, in every number format: `cargo bench --bench compute -- forward`.
//!
//! Ours take turns, then candle's: its idle threads go on looking for work, on the cores of whoever comes next. So a
//! process runs one workload when ours must be measured undisturbed (`EMBEDSERVE_BENCH_WORKLOAD`).
//!
//! The model is the default one, obtained as the server would; `EMBEDSERVE_BENCH_MODEL=DIR` names another folder.
//! candle-transformers gets both of its uses: rows sorted by length and padded in batches of 32, and one row at a
//! time without padding. Rates count real tokens. Each line is one JSON object.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use clap::Parser;
use embedserve::arch::packed::PackedBatch;
use embedserve::arch::{self, Encoder};
use embedserve::cli::Cli;
use embedserve::config::{self, Environment};
use embedserve::kernel::{Compute, Isa, Precision, Target};
use embedserve::load::describe;
use embedserve::load::work::Work;
use embedserve::observe::progress::LoadProgress;
use embedserve::threads::{self, Threads};
use embedserve::tokenize::load::{ids, load};
use embedserve::weights::Weights;
use embedserve::{catalog, source};
use serde_json::json;

use crate::support::{in_turn, median, mixed256, peak_flops, uniform};

const ROUNDS: usize = 5;
const OURS: &str = "embedserve";
/// Names a file of texts, `{"texts": [..]}`, instead of the built-in workloads.
const WORKLOAD: &str = "EMBEDSERVE_BENCH_WORKLOAD";
/// Tokens of one of our batches, as the server's default.
const BATCH_TOKENS: usize = 2048;
/// Rows of one padded batch.
const PADDED_ROWS: usize = 32;

pub fn run() {
    let folder = folder();
    let text = std::fs::read_to_string(folder.join("config.json")).expect("config.json");
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let weight_file = folder.join("model.safetensors");
    let files = std::slice::from_ref(&weight_file);
    let weights = Weights::open(files, str::to_owned).expect("weights");
    let builder = VarBuilder::from_backend(Box::new(weights), DType::F32, Device::Cpu);
    let config: Config = serde_json::from_str(&text).expect("config.json");
    let candle = BertModel::load(builder, &config).expect("candle's model");

    let n_threads = threads::available();
    let pool = Threads::new(n_threads).expect("threads");
    let peak = peak_flops(n_threads);
    println!("{}", json!({"threads": n_threads, "peak_gflops": (peak / 1e9).round(), "isa": Isa::detect().name()}));
    let mut models: Vec<(Precision, arch::Loaded)> = Vec::new();
    for precision in precisions() {
        let compute = Compute { isa: Isa::detect(), precision };
        models.push((precision, arch::load(&value, files, &Target::Cpu, compute, pool.pool()).expect("our model")));
    }
    let spec = &models.first().expect("a precision").1.spec;
    let work = Work::of(spec);

    for (name, rows) in workloads(&folder) {
        let tokens: usize = rows.iter().map(Vec::len).sum();
        let flops: f64 = rows.iter().map(|row| work.flops(row.len())).sum();
        let mut engines: Vec<(&str, Precision)> = models.iter().map(|(precision, _)| (OURS, *precision)).collect();
        let mut ours: Vec<_> = models.iter_mut().map(|(_, model)| || packed(model.encoder.as_mut(), &rows)).collect();
        let mut contenders: Vec<&mut dyn FnMut()> = ours.iter_mut().map(|run| run as &mut dyn FnMut()).collect();
        let mut times = in_turn(rounds(), &mut contenders);
        if engines.iter().any(|(_, precision)| *precision == Precision::F32) {
            engines.extend([("candle padded", Precision::F32), ("candle unpadded", Precision::F32)]);
            let mut padded = || padded(&candle, &rows);
            let mut single = || rows.iter().for_each(|row| candle_batch(&candle, &[row]));
            times.extend(in_turn(rounds(), &mut [&mut padded as &mut dyn FnMut(), &mut single]));
        }
        let medians: Vec<f64> = times.iter().map(|times| median(times).as_secs_f64()).collect();
        for ((engine, precision), seconds) in engines.into_iter().zip(&medians) {
            // candle multiplies f32 on the vector units.
            let isa = if engine == OURS { Isa::detect() } else { Isa::detect().min(Isa::Avx512) };
            let peak = peak * Compute { isa, precision }.roof_over_f32();
            let figures = json!({
                "workload": name, "engine": engine, "precision": precision.name(), "tokens": tokens,
                "tokens_per_s": (tokens as f64 / seconds).round(),
                "ms": (seconds * 1e5).round() / 1e2,
                "percent_of_peak": (1000.0 * flops / seconds / peak).round() / 10.0,
                "time_over_first": (100.0 * seconds / medians[0]).round() / 100.0,
            });
            println!("{figures}");
        }
    }
}

/// A driver that calls us in each of its rounds says how many of ours it needs.
fn rounds() -> usize {
    let given = std::env::var("EMBEDSERVE_BENCH_ROUNDS").ok().map(|text| text.parse().expect("a number of rounds"));
    given.unwrap_or(if std::env::var_os(WORKLOAD).is_some() { 1 } else { ROUNDS })
}

/// All that this processor multiplies, or those of `EMBEDSERVE_BENCH_PRECISIONS`.
fn precisions() -> Vec<Precision> {
    let usable = Compute::exact(Isa::detect()).usable();
    let Ok(wanted) = std::env::var("EMBEDSERVE_BENCH_PRECISIONS") else {
        return if std::env::var_os(WORKLOAD).is_some() { vec![Precision::F32] } else { usable };
    };
    let named = |name: &str| usable.iter().copied().find(|precision| precision.name() == name);
    wanted.split(',').map(|name| named(name).expect("a format that this processor multiplies")).collect()
}

/// The design's workloads, or the texts of a file that a driver compares several programs on.
fn workloads(folder: &Path) -> Vec<(&'static str, Vec<Vec<u32>>)> {
    let Some(path) = std::env::var_os(WORKLOAD) else {
        let uniform = [("32x128", uniform(32, 128)), ("1x16", uniform(1, 16)), ("1x128", uniform(1, 128))];
        return std::iter::once(("mixed256", mixed256())).chain(uniform).collect();
    };
    let text = std::fs::read_to_string(path).expect("workload");
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let (tokenizer, _) = load(&folder.join("tokenizer.json"), usize::MAX).expect("tokenizer");
    let texts = value["texts"].as_array().expect("texts").iter();
    let rows = texts.map(|text| ids(&tokenizer, text.as_str().expect("a text"), true).expect("ids")).collect();
    vec![("given", rows)]
}

fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("EMBEDSERVE_BENCH_MODEL") {
        return folder.into();
    }
    let arguments = Cli::parse_from(["embedserve"]).serve;
    let sources = config::source(&arguments.source, &Environment::of_process()).expect("settings");
    let spec = catalog::resolve(config::DEFAULT_MODEL, &catalog::builtin().expect("catalogue")).expect("default model");
    source::obtain(&spec, describe::judge, &sources, &LoadProgress::default(), &AtomicBool::new(false))
        .expect("weights")
        .path
}

/// Our way: batches by tokens, nothing padded.
fn packed(encoder: &mut dyn Encoder, rows: &[Vec<u32>]) {
    let mut waiting = rows;
    while !waiting.is_empty() {
        let mut left = BATCH_TOKENS;
        let fits = |row: &&Vec<u32>| {
            let fits = left >= row.len();
            left = left.saturating_sub(row.len());
            fits
        };
        let n = waiting.iter().take_while(fits).count().max(1);
        let batch = PackedBatch::new(waiting[..n].iter().map(Vec::as_slice));
        std::hint::black_box(encoder.forward(&batch).expect("forward"));
        waiting = &waiting[n..];
    }
}

/// The usual way: sorted by length, batches of equal row count, padded to the longest.
fn padded(model: &BertModel, rows: &[Vec<u32>]) {
    let mut sorted: Vec<&Vec<u32>> = rows.iter().collect();
    sorted.sort_by_key(|row| row.len());
    sorted.chunks(PADDED_ROWS).for_each(|batch| candle_batch(model, batch));
}

fn candle_batch(model: &BertModel, rows: &[&Vec<u32>]) {
    let width = rows.iter().map(|row| row.len()).max().unwrap_or(0);
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for row in rows {
        ids.extend(row.iter().copied().chain(std::iter::repeat_n(0, width - row.len())));
        mask.extend((0..width).map(|i| u32::from(i < row.len())));
    }
    let shape = (rows.len(), width);
    let ids = Tensor::from_vec(ids, shape, &Device::Cpu).expect("ids");
    let mask = Tensor::from_vec(mask, shape, &Device::Cpu).expect("mask");
    let types = ids.zeros_like().expect("types");
    std::hint::black_box(model.forward(&ids, &types, Some(&mask)).expect("candle forward"));
}
