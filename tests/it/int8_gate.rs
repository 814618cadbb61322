//! The gate before int8 models: who passes, who is refused and told what, and when it is measured again.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{Device, Tensor};
use embedserve::arch::packed::PackedBatch;
use embedserve::arch::{Encoder, EncoderError};
use embedserve::catalog::ModelSpec;
use embedserve::kernel::{Compute, Isa, Precision};
use embedserve::load::gate::{Case, Figures, GateError, TEXTS, admit};
use embedserve::load::{LoadError, Shared};
use embedserve::pool::{Head, PoolingMode, Step};
use embedserve::runner::Computation;
use embedserve::source::notes::Notes;

use crate::support::device::native;
use crate::support::evil::{self, Evil, HIDDEN};
use crate::support::served::{shared_with, spec, try_load_as};
use crate::support::tiny_model::TinyModel;

/// The vectors of [`Evil`], each value off by up to `noise` in a way that depends on the token.
struct Noisy(f32);

impl Encoder for Noisy {
    fn forward(&mut self, batch: &PackedBatch) -> Result<Tensor, EncoderError> {
        let value = |id: u32, column: usize| {
            let off = (id as f32).mul_add(12.9898, column as f32 * 78.233).sin();
            (id as f32 + column as f32).sin() + self.0 * off
        };
        let states = batch.ids().iter().flat_map(|id| (0..HIDDEN).map(move |column| value(*id, column)));
        Ok(Tensor::from_vec::<_, f32>(states.collect(), (batch.n_tokens(), HIDDEN), &Device::Cpu)?)
    }

    fn hidden_size(&self) -> usize {
        HIDDEN
    }
}

fn computation(encoder: Box<dyn Encoder>) -> Computation {
    let head = Head { pooling: vec![PoolingMode::Mean], steps: vec![Step::Normalize] };
    Computation { encoder, head, turns: Arc::default() }
}

fn case(notes: &Notes) -> Case<'_> {
    Case {
        model: "m",
        compute: Compute { isa: Isa::Portable, precision: Precision::Int8 },
        rows: (1..40).map(|n| (n..n + 1 + n % 3).collect()).collect(),
        dimensions: native(),
        weights: "a digest".to_owned(),
        notes,
    }
}

/// Admits an encoder that is off by `noise`; also says whether it was measured.
fn admitted(case: &Case<'_>, noise: f32) -> (Result<Figures, GateError>, bool) {
    let measured = Cell::new(false);
    let build = |compute: Compute| {
        let is_exact = compute.precision == Precision::F32;
        measured.set(measured.get() || is_exact);
        Ok::<_, GateError>(computation(Box::new(Noisy(if is_exact { 0.0 } else { noise }))))
    };
    let found = admit(case, build).map(|(_, figures)| figures);
    (found, measured.get())
}

/// The notes in a folder: names and texts.
fn notes_in(folder: &Path) -> Vec<(String, String)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut notes: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect();
    notes.sort();
    notes
}

#[test]
fn the_texts_are_many_and_unlike_each_other() {
    assert!(TEXTS.len() >= 32);
    assert_eq!(TEXTS.iter().collect::<BTreeSet<_>>().len(), TEXTS.len());
    let with = |is: fn(char) -> bool| TEXTS.iter().filter(|text| text.contains(is)).count();
    assert!(with(|c| !c.is_ascii()) >= 10 && with(|c| c == '{' || c == ';') >= 5);
    let of_length = |from: usize, to: usize| TEXTS.iter().filter(|text| (from..to).contains(&text.len())).count();
    assert!(of_length(0, 40) >= 8 && of_length(200, 1000) >= 5 && of_length(1200, 4000) >= 2);
}

#[test]
fn noise_is_refused_with_the_figure_and_the_alternatives() {
    for (noise, passes) in [(0.0, true), (0.001, true), (0.01, true), (0.2, false), (1.0, false)] {
        let folder = tempfile::tempdir().unwrap();
        let notes = Notes::at(folder.path().join("notes"));
        let (found, measured) = admitted(&case(&notes), noise);
        assert!(measured);
        match found {
            Ok(figures) => {
                assert!(passes && figures.texts == 39 && figures.min_cosine >= 0.999, "{noise}: {figures:?}");
                assert!(figures.mean_cosine >= figures.min_cosine, "{figures:?}");
            }
            Err(error) => {
                let text = error.to_string();
                let GateError::Refused { figures, .. } = error else { panic!("{text}") };
                assert!(!passes && figures.min_cosine < 0.999, "{noise}: {figures:?}");
                let figure = format!("{:.6}", figures.min_cosine);
                for expected in ["int8", &figure, "0.999 is needed", "over 39 texts", "dtype = bf16 or f32"] {
                    assert!(text.contains(expected), "{expected} in {text}");
                }
            }
        }
    }
}

