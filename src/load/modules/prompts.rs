//! `config_sentence_transformers.json`: the model's own prompts, and what the catalogue and the operator make of them.

use std::path::{Path, PathBuf};

use serde_json::Value;
use thiserror::Error;

use crate::catalog::ModelSpec;
use crate::config::DefaultPrompt;
use crate::excerpt::excerpt;
use crate::load::modules::{ModulesError, read_json};
use crate::request::Prompts;

/// What the model's own file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnPrompts {
    /// Name and text.
    pub named: Vec<(String, String)>,
    pub default_name: Option<String>,
}

/// A default prompt that the model does not have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{setting} = {}: the model's prompts are [{}]", excerpt(.name), excerpt(&.known.join(", ")))]
pub struct NoSuchPrompt {
    setting: &'static str,
    name: String,
    known: Vec<String>,
}

impl OwnPrompts {
    pub(super) fn read(folder: &Path) -> Result<Self, ModulesError> {
        let path = folder.join("config_sentence_transformers.json");
        let Some(config) = read_json(&path)? else { return Ok(Self::default()) };
        let format = |reason: &str| ModulesError::Format { path: path.clone(), reason: reason.to_owned() };
        let named = match config.get("prompts") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Object(prompts)) => prompts
                .iter()
                .map(|(name, text)| {
                    let text = if text.is_null() { Some("") } else { text.as_str() };
                    let text = text.ok_or_else(|| format("prompts holds something that is no text"))?;
                    Ok((name.clone(), text.to_owned()))
                })
                .collect::<Result<_, _>>()?,
            Some(_) => return Err(format("prompts is no object")),
        };
        let default_name = match config.get("default_prompt_name") {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => Some(name.clone()),
            Some(_) => return Err(format("default_prompt_name is no text")),
        };
        let prompts = Self { named, default_name };
        // sentence-transformers gives every model an empty `query` and `document`; any other name must exist.
        match prompts.default_name.as_deref() {
            None | Some("query" | "document") => Ok(prompts),
            Some(name) if prompts.named.iter().any(|(known, _)| known == name) => Ok(prompts),
            Some(name) => {
                Err(ModulesError::Format { path, reason: format!("prompts has no {name}, the default_prompt_name") })
            }
        }
    }

    /// The catalogue's prompts replace and extend the model's own. The default prompt is the catalogue's, or else the
    /// operator's, or else the model's own.
    ///
    /// # Errors
    /// The catalogue or the operator names a default prompt that does not exist.
    pub fn resolve(&self, spec: &ModelSpec, default: Option<&DefaultPrompt>) -> Result<Prompts, NoSuchPrompt> {
        let mut prompts = Prompts { named: self.named.clone(), default: String::new() };
        for (name, text) in &spec.prompts {
            match prompts.named.iter_mut().find(|(known, _)| known == name) {
                Some((_, own)) => own.clone_from(text),
                None => prompts.named.push((name.clone(), text.clone())),
            }
        }
        let find = |setting, name: &str| {
            let known = || prompts.named.iter().map(|(name, _)| name.clone()).collect();
            let missing = || NoSuchPrompt { setting, name: name.to_owned(), known: known() };
            prompts.get(name).map(str::to_owned).ok_or_else(missing)
        };
        prompts.default = match (&spec.default_prompt_name, default, &self.default_name) {
            (Some(name), _, _) => find("default_prompt_name", name)?,
            (None, Some(DefaultPrompt::Name(name)), _) => find("--default-prompt-name", name)?,
            (None, Some(DefaultPrompt::Text(text)), _) => text.clone(),
            (None, None, Some(name)) => prompts.get(name).unwrap_or_default().to_owned(),
            (None, None, None) => String::new(),
        };
        Ok(prompts)
    }
}

/// Whether the model's files list lengths that its vectors may be cut to.
pub(super) fn declares_matryoshka(folder: &Path) -> Result<bool, ModulesError> {
    let files: [PathBuf; 2] = ["config_sentence_transformers.json", "config.json"].map(|name| folder.join(name));
    for path in files {
        let Some(config) = read_json(&path)? else { continue };
        if config.get("matryoshka_dimensions").and_then(Value::as_array).is_some_and(|lengths| !lengths.is_empty()) {
            return Ok(true);
        }
    }
    Ok(false)
}
