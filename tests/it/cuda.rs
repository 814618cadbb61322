//! The GPU's kernels and encoder against the CPU's references and the goldens of sentence-transformers.
//!
//! They run on the first GPU there is, which may be the emulated one (`.ci/emulate-cuda`). Without any they say by name that
//! they were left out; with `EMBEDSERVE_TEST_GPU=required` they fail.

mod graphs;
mod half;
mod overlap;

use std::path::Path;

use ::half::{bf16, f16};
use embedserve::arch;
use embedserve::arch::packed::PackedBatch;
use embedserve::catalog::ModelSpec;
use embedserve::kernel::cuda::launch::{Columns, DeviceAttention, HEAD_SIZES, Pass, Places, Weight};
use embedserve::kernel::cuda::{Buffer, CudaError, Device, Format, count};
use embedserve::kernel::reference::{self, AttentionOptions};
use embedserve::kernel::{Activation, Compute, DistanceBias, Isa, MatrixShape, Precision, Reduce, Rotary, Target};
use embedserve::load::{Loaded, Seat, Shared};
use embedserve::threads::Threads;
use tokio::sync::{Mutex, MutexGuard};

use crate::support::golden::{Golden, folder};
use crate::support::random::Random;
use crate::support::served::{embed, shared_with, spec, try_load_as};

/// One test at a time: one of them looks at what memory is left.
static TURN: Mutex<()> = Mutex::const_new(());

/// The first GPU, or `None`, said in the test's name.
async fn gpu(test: &str) -> Option<(Device, MutexGuard<'static, ()>)> {
    if count() == 0 {
        assert!(std::env::var("EMBEDSERVE_TEST_GPU").as_deref() != Ok("required"), "{test}: no GPU");
        eprintln!("{test}: left out, no GPU");
        return None;
    }
    let turn = TURN.lock().await;
    Some((Device::open(0).unwrap(), turn))
}

fn loaded(folder: &Path, device: &Device, dtype: Precision) -> Result<Loaded, String> {
    let shared = shared_with(2, Isa::detect());
    let shared = Shared { seats: Seat::all(&[Target::Cuda(device.clone())], &shared.threads), ..shared };
    let spec = ModelSpec { dtype: Some(dtype), ..spec(folder) };
    try_load_as(&spec, folder, &shared).map_err(|error| error.to_string())
}

/// The numbers of a batch of rows of these lengths, laid out as the encoder does.
struct Numbers {
    buffer: Buffer,
    offsets: usize,
    skips: usize,
    tiles: usize,
    n_tiles: usize,
}

impl Numbers {
    fn places(&self) -> Places<'_> {
        let Self { buffer, offsets, skips, tiles, n_tiles } = self;
        let (offsets, skips, tiles, n_tiles) = (*offsets, *skips, *tiles, *n_tiles);
        Places { buffer, ids: 0, positions: 0, places: 0, offsets, skips, tiles, n_tiles }
    }
}

fn numbers(device: &Device, lengths: &[usize], skips: &[usize], format: Format) -> Numbers {
    let number = |value: usize| u32::try_from(value).unwrap();
    let mut offsets = vec![0];
    for length in lengths {
        offsets.push(offsets.last().unwrap() + length);
    }
    let mut numbers: Vec<u32> = lengths.iter().flat_map(|length| (0..).take(*length)).collect();
    let at_offsets = numbers.len();
    numbers.extend(offsets.iter().copied().map(number));
    let at_skips = numbers.len();
    numbers.extend(skips.iter().copied().map(number));
    let tiles = numbers.len();
    for (length, start) in lengths.iter().zip(&offsets) {
        let queries = (0..*length).step_by(format.tile_queries());
        numbers.extend(queries.flat_map(|query| [*start, *length, query].map(number)));
    }
    let n_tiles = (numbers.len() - tiles) / 3;
    let buffer = device.upload(&numbers).unwrap();
    Numbers { buffer, offsets: at_offsets, skips: at_skips, tiles, n_tiles }
}

