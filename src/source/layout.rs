//! Which files of a repository make up a model: an allow-list by name, the same for every source.
//!
//! `plan` works on a `Listing`, which a Hub repository, a wheel and a folder all can give. It reads modules.json and
//! the index of sharded weights, and refuses any path in them that is not a plain relative name. Weights come last in
//! the plan: a folder that holds the weights holds everything, which is how an interrupted download is told from a
//! finished one. Nothing that can run code is ever named.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::catalog::id::RelPath;
use crate::source::error::Cause;

/// A repository as `plan` sees it.
pub(super) trait Listing {
    fn has(&self, file: &RelPath) -> bool;

    /// The bytes of a small file; fetches it where that is needed.
    fn read(&mut self, file: &RelPath) -> Result<Vec<u8>, Cause>;

    /// Every name, to tell a repository without weights from one with weights of the wrong kind.
    fn names(&self) -> Vec<String>;
}

/// The files of a model. A folder that holds all `weights` must hold all `small` files too, so those are fetched first:
/// that is how an interrupted download is told from a finished one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Files {
    pub small: Vec<RelPath>,
    pub weights: Vec<RelPath>,
}

/// The files that make up the model in `listing`.
///
/// # Errors
/// Every missing file at once; weights in other formats only; a name that leaves the folder.
pub(super) fn plan(listing: &mut dyn Listing) -> Result<Files, Cause> {
    let mut plan = Plan::default();
    plan.require(listing, "config.json")?;
    plan.require(listing, "tokenizer.json")?;
    for name in OPTIONAL {
        plan.offer(listing, RelPath::parse(name)?);
    }
    let modules = RelPath::parse(MODULES)?;
    if plan.small.contains(&modules) {
        let modules = parse_modules(&listing.read(&modules)?)?;
        for module in modules {
            plan.module(listing, &module)?;
        }
    }
    plan.weights(listing)?;
    if plan.missing.is_empty() {
        return Ok(Files { small: plan.small, weights: plan.weights });
    }
    Err(Cause::Missing { files: plan.missing })
}

/// Whether weights of this name are pickles of `PyTorch`: what the Hub's conversion bot converts.
pub(super) fn is_pickle(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    PICKLE_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

#[derive(Debug, Default)]
struct Plan {
    small: Vec<RelPath>,
    weights: Vec<RelPath>,
    missing: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Deserialize)]
struct WeightIndex {
    weight_map: BTreeMap<String, String>,
}

// === impl Files ===

impl Files {
    /// Small files first, weights last.
    pub(super) fn all(&self) -> impl Iterator<Item = &RelPath> {
        self.small.iter().chain(&self.weights)
    }
}

// === impl Plan ===

impl Plan {
    fn require(&mut self, listing: &dyn Listing, name: &str) -> Result<(), Cause> {
        let file = RelPath::parse(name)?;
        if !self.offer(listing, file) {
            self.missing.push(name.to_owned());
        }
        Ok(())
    }

    fn offer(&mut self, listing: &dyn Listing, file: RelPath) -> bool {
        let there = listing.has(&file);
        if there && !self.small.contains(&file) {
            self.small.push(file);
        }
        there
    }

    /// One module of a sentence-transformers pipeline; the encoder itself lies at the root.
    fn module(&mut self, listing: &dyn Listing, module: &Module) -> Result<(), Cause> {
        if module.path.is_empty() {
            return Ok(());
        }
        let folder = RelPath::parse(module.path.strip_suffix('/').unwrap_or(&module.path))?;
        let config = format!("{folder}/config.json");
        let weights = RelPath::parse(&format!("{folder}/model.safetensors"))?;
        match module.kind.rsplit('.').next().unwrap_or_default() {
            // Has no settings; some exports leave an empty folder, some none.
            "Normalize" => {}
            "Dense" | "LayerNorm" => {
                self.require(listing, &config)?;
                if listing.has(&weights) {
                    self.weight(weights);
                } else {
                    let prefix = format!("{folder}/");
                    self.missing_weights(listing, &prefix)?;
                }
            }
            "Pooling" => self.require(listing, &config)?,
            _ => {
                self.offer(listing, RelPath::parse(&config)?);
                if listing.has(&weights) {
                    self.weight(weights);
                }
            }
        }
        Ok(())
    }

    fn weight(&mut self, file: RelPath) {
        if !self.weights.contains(&file) {
            self.weights.push(file);
        }
    }

    fn weights(&mut self, listing: &mut dyn Listing) -> Result<(), Cause> {
        let whole = RelPath::parse(WEIGHTS)?;
        if listing.has(&whole) {
            self.weight(whole);
            return Ok(());
        }
        let index = RelPath::parse(WEIGHT_INDEX)?;
        if !listing.has(&index) {
            return self.missing_weights(listing, "");
        }
        let shards = parse_index(&listing.read(&index)?)?;
        self.small.push(index);
        for shard in shards {
            if listing.has(&shard) {
                self.weight(shard);
            } else {
                self.missing.push(shard.to_string());
            }
        }
        Ok(())
    }

