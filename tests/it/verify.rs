//! `models verify`: what it compares with, what it says, and that it notices.

use std::path::{Path, PathBuf};

use embedserve::catalog;
use embedserve::catalog::reference::{Expected, Reference, ReferencePrompt};
use embedserve::engine::Served;
use embedserve::kernel::Precision;
use embedserve::load::verify::golden::read;
use embedserve::load::verify::published::against_published;
use embedserve::load::verify::second::{Second, against_candle};
use embedserve::load::verify::{Comparison, VerifyError};
use serde_json::{Value, json};

use crate::real;
use crate::support::golden::folder;
use crate::support::served::{embed, shared, spec, try_load};
use crate::support::tiny_model::TinyModel;

fn reference(text: &str, expected: Expected) -> Reference {
    Reference {
        text: text.to_owned(),
        prompt: None,
        dimensions: None,
        expected,
        tokens: None,
        normalized: Some(false),
        tolerance: 1e-5,
        tolerance_reason: None,
        published: "a document".to_owned(),
    }
}

async fn published(served: &Served, references: &[Reference]) -> Vec<Comparison> {
    against_published(served, references, Precision::F32).await.unwrap()
}

async fn one(served: &Served, reference: Reference) -> Comparison {
    published(served, &[reference]).await.remove(0)
}

async fn second(served: &Served, folder: &Path) -> Second {
    against_candle(served, &spec(folder), folder, shared().isa).await.unwrap()
}

/// The folders of golden models, and their `model_type`.
fn golden_models() -> Vec<(String, PathBuf, String)> {
    let entries = std::fs::read_dir(folder().join("models")).unwrap().map(|entry| entry.unwrap().path());
    let mut models: Vec<_> = entries
        .map(|path| {
            let config: Value = serde_json::from_slice(&std::fs::read(path.join("config.json")).unwrap()).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, path, config["model_type"].as_str().unwrap().to_owned())
        })
        .collect();
    models.sort();
    models
}

#[tokio::test]
async fn candle_agrees_on_every_family_that_it_has() {
    let mut agreed = std::collections::BTreeSet::new();
    for (name, folder, family) in golden_models() {
        let served = try_load(&folder).unwrap_or_else(|error| panic!("{name}: {error}")).served;
        match second(&served, &folder).await {
            Second::Compared(comparison) => {
                assert!(comparison.is_good() && comparison.texts == 12, "{name}: {comparison:?}");
                agreed.insert(if name.starts_with("jina") { "jina".to_owned() } else { family });
            }
            // Global layers spaced otherwise, and another gate, than candle knows.
            Second::None(_) if ["modernbert-current-config", "jina-reglu"].contains(&name.as_str()) => {}
            Second::None(reason) => {
                assert!(reason.contains("candle-transformers"), "{reason}");
                assert!(
                    matches!(
                        family.as_str(),
                        "mpnet" | "distilbert" | "albert" | "electra" | "ernie" | "nomic_bert" | "gte" | "new"
                    ),
                    "{name}: {reason}"
                );
            }
        }
    }
    for family in ["bert", "camembert", "jina", "modernbert", "nomic_bert", "roberta", "t5", "xlm-roberta"] {
        assert!(agreed.contains(family), "{family} of {agreed:?}");
    }
}

#[tokio::test]
async fn files_of_references_are_read_in_the_form_of_the_goldens() {
    // One model with prompts and a T5, one with texts written as repetitions, one without anything special.
    for name in ["t5-instructor", "xlm-roberta-long-cls", "bert-mean-raw"] {
        let served = try_load(&folder().join("models").join(name)).unwrap().served;
        let references = read(&folder().join(format!("{name}.json"))).unwrap();
        let found = published(&served, &references).await;
        assert!(found.len() == 1 && found[0].is_good() && found[0].texts == references.len(), "{name}: {found:?}");
        assert!(found[0].min_cosine.unwrap() > 0.99999, "{found:?}");
    }
}