/// The bits of 16-bit floats, which are read as pairs.
fn narrow(device: &Device, buffer: &Buffer, len: usize) -> impl Iterator<Item = u16> {
    let words = device.read(buffer, len.div_ceil(2)).unwrap();
    let halves = |word: f32| [word.to_bits() & 0xffff, word.to_bits() >> 16];
    words.into_iter().flat_map(halves).map(|half| u16::try_from(half).unwrap()).take(len)
}

/// What the device holds, widened.
fn widened(device: &Device, buffer: &Buffer, len: usize, format: Format) -> Vec<f32> {
    match format {
        Format::F32 => device.read(buffer, len).unwrap(),
        Format::F16 => narrow(device, buffer, len).map(|bits| f16::from_bits(bits).to_f32()).collect(),
        Format::Bf16 => narrow(device, buffer, len).map(|bits| bf16::from_bits(bits).to_f32()).collect(),
    }
}

/// To the format and back: what the device really reads.
fn rounded(values: &[f32], format: Format) -> Vec<f32> {
    match format {
        Format::F32 => values.to_vec(),
        Format::F16 => values.iter().map(|value| f16::from_f32(*value).to_f32()).collect(),
        Format::Bf16 => values.iter().map(|value| bf16::from_f32(*value).to_f32()).collect(),
    }
}

/// The largest difference, in units of the largest expected value or of 1.
fn worst(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1.0_f64, |largest, x| largest.max(x.abs()));
    found.iter().zip(expected).fold(0.0_f64, |worst, (found, expected)| {
        let error = (f64::from(*found) - expected).abs() / largest;
        // A NaN must not be passed over, as `f64::max` would.
        if error <= worst { worst } else { error }
    })
}

const FORMATS: [(Format, f64); 3] = [(Format::F32, 2e-6), (Format::F16, 1.5e-3), (Format::Bf16, 1.2e-2)];

// N-05 on the device: attention by its definition, in every head size, with everything that it may have.
#[tokio::test]
async fn attention_matches_its_definition() {
    let Some((device, _turn)) = gpu("cuda::attention_matches_its_definition").await else { return };
    let lengths = [1, 5, 15, 16, 17, 63, 64, 65, 130];
    let mut random = Random::new(7);
    let (n_heads, tokens) = (2, lengths.iter().sum::<usize>());
    for (format, bound) in FORMATS {
        let sizes: &[usize] = if format == Format::F32 { &[4, 16, 32, 33, 64, 128] } else { &HEAD_SIZES };
        for &head_size in sizes {
            let inner = n_heads * head_size;
            let rotates = head_size % 2 == 0;
            for (has_bias, has_rotary, window) in
                [(false, false, None), (true, false, None), (false, rotates, Some(9)), (true, rotates, Some(70))]
            {
                let values = rounded(&random.floats(tokens * 3 * inner, 1.0), format);
                let numbers = numbers(&device, &lengths, &[0; 9], format);
                let value = |head: usize, distance: isize| (head as f32 + 0.5) * (distance as f32 * 0.37).sin();
                let bias = DistanceBias::new(n_heads, 40, value);
                let rotary = Rotary::new(10_000.0, 1.0, head_size, 200);
                let bias = has_bias.then(|| (device.upload(bias.parts().0).unwrap(), bias.parts().1));
                let rotary = has_rotary.then(|| {
                    let (cosines, sines) = rotary.parts();
                    (device.upload(cosines).unwrap(), device.upload(sines).unwrap())
                });
                let qkv = format.upload(&device, &values).unwrap();
                let out = device.allocate(tokens * inner * format.bytes()).unwrap();
                let scale = 1.0 / (head_size as f32).sqrt();
                let attention = DeviceAttention {
                    n_heads,
                    head_size,
                    scale,
                    bias: bias.as_ref().map(|(values, reach)| (values, *reach)),
                    rotary: rotary.as_ref().map(|(cosines, sines)| (cosines, sines)),
                    window,
                };
                let pass = Pass { device: &device, format, tokens, places: numbers.places() };
                pass.attend(&qkv, attention, &out).unwrap();
                let found = widened(&device, &out, tokens * inner, format);
                let far = |head: usize, distance: isize| {
                    if has_bias { f64::from(value(head, distance.clamp(-40, 40))) } else { 0.0 }
                };
                let options = AttentionOptions {
                    n_heads,
                    scale: f64::from(scale),
                    bias: &far,
                    rotary: has_rotary.then_some(10_000.0),
                    window: window.unwrap_or(usize::MAX),
                };
                let mut start = 0;
                let mut expected = Vec::new();
                for length in lengths {
                    expected.extend(reference::attention(
                        &values[start * 3 * inner..][..length * 3 * inner],
                        inner,
                        options,
                    ));
                    start += length;
                }
                let error = worst(&found, &expected);
                assert!(error < bound, "{format:?}, heads of {head_size}, {attention:?}: {error:e}");
            }
        }
    }
}