#[test]
fn a_verdict_is_measured_once_for_the_same_weights_rows_and_kernels() {
    let folder = tempfile::tempdir().unwrap();
    let notes = Notes::at(folder.path().to_owned());
    for noise in [0.01, 1.0] {
        let same = || Case { weights: format!("noise {noise}"), ..case(&notes) };
        let (first, measured) = admitted(&same(), noise);
        assert!(measured);
        // The note decides: this encoder is not even asked.
        let (again, measured) = admitted(&same(), 0.5);
        assert!(!measured);
        match (first, again) {
            (Ok(first), Ok(again)) => assert_eq!(first, again),
            (Err(first), Err(again)) => assert_eq!(first.to_string(), again.to_string()),
            other => panic!("{other:?}"),
        }
        let others = [
            Case { weights: format!("noise {noise} "), ..same() },
            Case { rows: vec![vec![1, 2], vec![3]], ..same() },
            Case { rows: vec![vec![1], vec![2, 3]], ..same() },
        ];
        for other in others {
            assert!(admitted(&other, 0.0).1, "{other:?}");
        }
    }
    assert_eq!(notes_in(folder.path()).len(), 6 + 2);
}

#[test]
fn a_note_that_is_no_verdict_is_measured_again_and_mended() {
    let folder = tempfile::tempdir().unwrap();
    let notes = Notes::at(folder.path().to_owned());
    let refused = admitted(&case(&notes), 1.0).0.unwrap_err().to_string();
    let (name, text) = notes_in(folder.path()).remove(0);
    let GateError::Refused { figures, .. } = admitted(&case(&notes), 0.0).0.unwrap_err() else { panic!() };
    let min = format!("\"min_cosine\": {}", figures.min_cosine);
    assert!(text.contains(&min), "{min} in {text}");
    let spoiled = [
        String::new(),
        "{".to_owned(),
        "[]".to_owned(),
        text[..text.len() / 2].to_owned(),
        text.replace(&min, "\"min_cosine\": 0.9999"),
        text.replace(&min, "\"min_cosine\": null"),
        text.replace(&min, "\"min_cosine\": 2.5"),
        text.replace("a digest", "another digest"),
        text.replace("\"texts\": 39", "\"texts\": 38"),
        text.replace("portable", "avx512"),
        text.replace("\"kernels\": ", "\"kernels\": 1"),
    ];
    for spoiled in spoiled {
        assert_ne!(spoiled, text);
        std::fs::write(folder.path().join(&name), &spoiled).unwrap();
        let (found, measured) = admitted(&case(&notes), 1.0);
        assert!(measured, "{spoiled}");
        assert_eq!(found.unwrap_err().to_string(), refused, "{spoiled}");
        assert_eq!(notes_in(folder.path()), [(name.clone(), text.clone())], "{spoiled}");
    }
}

#[test]
fn a_cache_that_cannot_be_written_costs_time_and_nothing_else() {
    let notes = Notes::at("/dev/null/notes".into());
    for _ in 0..2 {
        let (found, measured) = admitted(&case(&notes), 0.0);
        assert!(found.is_ok() && measured);
    }
}

#[test]
fn an_encoder_that_fails_is_named_and_leaves_no_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let notes = Notes::at(folder.path().to_owned());
    let evil = || Evil::default().encoder();
    for (id, reason) in [(evil::ERROR, "evil row"), (evil::PANIC, "evil row"), (evil::NAN, "non-finite")] {
        let case = Case { rows: vec![vec![20], vec![id]], ..case(&notes) };
        let clean = || -> Box<dyn Encoder> { Box::new(Noisy(0.0)) };
        for (bad, named) in [(Precision::Int8, "the int8 encoder"), (Precision::F32, "the f32 encoder")] {
            let build = |compute: Compute| {
                Ok::<_, GateError>(computation(if compute.precision == bad { evil() } else { clean() }))
            };
            let error = admit(&case, build).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains(reason), "{error}");
        }
    }
    assert_eq!(notes_in(folder.path()), []);
    // What the building fails with comes out as it is.
    let error = admit(&case(&notes), |_| Err(LoadError::Probe("no weights".to_owned())));
    assert!(error.unwrap_err().to_string().contains("no weights"));
}

/// An encoder that knows how many of its kind there are.
struct Counted(Arc<AtomicUsize>, Box<dyn Encoder>);

impl Counted {
    fn boxed(alive: &Arc<AtomicUsize>, encoder: Box<dyn Encoder>) -> Box<dyn Encoder> {
        alive.fetch_add(1, Ordering::SeqCst);
        Box::new(Self(Arc::clone(alive), encoder))
    }
}

impl Encoder for Counted {
    fn forward(&mut self, batch: &PackedBatch) -> Result<Tensor, EncoderError> {
        self.1.forward(batch)
    }