#[test]
fn a_file_of_references_that_says_too_little_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.json");
    let item = |item: Value| json!({"items": [item]}).to_string();
    for (text, wanted) in [
        ("{".to_owned(), "EOF"),
        (json!({"items": []}).to_string(), "no items"),
        (item(json!({"text": "a"})), "missing field `vector`"),
        (item(json!({"text": "a", "vector": []})), "items[0]: vector has no values"),
        (item(json!({"text": "a", "vector": "AADAfw=="})), "not finite"),
        (item(json!({"text": "a", "vector": "AAA="})), "cut inside"),
        (item(json!({"text": "a", "vector": "!"})), "not base64"),
        (item(json!({"text": {"repeat": "abcd", "times": 100_000_000}, "vector": [1.0]})), "too long"),
        (item(json!({"text": "a", "vector": [1.0], "prompt": "", "prompt_name": "q"})), "exclude each other"),
        (json!({"tolerance": 0.5, "items": [{"text": "a", "vector": [1.0]}]}).to_string(), "tolerance = 0.5"),
    ] {
        std::fs::write(&path, &text).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains(wanted), "{text}: {error}");
    }
    assert!(read(&folder.path().join("none.json")).is_err());
}

#[tokio::test]
async fn every_kind_of_reference_fits_its_own_model_and_no_other() {
    let model = TinyModel { normalize: false, ..TinyModel::default() };
    let served = try_load(model.write().path()).unwrap().served;
    let another = try_load(TinyModel { seed: 8, ..model }.write().path()).unwrap().served;
    let rows = embed(&served, &["hello world", "x"]).await.unwrap().rows;
    let (a, b) = (rows[0].vector.as_slice(), rows[1].vector.as_slice());
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let cosine = product(a, b) / (product(a, a) * product(b, b)).sqrt();
    let other = "x".to_owned();
    for expected in [
        Expected::Vector(a.to_vec()),
        Expected::Leading(a[..5].to_vec()),
        Expected::Dot { other: other.clone(), value: product(a, b) },
        Expected::Cosine { other, value: cosine },
    ] {
        let reference = reference("hello world", expected);
        let found = one(&served, reference.clone()).await;
        assert!(found.is_good() && found.texts == 1, "{found:?}");
        let found = one(&another, reference.clone()).await;
        assert!(!found.is_good() && found.differences[0].contains("hello world"), "{found:?}");
        let counted = Reference { tokens: Some(rows[0].tokens + 1), ..reference };
        let found = one(&served, counted).await;
        assert!(!found.is_good() && found.differences[0].contains("4 tokens, published 5"), "{found:?}");
    }
    let short = one(&served, reference("hello world", Expected::Vector(a[..5].to_vec()))).await;
    assert!(short.differences[0].contains("32 values, published 5"), "{short:?}");
    // Documents are judged apart, and each bar by itself.
    let wide = Reference { tolerance: 1e-3, ..reference("x", Expected::Vector(b.to_vec())) };
    let elsewhere = Reference { published: "elsewhere".to_owned(), ..wide.clone() };
    let plain = reference("x", Expected::Vector(b.to_vec()));
    assert_eq!(published(&served, &[plain, wide.clone(), elsewhere, wide]).await.len(), 3);
}