#[tokio::test]
async fn activations_and_gates_match_their_definitions() {
    let Some((device, _turn)) = gpu("cuda::activations_and_gates_match_their_definitions").await else { return };
    let (tokens, width) = (37, 24);
    let values = Random::new(3).floats(tokens * 2 * width, 6.0);
    let numbers = numbers(&device, &[tokens], &[0], Format::F32);
    for (format, _) in FORMATS {
        let values = rounded(&values, format);
        let bound = match format {
            Format::F32 => 5e-7,
            Format::F16 => 5e-4,
            Format::Bf16 => 4e-3,
        };
        let pass = Pass { device: &device, format, tokens, places: numbers.places() };
        for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu, Activation::Tanh]
        {
            let act = |x: f32| reference::activate(activation, f64::from(x));
            let plain = format.upload(&device, &values).unwrap();
            pass.activate(&plain, 2 * width, activation).unwrap();
            let expected: Vec<f64> = values.iter().map(|x| act(*x)).collect();
            let error = worst(&widened(&device, &plain, values.len(), format), &expected);
            assert!(error < bound, "{format:?} {activation:?}: {error:e}");

            let (both, out) =
                (format.upload(&device, &values).unwrap(), device.allocate(tokens * width * format.bytes()).unwrap());
            pass.gate(&both, width, activation, &out).unwrap();
            let rows = values.chunks_exact(2 * width);
            let expected: Vec<f64> =
                rows.flat_map(|row| (0..width).map(|i| act(row[i]) * f64::from(row[width + i]))).collect();
            let error = worst(&widened(&device, &out, tokens * width, format), &expected);
            assert!(error < bound, "{format:?} gated {activation:?}: {error:e}");
        }
    }
}

#[tokio::test]
async fn products_match_their_definition() {
    let Some((device, _turn)) = gpu("cuda::products_match_their_definition").await else { return };
    let mut random = Random::new(5);
    for (format, bound) in FORMATS {
        for (tokens, n, k) in [(1, 32, 32), (3, 64, 40), (100, 96, 384)] {
            let [x, weight, bias] = [tokens * k, n * k, n].map(|len| rounded(&random.floats(len, 1.0), format));
            for bias in [None, Some(&bias)] {
                let numbers = numbers(&device, &[tokens], &[0], format);
                let pass = Pass { device: &device, format, tokens, places: numbers.places() };
                let on_device = |values: &[f32]| format.upload(&device, values).unwrap();
                let out = device.allocate(tokens * n * format.bytes()).unwrap();
                let shape = MatrixShape { n, k };
                let stored = Weight { shape, values: on_device(&weight), bias: bias.map(|bias| on_device(bias)) };
                pass.multiply(&on_device(&x), &stored, &out).unwrap();
                let expected = reference::linear(&x, &weight, bias.map(Vec::as_slice), k, Activation::None);
                let error = worst(&widened(&device, &out, tokens * n, format), &expected);
                assert!(error < bound, "{format:?} {tokens}x{n}x{k}: {error:e}");
            }
        }
    }
}