    fn missing_weights(&mut self, listing: &dyn Listing, folder: &str) -> Result<(), Cause> {
        let refused = listing.names().into_iter().find(|name| {
            let file = name.strip_prefix(folder).filter(|file| !file.contains('/')).map(str::to_ascii_lowercase);
            file.is_some_and(|file| REFUSED_ENDINGS.iter().any(|ending| file.ends_with(ending)))
        });
        if let Some(name) = refused {
            return Err(Cause::Weights { found: crate::catalog::id::printable(&name) });
        }
        self.missing.push(format!("{folder}{WEIGHTS}"));
        Ok(())
    }
}

fn parse_modules(bytes: &[u8]) -> Result<Vec<Module>, Cause> {
    let modules: Vec<Module> = serde_json::from_slice(bytes).map_err(unreadable(MODULES))?;
    if modules.len() > MAX_MODULES {
        let reason = format!("{} modules, at most {MAX_MODULES} are accepted", modules.len());
        return Err(Cause::Unreadable { file: MODULES.to_owned(), reason });
    }
    Ok(modules)
}

fn parse_index(bytes: &[u8]) -> Result<BTreeSet<RelPath>, Cause> {
    let index: WeightIndex = serde_json::from_slice(bytes).map_err(unreadable(WEIGHT_INDEX))?;
    let mut shards = BTreeSet::new();
    for name in index.weight_map.values() {
        let shard = RelPath::parse(name)?;
        if !name.ends_with(".safetensors") {
            return Err(Cause::Weights { found: shard.to_string() });
        }
        shards.insert(shard);
    }
    if shards.is_empty() || shards.len() > MAX_SHARDS {
        let reason = format!("{} shards, expected 1 to {MAX_SHARDS}", shards.len());
        return Err(Cause::Unreadable { file: WEIGHT_INDEX.to_owned(), reason });
    }
    Ok(shards)
}

fn unreadable(file: &'static str) -> impl FnOnce(serde_json::Error) -> Cause {
    // The category and place only: the parser's own text may quote the file.
    move |error| Cause::Unreadable {
        file: file.to_owned(),
        reason: format!("not the expected JSON at line {} column {}", error.line(), error.column()),
    }
}

