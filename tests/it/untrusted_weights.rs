//! Model folders under suspicion: weights, configurations and tokenizers that lie. Each is one spoiled detail of a
//! good tiny model, and each must be an error that names what is wrong, not a crash and not a wrong vector.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::served::try_load;
use crate::support::tiny_model::TinyModel;

/// Loads a tiny model after `spoil` has changed its folder; returns the error's text.
fn error_after(spoil: impl FnOnce(&Path)) -> String {
    let folder = TinyModel::default().write();
    spoil(folder.path());
    match try_load(folder.path()) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("a spoiled model was accepted"),
    }
}

fn edit(folder: &Path, name: &str, change: impl FnOnce(&mut Value)) {
    let path = folder.join(name);
    let mut value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
}

fn weights(folder: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let path = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

/// Replaces the JSON header of the weights, keeping its length.
fn header(folder: &Path, change: impl FnOnce(String) -> String) {
    weights(folder, |bytes| {
        let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
        let text = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap();
        let changed = change(text);
        assert!(changed.len() <= length, "the header may only shrink");
        bytes[8..8 + length].copy_from_slice(format!("{changed:length$}").as_bytes());
    });
}

#[test]
fn a_good_tiny_model_loads() {
    assert!(try_load(TinyModel::default().write().path()).is_ok());
}

// As transformers does: who saves a model anew in one file leaves the index of the old shards behind.
#[test]
fn an_index_beside_whole_weights_is_left_over() {
    let folder = TinyModel::default().write();
    let index = r#"{"weight_map": {"embeddings.word_embeddings.weight": "model-00001-of-00002.safetensors"}}"#;
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    assert!(try_load(folder.path()).is_ok());
}

// U-01
#[test]
fn damaged_weight_files_are_refused() {
    type Spoil = fn(&mut Vec<u8>);
    let cases: [(&str, Spoil); 5] = [
        ("header length 2^64 - 1", |bytes| bytes[..8].fill(0xff)),
        ("header length beyond the file", |bytes| bytes[..8].copy_from_slice(&(1_u64 << 23).to_le_bytes())),
        ("empty", Vec::clear),
        ("truncated", |bytes| bytes.truncate(bytes.len() / 2)),
        ("not JSON", |bytes| bytes[8] = b'!'),
    ];
    for (what, change) in cases {
        let error = error_after(|folder| weights(folder, change));
        assert!(error.contains("safetensors"), "{what}: {error}");
    }
}

// U-01, U-02, U-03: files that are all size. They are sparse here, and would fill the memory of whoever reads them whole.
#[test]
fn files_beyond_their_limits_are_refused_unread() {
    let grow = |name: &'static str, size: u64| {
        move |folder: &Path| {
            let file = std::fs::File::options().write(true).open(folder.join(name)).unwrap();
            file.set_len(size).unwrap();
        }
    };
    for (name, size, expected) in [
        ("config.json", 50 << 20, "it has more than 4194304 bytes"),
        ("modules.json", 50 << 20, "it has more than 4194304 bytes"),
        ("tokenizer.json", 1 << 30, "has 1073741824 bytes, the limit is 67108864"),
    ] {
        let start = Instant::now();
        let error = error_after(grow(name, size));
        assert!(error.contains(expected) && error.contains(name), "{name}: {error}");
        assert!(start.elapsed() < Duration::from_secs(2), "{name} took {:?}", start.elapsed());
    }
    let header = error_after(|folder| {
        grow("model.safetensors", 200 << 20)(folder);
        let path = folder.join("model.safetensors");
        let mut file = std::fs::File::options().write(true).open(path).unwrap();
        file.write_all(&(99_u64 << 20).to_le_bytes()).unwrap();
    });
    assert!(header.contains("its header is larger than 16 MiB"), "{header}");
}

// U-01
#[test]
fn a_hundred_thousand_tensors_are_refused_quickly() {
    let tensor = |index: usize| format!("\"t{index}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}");
    let tensors = (0..100_000).map(tensor).collect::<Vec<_>>().join(",");
    let start = Instant::now();
    let error = error_after(|folder| {
        weights(folder, |bytes| {
            let header = format!("{{{tensors}}}");
            *bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
        });
    });
    assert!(error.len() < 1000 && error.contains("is missing"), "{error:.1000}");
    assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
}

// U-01
#[test]
fn tensors_that_differ_from_the_configuration_are_named() {
    let name = "encoder.layer.1.output.dense.bias";
    let missing = error_after(|folder| header(folder, |text| text.replace(name, "encoder.layer.1.output.dense.blas")));
    assert!(missing.contains(&format!("tensor {name} is missing")), "{missing}");
    let shape = error_after(|folder| edit(folder, "config.json", |config| config["intermediate_size"] = json!(63)));
    assert!(shape.contains("intermediate.dense.weight") && shape.contains("63"), "{shape}");
    // A layer that the configuration does not mention would silently be left out of every vector.
    let extra = error_after(|folder| edit(folder, "config.json", |config| config["num_hidden_layers"] = json!(1)));
    assert!(extra.contains("does not explain: encoder.layer.1."), "{extra}");
    let dtype = error_after(|folder| header(folder, |text| text.replacen("\"F32\"", "\"I32\"", 1)));
    assert!(dtype.contains("I32"), "{dtype}");
}