#[tokio::test]
async fn pooling_matches_its_definition() {
    let Some((device, _turn)) = gpu("cuda::pooling_matches_its_definition").await else { return };
    let (lengths, skips, width) = ([3, 1, 0, 40, 2], [0, 0, 0, 7, 5], 200);
    let tokens: usize = lengths.iter().sum();
    let values = Random::new(9).floats(tokens * width, 2.0);
    let numbers = numbers(&device, &lengths, &skips, Format::F32);
    let hidden = device.upload(&values).unwrap();
    let pass = Pass { device: &device, format: Format::F32, tokens, places: numbers.places() };
    for way in [Reduce::First, Reduce::Last, Reduce::Max, Reduce::Mean, Reduce::MeanSqrtLen, Reduce::WeightedMean] {
        // Beside a column that is not its own.
        let out = device.upload(&vec![7.0_f32; lengths.len() * (width + 1)]).unwrap();
        let columns = Columns { buffer: &out, first: 1, width, stride: width + 1 };
        pass.pool(&hidden, lengths.len(), way, columns).unwrap();
        let found = device.read(&out, lengths.len() * (width + 1)).unwrap();
        let offsets: Vec<usize> = std::iter::once(0)
            .chain(lengths.iter().scan(0, |end, length| {
                *end += length;
                Some(*end)
            }))
            .collect();
        let expected = embedserve::kernel::cpu::reduce::reduce(way, &values, width, &offsets, &skips);
        for (found, expected) in found.chunks_exact(width + 1).zip(expected.chunks_exact(width)) {
            assert_eq!(found[0].to_bits(), 7.0_f32.to_bits());
            assert_eq!(&found[1..], expected, "{way:?}");
        }
    }
}

