//! Vectors against sentence-transformers in float32: every tiny model under `tests/golden/models`, alone and in shuffled
//! company, on every instruction set. Judged by the maximum absolute error (a wrong GELU hides behind a cosine of
//! 1.000000): 1e-5 in rows without a value beyond 1, 1e-5 of the row's largest magnitude in the others. With
//! `--nocapture` the table of distances is printed.

use std::collections::BTreeMap;
use std::path::Path;

use embedserve::engine::Served;
use embedserve::kernel::Isa;
use embedserve::load::Shared;

use crate::support::golden::{Distance, Golden, folder};
use crate::support::served::{shared_with, try_load_with};

/// Rows of thousands of tokens cost seconds without vector instructions, and change nothing about those.
const LONG: usize = 4096;

fn models() -> Vec<String> {
    let entries = std::fs::read_dir(folder().join("models")).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn load(folder: &Path, golden: &Golden, shared: &Shared) -> Result<Served, String> {
    let mut served = try_load_with(folder, shared).map_err(|error| format!("does not load: {error}"))?.served;
    // As an operator would who allows what the folder does not declare, and prompts beyond the limit of tokens.
    served.limits.matryoshka |= golden.has_shorter_vectors();
    served.limits.max_prompt_bytes = 4096;
    Ok(served)
}

// N-07, N-06
#[tokio::test]
async fn every_golden_model_equals_sentence_transformers() {
    let models = models();
    assert!(models.len() >= 45, "{models:?}");
    let (mut faults, mut worst) = (Vec::new(), BTreeMap::<&String, Distance>::new());
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        let shared = shared_with(2, isa);
        for name in &models {
            let golden = Golden::read(name);
            if golden.max_tokens >= LONG && isa != Isa::detect() {
                continue;
            }
            let served = match load(&folder().join("models").join(name), &golden, &shared) {
                Ok(served) => served,
                Err(fault) => {
                    faults.push(format!("{name} {isa}: {fault}"));
                    continue;
                }
            };
            let found = golden.check(&served, 1).await;
            faults.extend(found.faults.iter().map(|fault| format!("{name} {isa}: {fault}")));
            worst.entry(name).and_modify(|distance| distance.merge(&found)).or_insert(found);
        }
    }
    print(&worst);
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// The bar is about `judged`; `absolute` is the largest difference there is, in a row as large as `magnitude` says.
fn print(worst: &BTreeMap<&String, Distance>) {
    let table = |name: &str, columns: [String; 6]| {
        let [absolute, magnitude, within_one, judged, cosine, alone] = columns;
        eprintln!("{name:<32} {absolute:>9} {magnitude:>9} {within_one:>10} {judged:>9} {cosine:>12} {alone:>14}");
    };
    let row = |name: &str, distance: &Distance| {
        let Distance { widest, max_within_one, max_judged, min_cosine, alone_to_batch, .. } = distance;
        let (absolute, magnitude) = (format!("{:.1e}", widest.absolute), format!("{:.2}", widest.magnitude));
        let within_one = max_within_one.map_or("–".to_owned(), |x| format!("{x:.1e}"));
        let [judged, alone] = [max_judged, alone_to_batch].map(|x| format!("{x:.1e}"));
        table(name, [absolute, magnitude, within_one, judged, format!("{min_cosine:.9}"), alone]);
    };
    table(
        "model",
        ["absolute", "magnitude", "within one", "judged", "min cosine", "alone vs batch"].map(str::to_owned),
    );
    let mut all = Distance::default();
    for (name, distance) in worst {
        row(name, distance);
        all.merge(distance);
    }
    row("all", &all);
}

// N-07: the oracle can fail: the same weights with the other GELU are out of tolerance.
#[tokio::test]
async fn a_tanh_gelu_would_be_noticed() {
    let copy = tempfile::tempdir().unwrap();
    let source = folder().join("models/bert-mean-normalize");
    for name in ["model.safetensors", "tokenizer.json", "modules.json", "sentence_bert_config.json"] {
        std::fs::copy(source.join(name), copy.path().join(name)).unwrap();
    }
    std::fs::create_dir(copy.path().join("1_Pooling")).unwrap();
    std::fs::copy(source.join("1_Pooling/config.json"), copy.path().join("1_Pooling/config.json")).unwrap();
    let config = std::fs::read_to_string(source.join("config.json")).unwrap();
    let config = config.replace("\"gelu\"", "\"gelu_new\"");
    std::fs::write(copy.path().join("config.json"), config).unwrap();
    let golden = Golden::read("bert-mean-normalize");
    let served = load(copy.path(), &golden, &shared_with(1, Isa::detect())).unwrap();
    let distance = golden.check(&served, 0).await;
    assert!(distance.faults.iter().any(|fault| fault.contains("differs by")), "a difference of 1e-4 passed");
}
