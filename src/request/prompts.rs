//! Which text goes before every input: a model's prompts, and the request fields that choose one of them.
//!
//! From the nearest to the farthest: `prompt` (the text itself), `prompt_name` (a prompt by its exact name),
//! `input_type` or `task` (a role, in the words of several APIs), a suffix of the model name (a role), the model's
//! default prompt. A role means the prompt of the same name, or else the first prompt with a text among the names that
//! [`Role::names`] lists, or else no prompt: a role always replaces the default prompt, as sentence-transformers'
//! `encode_query` and `encode_document` do.

use crate::request::{RequestError, RequestLimits};

/// A model's prompts: from its own files, the catalogue and the operator.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prompts {
    /// Name and text, in the order of listing. A text may be empty.
    pub named: Vec<(String, String)>,
    /// For requests that choose nothing; empty: none.
    pub default: String,
}

/// What a text is for, whatever a client's API calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Query,
    Document,
    Classification,
    Clustering,
    Similarity,
}

/// The words of `input_type` and `task`: NIM's and Voyage's, Cohere's, Jina's.
const WORDS: [(&str, Role); 11] = [
    ("query", Role::Query),
    ("document", Role::Document),
    ("passage", Role::Document),
    ("search_query", Role::Query),
    ("search_document", Role::Document),
    ("classification", Role::Classification),
    ("clustering", Role::Clustering),
    ("retrieval.query", Role::Query),
    ("retrieval.passage", Role::Document),
    ("text-matching", Role::Similarity),
    ("separation", Role::Clustering),
];

/// The role that an operator or a request means, as one of the words that requests may use.
pub fn known_role(word: &str) -> Option<&'static str> {
    WORDS.iter().find(|(known, _)| known.eq_ignore_ascii_case(word)).map(|(known, _)| *known)
}

/// The fields that choose a prompt, types checked, values not.
pub(super) struct PromptFields {
    pub(super) prompt: Option<String>,
    pub(super) prompt_name: Option<String>,
    pub(super) input_type: Option<String>,
    pub(super) task: Option<String>,
    /// The role that the model name ends with, or that the caller's key implies: one of [`WORDS`].
    pub(super) suffix: Option<&'static str>,
}

/// A role, and the word it was asked for with.
#[derive(Debug, Clone)]
struct Asked {
    word: String,
    role: Role,
}

impl Role {
    fn of(word: &str) -> Option<Self> {
        WORDS.iter().find(|(known, _)| known.eq_ignore_ascii_case(word)).map(|(_, role)| *role)
    }

    /// The names under which models publish a prompt of this meaning, most usual first; sentence-transformers' own
    /// come before all others.
    const fn names(self) -> &'static [&'static str] {
        match self {
            Self::Query => &["query", "search_query", "retrieval.query", "retrieval-query", "s2p_query", "s2p"],
            Self::Document => &[
                "document",
                "passage",
                "corpus",
                "search_document",
                "retrieval.passage",
                "retrieval.document",
                "retrieval-document",
            ],
            Self::Classification => &["classification"],
            Self::Clustering => &["clustering", "separation"],
            Self::Similarity => &["text-matching", "sts", "s2s_query", "s2s"],
        }
    }
}

impl Prompts {
    /// The prompt of exactly this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(known, _)| known == name).map(|(_, text)| text.as_str())
    }

    /// The prompt that a role means for this model; empty when it has none of that meaning.
    fn of_role<'p>(&'p self, asked: &'p Asked) -> &'p str {
        // A prompt that is named like the word was asked for by its name, also when it is empty.
        let same_word = self.spelt(&asked.word).next();
        let same_meaning = || {
            let mut candidates = asked.role.names().iter().flat_map(|name| self.spelt(name));
            candidates.find(|text| !text.is_empty())
        };
        same_word.or_else(same_meaning).unwrap_or_default()
    }

    /// The texts of the prompts of this name in any case of letters.
    fn spelt<'p>(&'p self, name: &'p str) -> impl Iterator<Item = &'p str> {
        let named = self.named.iter().filter(move |(known, _)| known.eq_ignore_ascii_case(name));
        named.map(|(_, text)| text.as_str())
    }

    fn known(&self) -> String {
        if self.named.is_empty() {
            return "This model has no prompts".to_owned();
        }
        supported(self.named.iter().map(|(name, _)| name.as_str()))
    }
}