// N-07 on the device: every architecture, each text alone, within 1e-4.
#[tokio::test]
async fn every_golden_model_equals_sentence_transformers() {
    let Some((device, _turn)) = gpu("cuda::every_golden_model_equals_sentence_transformers").await else { return };
    let mut faults = Vec::new();
    let mut largest = 0.0_f32;
    let mut names: Vec<String> = std::fs::read_dir(folder().join("models"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    for name in &names {
        let golden = Golden::read(name);
        // Thousands of tokens take minutes on the emulated one.
        if golden.max_tokens >= 4096 && device.label().contains("Emulated") {
            continue;
        }
        let mut served = match loaded(&folder().join("models").join(name), &device, Precision::F32) {
            Ok(loaded) => loaded.served,
            Err(fault) => {
                faults.push(format!("{name}: {fault}"));
                continue;
            }
        };
        served.limits.matryoshka |= golden.has_shorter_vectors();
        served.limits.max_prompt_bytes = 4096;
        let found = golden.check(&served, 0).await;
        largest = largest.max(found.max_judged);
        let others = found.faults.iter().filter(|fault| !fault.contains("differs by"));
        faults.extend(others.map(|fault| format!("{name}: {fault}")));
        if found.max_judged > 1e-4 {
            faults.push(format!("{name} differs by {:e}", found.max_judged));
        }
    }
    eprintln!("{} models on {device:?}, largest difference {largest:e}", names.len());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// Real weights in every format, and how far company moves a row. N-06
#[tokio::test]
async fn real_minilm_is_the_same_on_the_gpu() {
    let Some((device, _turn)) = gpu("cuda::real_minilm_is_the_same_on_the_gpu").await else { return };
    let Some(folder) = crate::real::model() else { return };
    let texts = ["hello world", "The quick brown fox jumps over 13 lazy dogs.", "не спеши", "fn main() { loop {} }"];
    let exact = crate::support::served::try_load(folder).unwrap().served;
    let expected = embed(&exact, &texts).await.unwrap();
    for (dtype, least, company) in
        [(Precision::F32, 0.999_999_9, 1e-5), (Precision::F16, 0.999_99, 2e-3), (Precision::Bf16, 0.9995, 1e-2)]
    {
        let served = loaded(folder, &device, dtype).unwrap().served;
        let together = embed(&served, &texts).await.unwrap();
        for (index, text) in texts.iter().enumerate() {
            let alone = embed(&served, &[*text]).await.unwrap();
            let [alone, together, expected] =
                [&alone.rows[0], &together.rows[index], &expected.rows[index]].map(|row| row.vector.as_slice());
            let cosine: f64 = alone.iter().zip(expected).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            eprintln!("{dtype} {text}: cosine {cosine:.8}");
            assert!(cosine >= least, "{dtype} {text}: {cosine}");
            let moved = alone.iter().zip(together).fold(0.0_f32, |moved, (a, b)| moved.max((a - b).abs()));
            assert!(moved <= company, "{dtype} {text}: {moved:e}");
        }
    }
}

// M-06
#[tokio::test]
async fn memory_is_flat_whatever_the_shapes_of_batches() {
    const TEST: &str = "cuda::memory_is_flat_whatever_the_shapes_of_batches";
    const MOST_TOKENS: usize = 200;
    // The model has no more positions.
    const LONGEST: usize = 64;
    let Some((device, _turn)) = gpu(TEST).await else { return };
    let n_batches = if device.label().contains("Emulated") { 60 } else { 100_000 };
    let folder = folder().join("models/bert-mean-normalize");
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let (config, threads) = (serde_json::from_str(&text).unwrap(), Threads::new(1).unwrap());
    let target = Target::Cuda(device.clone());
    let files = [folder.join("model.safetensors")];
    let compute = Compute::exact(Isa::detect());
    let mut encoder = arch::load(&config, &files, &target, compute, threads.pool()).unwrap().encoder;
    let mut random = Random::new(11);
    let mut batch = |n_rows: usize| -> Vec<Vec<u32>> {
        (0..n_rows).map(|_| vec![5; 1 + random.below(LONGEST.min(MOST_TOKENS / n_rows))]).collect()
    };
    let mut run = |rows: &[Vec<u32>]| {
        let (packed, skips) = (PackedBatch::new(rows.iter().map(Vec::as_slice)), vec![0; rows.len()]);
        assert_eq!(encoder.pooled(&packed, &[Reduce::Mean], &skips).unwrap().len() % rows.len(), 0);
    };
    // As many rows and tokens as there will ever be, and a plan for each power of two below.
    run(&vec![vec![5; 20]; 10]);
    (1..10).for_each(|n_rows| run(&batch(n_rows)));
    for tokens in [1, 16, 17, 33, LONGEST] {
        run(&[vec![5; tokens]]);
    }
    let mut run_some = |n_batches: usize| {
        for _ in 0..n_batches {
            let n_rows = 1 + batch(1)[0].len() % 10;
            run(&batch(n_rows));
        }
    };
    // Recordings take some of a real device's memory: for each shape once.
    run_some(n_batches / 100);
    let (free, _) = device.memory().unwrap();
    run_some(n_batches);
    assert_eq!(device.memory().unwrap().0, free, "device memory after {n_batches} batches");
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_the_way_out() {
    let Some((device, _turn)) = gpu("cuda::what_cannot_be_is_refused_with_the_way_out").await else { return };
    let error = Device::open(4095).unwrap_err();
    assert!(matches!(error, CudaError::NoSuchDevice { ordinal: 4095, .. }), "{error}");
    let folder = folder().join("models/bert-mean-normalize");
    let bf16 = loaded(&folder, &device, Precision::Bf16).unwrap_err();
    assert!(bf16.contains("head size = 8") && bf16.contains("--device cpu"), "{bf16}");
    let int8 = loaded(&folder, &device, Precision::Int8).unwrap_err();
    assert!(int8.contains("int8") && int8.contains("bf16"), "{int8}");
    let too_much = device.allocate(1 << 50).unwrap_err();
    assert_eq!(too_much, CudaError::OutOfMemory);
}
