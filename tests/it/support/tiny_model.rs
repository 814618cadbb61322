//! Tiny seeded BERT models in a temporary folder: the real code path, from files to vectors, without a network.
//!
//! The tokenizer is WordPiece over printable ASCII, some Latin and CJK letters and a few whole words, so that `x x x`
//! is three tokens plus the frame `[CLS]` (id 2) and `[SEP]` (id 3).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::random::Random;

/// What a tiny model is like. The defaults suit most tests.
#[derive(Clone)]
pub struct TinyModel {
    pub seed: u64,
    pub hidden: usize,
    pub layers: usize,
    pub positions: usize,
    pub normalize: bool,
    pub pooling: &'static str,
    /// The largest weight of the first products of feed-forward networks.
    pub up: f32,
    /// The special tokens' names, in front and behind.
    pub frame: (&'static str, &'static str),
}

impl Default for TinyModel {
    fn default() -> Self {
        let frame = ("[CLS]", "[SEP]");
        Self { seed: 7, hidden: 32, layers: 2, positions: 64, normalize: true, pooling: "mean", up: 0.4, frame }
    }
}

/// The names that the special tokens have in the vocabulary, in id order.
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
const WORDS: [&str; 12] =
    ["hello", "world", "foo", "the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "tiny"];

impl TinyModel {
    /// Writes the folder; it lives as long as the returned handle.
    pub fn write(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        self.write_to(folder.path());
        folder
    }

    pub fn write_to(&self, folder: &Path) {
        let vocabulary = vocabulary();
        let write = |name: &str, value: &Value| {
            let path: PathBuf = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, serde_json::to_vec(value).unwrap()).unwrap();
        };
        write("config.json", &self.config(vocabulary.len()));
        write("tokenizer.json", &self.tokenizer(&vocabulary));
        write(
            "1_Pooling/config.json",
            &json!({"word_embedding_dimension": self.hidden,
            "pooling_mode_mean_tokens": self.pooling == "mean", "pooling_mode_cls_token": self.pooling == "cls"}),
        );
        let mut modules = vec![
            json!({"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}),
            json!({"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}),
        ];
        if self.normalize {
            modules.push(json!({"idx": 2, "name": "2", "path": "2_Normalize",
                "type": "sentence_transformers.models.Normalize"}));
        }
        write("modules.json", &Value::Array(modules));
        write("sentence_bert_config.json", &json!({"max_seq_length": self.positions, "do_lower_case": false}));
        std::fs::write(folder.join("model.safetensors"), self.weights(vocabulary.len())).unwrap();
    }

    /// `config.json`, for tests that spoil a field of it.
    pub fn config(&self, vocabulary: usize) -> Value {
        json!({"model_type": "bert", "hidden_size": self.hidden, "num_hidden_layers": self.layers,
            "num_attention_heads": 4, "intermediate_size": 2 * self.hidden, "hidden_act": "gelu",
            "layer_norm_eps": 1e-12, "max_position_embeddings": self.positions, "type_vocab_size": 2,
            "vocab_size": vocabulary})
    }

    fn tokenizer(&self, vocabulary: &[String]) -> Value {
        let ids: BTreeMap<&str, usize> =
            vocabulary.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
        let special = |name: &str| json!({"id": name, "ids": [ids[name]], "tokens": [name]});
        let piece = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
        let (before, after) = self.frame;
        let sequence = json!({"Sequence": {"id": "A", "type_id": 0}});
        let added = SPECIAL.iter().map(|name| {
            json!({"id": ids[name], "content": name, "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false})
        });
        json!({
            "version": "1.0",
            // Files carry these; a server that honoured them would pad and cut behind our back.
            "truncation": {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
            "padding": {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                "pad_type_id": 0, "pad_token": "[PAD]"},
            "added_tokens": added.collect::<Vec<_>>(),
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": false, "lowercase": true},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "TemplateProcessing", "single": [piece(before), sequence, piece(after)],
                "pair": [piece(before), sequence, piece(after), {"Sequence": {"id": "B", "type_id": 1}}, piece(after)],
                "special_tokens": {before: special(before), after: special(after)}},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": ids},
        })
    }

    fn weights(&self, vocabulary: usize) -> Vec<u8> {
        let (h, f) = (self.hidden, 2 * self.hidden);
        let mut file = WeightFile { random: Random::new(self.seed), tensors: Vec::new() };
        file.add("embeddings.word_embeddings.weight", &[vocabulary, h], 1.0);
        file.add("embeddings.position_embeddings.weight", &[self.positions, h], 0.3);
        file.add("embeddings.token_type_embeddings.weight", &[2, h], 0.3);
        file.add_norm("embeddings.LayerNorm", h);
        for layer in 0..self.layers {
            let prefix = format!("encoder.layer.{layer}");
            for (name, rows, columns, largest) in [
                ("attention.self.query", h, h, 0.4),
                ("attention.self.key", h, h, 0.4),
                ("attention.self.value", h, h, 0.4),
                ("attention.output.dense", h, h, 0.4),
                ("intermediate.dense", f, h, self.up),
                ("output.dense", h, f, 0.4),
            ] {
                file.add(&format!("{prefix}.{name}.weight"), &[rows, columns], largest);
                file.add(&format!("{prefix}.{name}.bias"), &[rows], 0.3);
            }
            file.add_norm(&format!("{prefix}.attention.output.LayerNorm"), h);
            file.add_norm(&format!("{prefix}.output.LayerNorm"), h);
        }
        file.finish()
    }
}

/// A safetensors file in the making.
struct WeightFile {
    random: Random,
    tensors: Vec<(String, Vec<usize>, Vec<u8>)>,
}

impl WeightFile {
    fn add(&mut self, name: &str, shape: &[usize], scale: f32) {
        let values = self.random.floats(shape.iter().product(), scale);
        self.push(name, shape, values);
    }

    fn add_norm(&mut self, prefix: &str, width: usize) {
        let gamma = self.random.floats(width, 0.3).into_iter().map(|x| x + 1.0).collect();
        self.push(&format!("{prefix}.weight"), &[width], gamma);
        self.add(&format!("{prefix}.bias"), &[width], 0.3);
    }

    fn push(&mut self, name: &str, shape: &[usize], values: Vec<f32>) {
        let bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
        self.tensors.push((name.to_owned(), shape.to_vec(), bytes));
    }

    fn finish(&self) -> Vec<u8> {
        let views = self
            .tensors
            .iter()
            .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        serialize(views, None).unwrap()
    }
}

/// Special tokens, printable ASCII and some letters with their continuations, and whole words.
pub fn vocabulary() -> Vec<String> {
    let letters: Vec<char> =
        ('!'..='~').filter(|c| !c.is_ascii_uppercase()).chain("éüßñ中文日本語😀\u{fffd}".chars()).collect();
    let mut tokens: Vec<String> = SPECIAL.iter().map(|name| (*name).to_owned()).collect();
    tokens.extend(letters.iter().map(char::to_string));
    tokens.extend(letters.iter().map(|letter| format!("##{letter}")));
    tokens.extend(WORDS.iter().map(|word| (*word).to_owned()));
    tokens
}