    fn hidden_size(&self) -> usize {
        self.1.hidden_size()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn the_int8_encoder_is_the_one_that_serves_and_never_lies_beside_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let notes = Notes::at(folder.path().to_owned());
    let rows = vec![vec![20, 21], vec![22]];
    let case = Case { rows: rows.clone(), ..case(&notes) };
    // Each text alone, once through each; the second time nothing but the note is asked.
    let alone: Vec<Vec<Vec<u32>>> = rows.into_iter().map(|row| vec![row]).collect();
    for asked in [alone, Vec::new()] {
        let (int8, exact) = (Evil::default(), Evil::default());
        let (alive, built) = (Arc::new(AtomicUsize::new(0)), Cell::new(0));
        let build = |compute: Compute| {
            assert_eq!(alive.load(Ordering::SeqCst), 0, "two copies of the weights at once");
            built.set(built.get() + 1);
            let encoder = if compute.precision == Precision::F32 { &exact } else { &int8 };
            Ok::<_, GateError>(computation(Counted::boxed(&alive, encoder.encoder())))
        };
        let (mut served, figures) = admit(&case, build).unwrap();
        assert_eq!(built.get(), if asked.is_empty() { 1 } else { 2 });
        assert_eq!(figures, Figures { texts: 2, min_cosine: 1.0, mean_cosine: 1.0 });
        assert_eq!((int8.batches(), exact.batches()), (asked.clone(), asked.clone()));
        served.run(&[&[23]], &[embedserve::request::RowShape::whole(native())]).unwrap();
        assert_eq!((int8.batches().len(), exact.batches().len()), (asked.len() + 1, asked.len()));
    }
}

/// From a folder, as the server loads it. Whether weights this small and random are good enough for int8 is not the
/// question: the verdict is about them, is kept, and holds.
#[test]
fn a_model_is_judged_when_it_is_loaded() {
    let cache = tempfile::tempdir().unwrap();
    let shared = Shared { notes: Notes::at(cache.path().to_owned()), ..shared_with(1, Isa::Portable) };
    let outcome = |folder: &Path, dtype: Precision| {
        let spec = ModelSpec { dtype: Some(dtype), ..spec(folder) };
        match try_load_as(&spec, folder, &shared) {
            Ok(loaded) => {
                loaded.served.queue.close();
                loaded.threads.into_iter().for_each(|thread| thread.join().unwrap());
                String::new()
            }
            Err(error @ LoadError::Gate(GateError::Refused { .. })) => error.to_string(),
            Err(error) => panic!("{error}"),
        }
    };
    let folder = TinyModel::default().write();
    for dtype in [Precision::F32, Precision::Bf16] {
        assert_eq!(outcome(folder.path(), dtype), "");
    }
    assert_eq!(notes_in(cache.path()), [], "the other formats need no gate");
    let first = outcome(folder.path(), Precision::Int8);
    let noted = notes_in(cache.path());
    assert!(noted.len() == 1 && noted[0].1.contains(&format!("\"texts\": {}", TEXTS.len())), "{noted:?}");
    assert_eq!((outcome(folder.path(), Precision::Int8), notes_in(cache.path())), (first, noted));
    // Other weights, and the same ones behind another pooling, are other models.
    TinyModel { seed: 8, ..TinyModel::default() }.write_to(folder.path());
    outcome(folder.path(), Precision::Int8);
    TinyModel { seed: 8, pooling: "cls", ..TinyModel::default() }.write_to(folder.path());
    outcome(folder.path(), Precision::Int8);
    assert_eq!(notes_in(cache.path()).len(), 3);
}

// M-05: f32 weights for which there is no room are not loaded to find that out; a verdict that is there needs none.
#[test]
fn a_model_that_cannot_be_compared_is_refused_with_the_numbers() {
    let cache = tempfile::tempdir().unwrap();
    let shared = |memory_limit| Shared {
        notes: Notes::at(cache.path().to_owned()),
        memory_limit,
        ..shared_with(1, Isa::Portable)
    };
    let folder = TinyModel::default().write();
    let spec = ModelSpec { dtype: Some(Precision::Int8), ..spec(folder.path()) };
    let load = |limit| {
        try_load_as(&spec, folder.path(), &shared(limit)).map(|loaded| {
            loaded.served.queue.close();
            loaded.threads.into_iter().for_each(|thread| thread.join().unwrap());
        })
    };
    let refused = load(Some(1)).unwrap_err();
    assert!(matches!(refused, LoadError::NoRoomToCompare { limit: 0, .. }), "{refused}");
    assert!(refused.to_string().contains("models verify"), "{refused}");
    assert_eq!(notes_in(cache.path()), []);
    let judged = load(None).map_err(|error| error.to_string());
    assert_eq!(notes_in(cache.path()).len(), 1);
    assert_eq!(load(Some(1)).map_err(|error| error.to_string()), judged);
}