impl PromptFields {
    /// The text to put before every input of the request.
    pub(super) fn resolve(self, limits: &RequestLimits) -> Result<String, RequestError> {
        let prompts = &limits.prompts;
        let suffix = self.suffix.and_then(|word| Some(Asked { word: word.to_owned(), role: Role::of(word)? }));
        let asked = self.role(suffix.as_ref())?;
        let named = match &self.prompt_name {
            None => None,
            Some(name) => {
                let unknown = || refused("prompt_name", name.clone(), prompts.known());
                Some(prompts.get(name).ok_or_else(unknown)?)
            }
        };
        if let Some(prompt) = &self.prompt {
            // Not its text, which is the client's own and may be long.
            let refused = |why: String| Err(refused("prompt", format!("({} bytes)", prompt.len()), why));
            if prompt.len() > limits.max_prompt_bytes {
                return refused(format!("At most {} bytes are allowed", limits.max_prompt_bytes));
            }
            if named.is_some_and(|named| named != prompt) {
                return refused("It contradicts 'prompt_name'".to_owned());
            }
        }
        let chosen = self.prompt.as_deref().or(named);
        if let (Some(chosen), Some(suffix)) = (chosen, &suffix)
            && prompts.of_role(suffix) != chosen
        {
            let (field, value) = match self.prompt_name {
                Some(name) => ("prompt_name", name),
                None => ("prompt", format!("({} bytes)", chosen.len())),
            };
            return Err(refused(field, value, contradicts_suffix(suffix)));
        }
        let by_role = || asked.as_ref().map(|asked| prompts.of_role(asked));
        Ok(chosen.or_else(by_role).unwrap_or(&prompts.default).to_owned())
    }

    /// The role that `input_type`, `task` and the suffix agree on.
    fn role(&self, suffix: Option<&Asked>) -> Result<Option<Asked>, RequestError> {
        let parse = |field: &'static str, value: &Option<String>| match value {
            None => Ok(None),
            Some(word) => match Role::of(word) {
                Some(role) => Ok(Some(Asked { word: word.clone(), role })),
                None => Err(refused(field, word.clone(), supported(WORDS.iter().map(|(word, _)| *word)))),
            },
        };
        let (input_type, task) = (parse("input_type", &self.input_type)?, parse("task", &self.task)?);
        if let (Some(input_type), Some(task)) = (&input_type, &task)
            && input_type.role != task.role
        {
            return Err(refused("task", task.word.clone(), "It contradicts 'input_type'".to_owned()));
        }
        for (field, asked) in [("input_type", &input_type), ("task", &task)] {
            if let (Some(asked), Some(suffix)) = (asked, suffix)
                && asked.role != suffix.role
            {
                return Err(refused(field, asked.word.clone(), contradicts_suffix(suffix)));
            }
        }
        Ok(input_type.or(task).or_else(|| suffix.cloned()))
    }
}

fn contradicts_suffix(suffix: &Asked) -> String {
    format!("It contradicts the role '{}' in the name of the model", suffix.word)
}

fn supported<'a>(values: impl Iterator<Item = &'a str>) -> String {
    let values: Vec<String> = values.map(|value| format!("'{value}'")).collect();
    format!("Supported values: [{}]", values.join(", "))
}

fn refused(field: &'static str, value: String, allowed: String) -> RequestError {
    RequestError::InvalidValue { field, value, allowed }
}

#[cfg(test)]
mod tests;