pub(super) const MODULES: &str = "modules.json";
const WEIGHTS: &str = "model.safetensors";
pub(super) const WEIGHT_INDEX: &str = "model.safetensors.index.json";
/// Taken where they exist.
const OPTIONAL: [&str; 11] = [
    MODULES,
    // The same settings under the names of older exports; sentence-transformers takes the first that exists.
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
    "config_sentence_transformers.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
];
/// Endings of weights that are pickles or belong to engines we do not have.
const REFUSED_ENDINGS: [&str; 11] =
    [".bin", ".bin.index.json", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx"];
const PICKLE_ENDINGS: [&str; 2] = [".bin", ".bin.index.json"];
/// Real pipelines have three or four.
const MAX_MODULES: usize = 32;
/// Real models have fewer than a hundred.
const MAX_SHARDS: usize = 1_000;
/// A small file is read whole into memory; tokenizers of large vocabularies have some 20 MB, but only modules.json and
/// the weight index are read here.
pub(super) const MAX_SMALL_BYTES: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(BTreeMap<&'static str, &'static str>);

    impl Listing for Folder {
        fn has(&self, file: &RelPath) -> bool {
            self.0.contains_key(file.as_str())
        }

        fn read(&mut self, file: &RelPath) -> Result<Vec<u8>, Cause> {
            Ok(self.0[file.as_str()].as_bytes().to_vec())
        }

        fn names(&self) -> Vec<String> {
            self.0.keys().map(ToString::to_string).collect()
        }
    }

    fn planned(files: &[(&'static str, &'static str)]) -> Result<Vec<String>, Cause> {
        let mut all = BTreeMap::from([("config.json", "{}"), ("tokenizer.json", "{}")]);
        all.extend(files.iter().copied());
        plan(&mut Folder(all)).map(|files| files.all().map(ToString::to_string).collect())
    }

    #[test]
    fn the_plan_names_data_only_and_weights_last() {
        let files = planned(&[
            ("model.safetensors", ""),
            ("pytorch_model.bin", ""),
            ("modeling_x.py", ""),
            ("onnx/model.onnx", ""),
            (
                "modules.json",
                r#"[{"idx":0,"name":"0","path":"","type":"s.Transformer"},
                {"idx":1,"name":"1","path":"1_Pooling","type":"s.Pooling"},
                {"idx":2,"name":"2","path":"2_Dense","type":"s.Dense"},
                {"idx":3,"name":"3","path":"3_Normalize","type":"s.Normalize"}]"#,
            ),
            ("1_Pooling/config.json", "{}"),
            ("2_Dense/config.json", "{}"),
            ("2_Dense/model.safetensors", ""),
        ]);
        let expected = [
            "config.json",
            "tokenizer.json",
            "modules.json",
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "model.safetensors",
        ];
        assert_eq!(files.unwrap(), expected);
    }

    // Old exports name the settings of the encoder after its architecture.
    #[test]
    fn settings_are_fetched_under_every_name_that_sentence_transformers_reads() {
        let names = ["bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"];
        for name in names.map(|name| format!("sentence_{name}_config.json").leak() as &'static str) {
            let files = planned(&[(name, "{}"), ("model.safetensors", "")]).unwrap();
            assert_eq!(files, ["config.json", "tokenizer.json", name, "model.safetensors"]);
        }
        assert!(
            !planned(&[("sentence_x_config.json", "{}"), ("model.safetensors", "")])
                .unwrap()
                .contains(&"sentence_x_config.json".to_owned())
        );
    }

    #[test]
    fn several_dense_modules_and_a_layer_norm_are_fetched_whole() {
        let modules = r#"[{"path":"","type":"s.Transformer"},{"path":"1_Pooling","type":"s.Pooling"},
            {"path":"2_Dense","type":"s.Dense"},{"path":"3_Dense","type":"s.Dense"},
            {"path":"4_LayerNorm","type":"s.LayerNorm"},{"path":"5_Normalize","type":"s.Normalize"}]"#;
        let mut folder = vec![("modules.json", modules), ("1_Pooling/config.json", "{}"), ("model.safetensors", "")];
        for (config, weights) in [
            ("2_Dense/config.json", "2_Dense/model.safetensors"),
            ("3_Dense/config.json", "3_Dense/model.safetensors"),
            ("4_LayerNorm/config.json", "4_LayerNorm/model.safetensors"),
        ] {
            folder.extend([(config, "{}"), (weights, "")]);
        }
        let files = planned(&folder).unwrap();
        let weights = [
            "2_Dense/model.safetensors",
            "3_Dense/model.safetensors",
            "4_LayerNorm/model.safetensors",
            "model.safetensors",
        ];
        assert_eq!(files[files.len() - 4..], weights);
        for module in ["2_Dense", "3_Dense", "4_LayerNorm"] {
            let safetensors = format!("{module}/model.safetensors");
            let mut without: Vec<_> = folder.iter().copied().filter(|(name, _)| *name != safetensors).collect();
            match planned(&without) {
                Err(Cause::Missing { files }) => assert_eq!(files, [safetensors.as_str()]),
                other => panic!("{other:?}"),
            }
            let pickle: &'static str = format!("{module}/pytorch_model.bin").leak();
            without.push((pickle, ""));
            match planned(&without) {
                Err(Cause::Weights { found }) => assert_eq!(found, pickle),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn shards_are_those_of_the_index() {
        let index = r#"{"metadata":{},"weight_map":{"a":"model-1-of-2.safetensors","b":"model-2-of-2.safetensors"}}"#;
        let both = [
            ("model.safetensors.index.json", index),
            ("model-1-of-2.safetensors", ""),
            ("model-2-of-2.safetensors", ""),
        ];
        assert_eq!(planned(&both).unwrap().len(), 5);
        match planned(&both[..2]) {
            Err(Cause::Missing { files }) => assert_eq!(files, ["model-2-of-2.safetensors"]),
            other => panic!("{other:?}"),
        }
    }

    // U-06
    #[test]
    fn paths_in_repository_files_cannot_leave_the_folder() {
        for path in ["../../x", "/etc", "C:\\x", "a/../../b", "a\\b"] {
            let modules: &'static str = serde_json::json!([{"path": path, "type": "s.Pooling"}]).to_string().leak();
            let index: &'static str =
                serde_json::json!({"weight_map": {"a": format!("{path}.safetensors")}}).to_string().leak();
            assert!(
                matches!(planned(&[("modules.json", modules), ("model.safetensors", "")]), Err(Cause::Name(_))),
                "{path}"
            );
            assert!(matches!(planned(&[("model.safetensors.index.json", index)]), Err(Cause::Name(_))), "{path}");
        }
    }

    // U-05
    #[test]
    fn weights_that_could_run_code_are_refused_in_one_sentence() {
        for name in ["pytorch_model.bin", "model.PKL", "model.gguf", "weights.pt"] {
            let name: &'static str = name;
            let message = planned(&[(name, "")]).unwrap_err().to_string();
            assert!(message.contains("safetensors") && message.contains(name) && !message.contains('\n'), "{message}");
        }
        assert!(matches!(planned(&[]), Err(Cause::Missing { .. })));
    }
}
