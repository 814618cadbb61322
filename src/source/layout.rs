//! Which files of a repository make up a model: an allow-list by name, the same for every source.
//!
//! `plan` works on a `Listing`, which a Hub repository, a wheel and a folder all can give. It reads modules.json and
//! the index of sharded weights, and refuses any path in them that is not a plain relative name. Weights come last in
//! the plan: a folder that holds the weights holds everything, which is how an interrupted download is told from a
//! finished one. Nothing that can run code is ever named.

mod foreign;

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::catalog::id::RelPath;
use crate::excerpt::excerpt;
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
    plan.tokenizer(listing)?;
    for name in OPTIONAL.into_iter().chain(ENCODER_SETTINGS) {
        plan.offer(listing, RelPath::parse(name)?);
    }
    let list = RelPath::parse(MODULES)?;
    let modules = if plan.small.contains(&list) { parse_modules(&listing.read(&list)?)? } else { Vec::new() };
    for module in &modules {
        plan.module(listing, module)?;
    }
    let weights = plan.weights(listing);
    if weights.is_ok() && plan.missing.is_empty() {
        return Ok(Files { small: plan.small, weights: plan.weights });
    }
    // What lacks a file is often another kind of model, which is more to the point.
    if let Some(cause) = foreign::explain(listing, &modules, &plan.missing) {
        return Err(cause);
    }
    weights?;
    Err(Cause::Missing { files: plan.missing })
}

/// Optional files that are not there.
pub(super) fn absent(listing: &dyn Listing) -> Vec<&'static str> {
    let is_absent = |name: &&'static str| RelPath::parse(name).is_ok_and(|file| !listing.has(&file));
    OPTIONAL.iter().chain(&ENCODER_SETTINGS[..1]).copied().filter(is_absent).collect()
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

// === impl Module ===

impl Module {
    fn is_at_root(&self) -> bool {
        matches!(self.path.as_str(), "" | "." | "./")
    }

    /// Its class, whose package changed over the years.
    fn class(&self) -> &str {
        self.kind.rsplit('.').next().unwrap_or_default()
    }
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

    /// `tokenizer.json`, or BERT's list of words where there is none.
    fn tokenizer(&mut self, listing: &dyn Listing) -> Result<(), Cause> {
        let words = RelPath::parse(WORD_LIST)?;
        if !listing.has(&RelPath::parse(TOKENIZER)?) && self.offer(listing, words) {
            return Ok(());
        }
        self.require(listing, TOKENIZER)
    }

    /// One module of a sentence-transformers pipeline; the encoder itself lies at the root.
    fn module(&mut self, listing: &dyn Listing, module: &Module) -> Result<(), Cause> {
        if module.is_at_root() {
            return Ok(());
        }
        let folder = RelPath::parse(module.path.strip_suffix('/').unwrap_or(&module.path))?;
        let config = format!("{folder}/config.json");
        let weights = RelPath::parse(&format!("{folder}/model.safetensors"))?;
        match module.class() {
            // Mostly without settings; some exports leave an empty folder, some none.
            "Normalize" => {
                self.offer(listing, RelPath::parse(&config)?);
            }
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
        let here =
            |name: &&String| name.strip_prefix(folder).is_some_and(|file| !file.contains('/') && is_refused(file));
        let names = listing.names();
        // Beside the weights there may lie others, of heads that we do not use or for other programs: what the conversion
        // bot converts comes first.
        let refused = names.iter().filter(here).min_by_key(|name| (!name.ends_with(PICKLE), !is_pickle(name)));
        if let Some(name) = refused {
            return Err(Cause::Weights { found: excerpt(name) });
        }
        self.missing.push(format!("{folder}{WEIGHTS}"));
        Ok(())
    }
}

/// Whether weights of this name are in a format that is not read.
fn is_refused(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    REFUSED_ENDINGS.iter().any(|ending| name.ends_with(ending))
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

const MODULES: &str = "modules.json";
const TOKENIZER: &str = "tokenizer.json";
const WORD_LIST: &str = "vocab.txt";
const WEIGHTS: &str = "model.safetensors";
pub(super) const WEIGHT_INDEX: &str = "model.safetensors.index.json";
/// What sentence-transformers asks of the encoder and of its tokenizer; older exports name the file after the architecture.
/// sentence-transformers takes the first that says anything.
pub const ENCODER_SETTINGS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];
/// Taken where they exist, beside [`ENCODER_SETTINGS`].
const OPTIONAL: [&str; 5] = [
    MODULES,
    "config_sentence_transformers.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];
/// Endings of weights that are pickles or belong to engines we do not have.
const REFUSED_ENDINGS: [&str; 11] =
    [".bin", ".bin.index.json", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx"];
/// What `PyTorch` models are called on the Hub.
const PICKLE: &str = "pytorch_model.bin";
const PICKLE_ENDINGS: [&str; 2] = [".bin", ".bin.index.json"];
/// Real pipelines have three or four.
const MAX_MODULES: usize = 32;
/// Real models have fewer than a hundred.
const MAX_SHARDS: usize = 1_000;
/// A small file is read whole into memory; tokenizers of large vocabularies have some 20 MB, but only modules.json and
/// the weight index are read here.
pub(super) const MAX_SMALL_BYTES: u64 = 16 << 20;

#[cfg(test)]
mod tests;