// U-02, N-08
#[test]
fn impossible_and_unimplemented_configurations_are_named() {
    let cases = [
        ("hidden_size", json!(0)),
        ("num_attention_heads", json!(5)),
        ("num_attention_heads", json!(0)),
        ("num_hidden_layers", json!(1_000_000_000_u64)),
        ("num_hidden_layers", json!(1000)),
        ("vocab_size", json!(1_000_000_000_u64)),
        ("vocab_size", json!(-1)),
        ("max_position_embeddings", json!(0)),
        ("hidden_act", json!("gelu_fast")),
        ("position_embedding_type", json!("relative_key")),
        ("is_decoder", json!(true)),
        ("model_type", json!("bort")),
        ("auto_map", json!({"AutoModel": "modeling.Evil"})),
        ("quantization_config", json!({"quant_method": "bitsandbytes", "load_in_8bit": true})),
        ("layer_norm_eps", json!(-1.0)),
    ];
    for (field, value) in cases {
        let error = error_after(|folder| edit(folder, "config.json", |config| config[field] = value.clone()));
        assert!(error.contains("config.json"), "{field} = {value}: {error}");
    }
    let unknown = error_after(|folder| edit(folder, "config.json", |config| config["hidden_act"] = json!("mish")));
    assert!(unknown.contains("hidden_act = mish"), "{unknown}");
}

#[test]
fn modules_that_are_not_implemented_are_named() {
    let lstm = error_after(|folder| {
        edit(folder, "modules.json", |modules| modules[1]["type"] = json!("sentence_transformers.models.LSTM"));
    });
    assert!(lstm.contains("LSTM"), "{lstm}");
    let attention = error_after(|folder| {
        edit(folder, "1_Pooling/config.json", |config| *config = json!({"pooling_mode": "attention"}));
    });
    assert!(attention.contains("pooling_mode = \"attention\""), "{attention}");
    let switch = error_after(|folder| {
        edit(folder, "1_Pooling/config.json", |config| *config = json!({"pooling_mode_attention": true}));
    });
    assert!(switch.contains("pooling_mode_attention: true"), "{switch}");
    let many = error_after(|folder| {
        edit(folder, "1_Pooling/config.json", |config| *config = json!({"pooling_mode": vec!["mean"; 1000]}));
    });
    assert!(many.contains("1000 modes") && many.len() < 1000, "{many}");
    // Of the same name, and the repository's own: it may do anything.
    for own in ["custom_st.Pooling", "Pooling", "not_sentence_transformers.models.Pooling"] {
        let error = error_after(|folder| edit(folder, "modules.json", |modules| modules[1]["type"] = json!(own)));
        assert!(error.contains(own), "{error}");
    }
    let none = error_after(|folder| std::fs::remove_file(folder.join("modules.json")).unwrap());
    assert!(none.contains("--pooling"), "{none}");
    let reranker = error_after(|folder| {
        std::fs::remove_file(folder.join("modules.json")).unwrap();
        edit(folder, "config.json", |config| config["architectures"] = json!(["BertForSequenceClassification"]));
    });
    assert!(reranker.contains("architectures = BertForSequenceClassification"), "{reranker}");
}

// U-06
#[test]
fn module_paths_cannot_leave_the_folder() {
    for path in ["../1_Pooling", "/etc", "a/../../b", "C:\\x", "a\0b"] {
        let error = error_after(|folder| edit(folder, "modules.json", |modules| modules[1]["path"] = json!(path)));
        assert!(error.contains("modules.json"), "{path}: {error}");
    }
}

// U-03
#[test]
fn tokenizers_that_do_not_fit_are_refused() {
    let garbage = error_after(|folder| std::fs::write(folder.join("tokenizer.json"), b"{}").unwrap());
    assert!(garbage.contains("tokenizer.json"), "{garbage}");
    let beyond = error_after(|folder| {
        edit(folder, "tokenizer.json", |tokenizer| tokenizer["model"]["vocab"]["zzz"] = json!(100_000));
    });
    assert!(beyond.contains("token id 100000"), "{beyond}");
}

// U-08
#[test]
fn a_maximum_length_that_cannot_be_is_refused_or_clamped() {
    let zero = error_after(|folder| {
        edit(folder, "sentence_bert_config.json", |config| config["max_seq_length"] = json!(0));
    });
    assert!(zero.contains("max_seq_length = 0"), "{zero}");
    let folder = TinyModel::default().write();
    edit(folder.path(), "sentence_bert_config.json", |config| config["max_seq_length"] = json!(100_000));
    assert_eq!(try_load(folder.path()).unwrap().served.limits.max_tokens, 64, "positions are the ceiling");
}

// N-01
#[test]
fn weights_without_finite_vectors_never_become_ready() {
    // The largest number is one itself; the sums that it takes part in are none.
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        let error = error_after(|folder| {
            weights(folder, |bytes| {
                let end = bytes.len();
                bytes[end - 256..].copy_from_slice(&value.to_le_bytes().repeat(64));
            });
        });
        assert!(error.contains("non-finite"), "{value}: {error}");
    }
}