#[tokio::test]
async fn each_number_format_is_held_to_its_own_bar() {
    let served = try_load(TinyModel::default().write().path()).unwrap().served;
    let texts = ["hello world", "x", "the quick brown fox", "tiny 1234"];
    let rows = embed(&served, &texts).await.unwrap().rows;
    // What a vector becomes when every second value is moved by `noise` and its length is mended: its cosine to the
    // right one is about 1 - noise²/2.
    let off = |noise: f32, row: usize| {
        let right = rows[row].vector.as_slice();
        let moved: Vec<f32> = right.iter().enumerate().map(|(i, x)| x * (1.0 + noise * (i % 2) as f32 * 2.0)).collect();
        let length = moved.iter().map(|x| x * x).sum::<f32>().sqrt();
        reference(texts[row], Expected::Vector(moved.into_iter().map(|x| x / length).collect()))
    };
    // Noise of each text, and whether it is good enough for f32, bf16 and int8.
    for (noise, good) in [
        ([0.0; 4], [true, true, true]),
        ([1e-3; 4], [false, true, true]),
        ([1e-3, 1e-3, 1e-3, 0.04], [false, false, true]),
        ([0.05; 4], [false, false, false]),
        ([1e-3, 1e-3, 1e-3, 0.2], [false, false, false]),
    ] {
        let references: Vec<Reference> = noise.iter().enumerate().map(|(row, noise)| off(*noise, row)).collect();
        for (precision, good) in Precision::ON_CPUS.into_iter().zip(good) {
            let found = against_published(&served, &references, precision).await.unwrap().remove(0);
            assert_eq!(found.is_good(), good, "{precision} {noise:?}: {found:?}");
        }
    }
    // The mean is a bar of its own: no single text of these is beyond 0.999.
    let references: Vec<Reference> = (0..4).map(|row| off(0.04, row)).collect();
    let found = against_published(&served, &references, Precision::Int8).await.unwrap().remove(0);
    assert!(found.differences.is_empty() && found.min_cosine.unwrap() > 0.999 && !found.is_good(), "{found:?}");
    assert!(found.mean_cosine().unwrap() < 0.9995, "{found:?}");
}

#[tokio::test]
async fn scaling_to_unit_length_is_found_out_where_nobody_said() {
    let model = TinyModel { normalize: false, ..TinyModel::default() };
    let served = try_load(model.write().path()).unwrap().served;
    let row = embed(&served, &["hello world"]).await.unwrap().rows.remove(0);
    let raw = row.vector.as_slice().to_vec();
    let length = raw.iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!((length - 1.0).abs() > 0.1, "{length}");
    let unit: Vec<f32> = raw.iter().map(|x| x / length).collect();
    let found = |values: &[f32], normalized: Option<bool>| {
        one(&served, Reference { normalized, ..reference("hello world", Expected::Vector(values.to_vec())) })
    };
    let unsaid = found(&unit, None).await;
    assert!(unsaid.is_good() && unsaid.notes[0].contains("scaled to length 1, which this model's own"), "{unsaid:?}");
    let unsaid = found(&raw, None).await;
    assert!(unsaid.is_good() && unsaid.notes[0].contains("not scaled"), "{unsaid:?}");
    // Whoever says it is held to it.
    let said = found(&unit, Some(true)).await;
    assert!(!said.is_good() && said.differences.iter().any(|line| line.contains("with length 1")), "{said:?}");
    assert!(!found(&unit, Some(false)).await.is_good());
    assert!(found(&raw, Some(false)).await.is_good());
}

#[tokio::test]
async fn a_prompt_that_the_model_does_not_have_is_an_error_and_no_comparison() {
    let served = try_load(TinyModel::default().write().path()).unwrap().served;
    let prompt = Some(ReferencePrompt::Named("query".to_owned()));
    let reference = Reference { prompt, ..reference("x", Expected::Vector(vec![0.0; 32])) };
    let error = against_published(&served, &[reference], Precision::F32).await.unwrap_err();
    assert!(matches!(error, VerifyError::Request(_)), "{error}");
}

#[tokio::test]
async fn real_minilm_equals_its_published_vectors_and_candle() {
    let Some(folder) = real::model() else { return };
    let served = try_load(folder).unwrap().served;
    let spec = catalog::builtin().unwrap().remove(0);
    let found = published(&served, &spec.references).await;
    assert!(found.len() == 1 && found[0].is_good() && found[0].texts >= 4, "{found:?}");
    let Second::Compared(candle) = second(&served, folder).await else { panic!("candle has BERT") };
    assert!(candle.is_good(), "{candle:?}");
    eprintln!("real all-MiniLM-L6-v2: published {:.1e}, candle {:.1e}", found[0].max_error, candle.max_error);
}
