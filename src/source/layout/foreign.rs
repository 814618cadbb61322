//! Repositories that are no encoder with safetensors and `tokenizer.json`: what they are instead, for the message.

use crate::excerpt::excerpt;
use crate::source::error::Cause;
use crate::source::layout::{Listing, MODULES, Module, TOKENIZER, WEIGHTS, is_refused};

/// What a repository is that lacks some files, if it shows.
pub(super) fn explain(listing: &dyn Listing, modules: &[Module], missing: &[String]) -> Option<Cause> {
    let unsupported = |file: &str, what: String| Some(Cause::Unsupported { file: file.to_owned(), what });
    if let Some(first) = modules.first() {
        if first.class() != "Transformer" {
            return unsupported(MODULES, format!("type = {} is not implemented", excerpt(&first.kind)));
        }
        if !first.is_at_root() {
            let path = excerpt(&first.path);
            let what = format!("path = {path} for the Transformer is not implemented; it is expected at the root");
            return unsupported(MODULES, what);
        }
    }
    let names = listing.names();
    if names.iter().any(|name| name == ADAPTER) {
        let what = "an adapter (PEFT, LoRA) is not implemented; merge it into its base model and serve that";
        return unsupported(ADAPTER, what.to_owned());
    }
    let lacks = |file: &str| missing.iter().any(|missing| missing == file);
    if lacks(TOKENIZER)
        && let Some(name) = names.iter().find(|name| VOCABULARIES.contains(&name.as_str()))
    {
        let what = "is not read; a tokenizer.json is needed, which AutoTokenizer.from_pretrained(\"...\") makes of it and \
                    save_pretrained(\"folder\") writes";
        return unsupported(name, what.to_owned());
    }
    // Formats of other engines lie in folders of their own.
    let other = names.into_iter().find(|name| name.contains('/') && is_refused(name)).filter(|_| lacks(WEIGHTS));
    other.map(|name| Cause::Weights { found: excerpt(&name) })
}

const ADAPTER: &str = "adapter_config.json";
/// Vocabularies of tokenizers that are not read from them.
const VOCABULARIES: [&str; 4] = ["sentencepiece.bpe.model", "spiece.model", "sentencepiece.model", "merges.txt"];
