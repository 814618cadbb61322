//! Vectors against sentence-transformers in float32: every tiny model under `tests/golden/models`, judged by maximum
//! absolute error (a wrong GELU hides behind a cosine of 1.000000), on every instruction set.

use embedserve::kernel::Isa;

use crate::support::golden::{Golden, folder};
use crate::support::served::{shared_with, try_load_with};

fn models() -> Vec<String> {
    let entries = std::fs::read_dir(folder().join("models")).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

// N-07
#[tokio::test]
async fn every_golden_model_equals_sentence_transformers() {
    let models = models();
    assert!(models.len() >= 13, "{models:?}");
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        let shared = shared_with(2, isa);
        for name in &models {
            let loaded = try_load_with(&folder().join("models").join(name), &shared);
            let served = loaded.unwrap_or_else(|error| panic!("{name}: {error}")).served;
            let distance = Golden::read(name).check(&served).await;
            assert!(distance.min_cosine > 0.999_999, "{name} {isa}: {distance:?}");
        }
    }
}

// The oracle can fail: the same weights with the other GELU are out of tolerance.
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
    let served = try_load_with(copy.path(), &shared_with(1, Isa::detect())).unwrap().served;
    let check = tokio::spawn(async move { Golden::read("bert-mean-normalize").check(&served).await });
    assert!(check.await.unwrap_err().is_panic(), "a difference of 1e-4 passed");
}
