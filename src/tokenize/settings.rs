//! The files beside `tokenizer.json` that change it: `tokenizer_config.json`, `special_tokens_map.json`,
//! `added_tokens.json`.
//!
//! transformers reads the tokenizer and then lets its class have the last word: BERT's decides about case, accents and
//! Chinese characters, RoBERTa's about the space before a text, those of SentencePiece about white space, and all of
//! them add the special tokens that they are told of. Where the files disagree, vectors follow the class (`AutoTokenizer.from_pretrained` of transformers 4 and 5), so the
//! same is done here. Classes that have no opinion, such as `PreTrainedTokenizerFast`, leave the tokenizer as it is.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use crate::small_file;
use serde_json::Value;
use tokenizers::normalizers::{self, Lowercase, NFKD, Replace, StripAccents};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::{AddedToken, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

/// Configurations that list every added token have some hundred kilobytes.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// What the files beside a tokenizer say.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub class: Class,
    pub normalizer: NormalizerSettings,
    /// RoBERTa's and SentencePiece's: whether a text begins with a space of its own.
    prefix_space: bool,
    named: BTreeMap<String, AddedToken>,
    /// Special tokens without a role.
    extra: Vec<AddedToken>,
    /// Tokens by id, with the flags that count.
    listed: BTreeMap<u32, AddedToken>,
}

/// The classes that change what they read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Bert,
    MpNet,
    Roberta,
    /// XLM-R's and CamemBERT's.
    SentencePiece,
    T5,
    /// SentencePiece behind a normaliser of its own.
    Albert,
    /// Leaves the tokenizer as it is.
    Other,
}

/// BERT's choices, MPNet's, and ALBERT's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NormalizerSettings {
    pub lower_case: bool,
    /// None: as `lower_case`. ALBERT's class always says.
    pub strip_accents: Option<bool>,
    pub chinese_characters: bool,
}

impl Class {
    fn of(name: &str) -> Self {
        match name.strip_suffix("Fast").unwrap_or(name) {
            "BertTokenizer" | "DistilBertTokenizer" | "ElectraTokenizer" => Self::Bert,
            "MPNetTokenizer" => Self::MpNet,
            "RobertaTokenizer" => Self::Roberta,
            "XLMRobertaTokenizer" | "CamembertTokenizer" => Self::SentencePiece,
            "T5Tokenizer" => Self::T5,
            "AlbertTokenizer" => Self::Albert,
            _ => Self::Other,
        }
    }

    /// The class of a model whose files name none.
    fn of_model(model_type: &str) -> Self {
        match model_type {
            "bert" | "distilbert" | "electra" | "ernie" | "nomic_bert" => Self::Bert,
            "mpnet" => Self::MpNet,
            "roberta" => Self::Roberta,
            "xlm-roberta" | "camembert" | "gte" => Self::SentencePiece,
            "t5" => Self::T5,
            "albert" => Self::Albert,
            _ => Self::Other,
        }
    }

    /// Special tokens that the class knows without being told.
    const fn names(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Bert => &[
                ("unk_token", "[UNK]"),
                ("sep_token", "[SEP]"),
                ("pad_token", "[PAD]"),
                ("cls_token", "[CLS]"),
                ("mask_token", "[MASK]"),
            ],
            Self::MpNet => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("sep_token", "</s>"),
                ("cls_token", "<s>"),
                ("unk_token", "[UNK]"),
                ("pad_token", "<pad>"),
                ("mask_token", "<mask>"),
            ],
            Self::Roberta => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("sep_token", "</s>"),
                ("cls_token", "<s>"),
                ("unk_token", "<unk>"),
                ("pad_token", "<pad>"),
                ("mask_token", "<mask>"),
            ],
            Self::Albert => &[
                ("bos_token", "[CLS]"),
                ("eos_token", "[SEP]"),
                ("sep_token", "[SEP]"),
                ("cls_token", "[CLS]"),
                ("unk_token", "<unk>"),
                ("pad_token", "<pad>"),
                ("mask_token", "[MASK]"),
            ],
            // Their files name them.
            Self::SentencePiece | Self::T5 | Self::Other => &[],
        }
    }
}

/// Classes that divide texts into words by programs of their own, such as `MeCab`, or know a file format that nobody else reads.
const PYTHON: [&str; 3] = ["BertJapaneseTokenizer", "PhobertTokenizer", "BertweetTokenizer"];

/// The roles that a special token may have.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl Settings {
    /// Reads what lies in `folder`; a file that is not there says nothing.
    ///
    /// # Errors
    /// A file that cannot be read or is not JSON, named.
    pub fn read(folder: &Path) -> Result<Self, String> {
        let config = json(folder, "tokenizer_config.json")?;
        let model = json(folder, "config.json")?;
        let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
        let named = text(&config, "tokenizer_class").or_else(|| text(&model, "tokenizer_class"));
        if let Some(python) = PYTHON.iter().find(|python| named.as_deref() == Some(python)) {
            return Err(format!(
                "{python} is Python code, and no tokenizer.json does what it does: it cannot be served"
            ));
        }
        let class = match named {
            Some(name) => Class::of(&name),
            None => text(&model, "model_type").map_or(Class::Other, |name| Class::of_model(&name)),
        };
        let switch = |field: &str| config.get(field).and_then(Value::as_bool);
        let mut settings = Self {
            class,
            normalizer: NormalizerSettings {
                lower_case: switch("do_lower_case").unwrap_or(true),
                strip_accents: if class == Class::Albert {
                    Some(!switch("keep_accents").unwrap_or(false))
                } else {
                    switch("strip_accents")
                },
                chinese_characters: switch("tokenize_chinese_chars").unwrap_or(true),
            },
            prefix_space: switch("add_prefix_space").unwrap_or(matches!(class, Class::SentencePiece | Class::Albert))
                || class == Class::T5,
            named: BTreeMap::new(),
            extra: Vec::new(),
            listed: BTreeMap::new(),
        };
        for (role, content) in class.names() {
            settings.named.insert((*role).to_owned(), special(content));
        }
        settings.name(&config);
        if let Some(listed) = config.get("added_tokens_decoder").and_then(Value::as_object) {
            let entries = listed.iter().filter_map(|(id, value)| Some((id.parse().ok()?, token(value, false)?)));
            settings.listed.extend(entries);
        } else {
            // Files of before 2023 have the flags elsewhere.
            settings.name(&json(folder, "special_tokens_map.json")?);
            settings.list(&json(folder, "added_tokens.json")?);
        }
        Ok(settings)
    }

    /// The token of a role.
    pub fn named(&self, role: &str) -> Option<&str> {
        self.named.get(role).map(|token| token.content.as_str())
    }

    /// Takes over the special tokens that `file` names.
    fn name(&mut self, file: &Value) {
        for role in ROLES {
            match file.get(role) {
                None => {}
                Some(Value::Null) => {
                    self.named.remove(role);
                }
                Some(value) => {
                    if let Some(token) = token(value, true) {
                        self.named.insert(role.to_owned(), token);
                    }
                }
            }
        }
        for field in ["additional_special_tokens", "extra_special_tokens"] {
            let field = file.get(field);
            let listed = field.and_then(Value::as_array).into_iter().flatten();
            let keyed = field.and_then(Value::as_object).into_iter().flat_map(|tokens| tokens.values());
            self.extra.extend(listed.chain(keyed).filter_map(|value| token(value, true)));
        }
    }

    /// Takes over `added_tokens.json`: contents and ids.
    fn list(&mut self, file: &Value) {
        for (content, id) in file.as_object().into_iter().flatten() {
            let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else { continue };
            let is_special = self.named.values().chain(&self.extra).any(|token| token.content == *content);
            self.listed.insert(id, AddedToken::from(content.as_str(), is_special));
        }
    }

    /// Makes of a tokenizer what its class would make of it, whose model may be a Unigram that was taken out; `vocab_rows` is
    /// the size of the embedding table.
    ///
    /// # Errors
    /// Whatever the library says.
    pub fn apply(&self, tokenizer: &mut Tokenizer, was_unigram: bool, vocab_rows: usize) -> Result<(), String> {
        let in_words = |error: tokenizers::Error| error.to_string();
        if matches!(self.class, Class::Bert | Class::MpNet)
            && let Some(NormalizerWrapper::BertNormalizer(normalizer)) = tokenizer.get_normalizer()
        {
            let mut changed = *normalizer;
            changed.lowercase = self.normalizer.lower_case;
            changed.strip_accents = self.normalizer.strip_accents;
            changed.handle_chinese_chars = self.normalizer.chinese_characters;
            tokenizer.with_normalizer(Some(changed)).map_err(in_words)?;
        }
        if self.class == Class::Roberta
            && let Some(PreTokenizerWrapper::ByteLevel(splitter)) = tokenizer.get_pre_tokenizer()
        {
            let changed = splitter.add_prefix_space(self.prefix_space);
            tokenizer.with_pre_tokenizer(Some(changed));
        }
        if matches!(self.class, Class::SentencePiece | Class::T5 | Class::Albert)
            && (was_unigram || matches!(tokenizer.get_model(), ModelWrapper::Unigram(_)))
        {
            self.split_at_white_space(tokenizer).map_err(in_words)?;
        }
        self.add_tokens(tokenizer, vocab_rows)
    }

    /// Of the file's own normaliser only the table of characters is left, behind what the class does itself, and a text is split at white space before pieces
    /// are marked: files that were converted otherwise have a piece for white space at the end of a text.
    fn split_at_white_space(&self, tokenizer: &mut Tokenizer) -> tokenizers::Result<()> {
        let is_table = |normalizer: &NormalizerWrapper| matches!(normalizer, NormalizerWrapper::Precompiled(_));
        let table = match tokenizer.get_normalizer() {
            Some(NormalizerWrapper::Sequence(parts)) => parts.as_ref().iter().find(|part| is_table(part)).cloned(),
            Some(only) if is_table(only) => Some(only.clone()),
            _ => None,
        };
        if self.class == Class::Albert {
            let parts = self.albert_normalizers()?.into_iter().chain(table).collect();
            tokenizer.with_normalizer(Some(normalizers::Sequence::new(parts)))?;
        } else {
            tokenizer.with_normalizer(table)?;
        }
        let scheme = if self.prefix_space { PrependScheme::Always } else { PrependScheme::Never };
        let marked = Metaspace::new('▁', scheme, true);
        tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![WhitespaceSplit.into(), marked.into()])));
        Ok(())
    }

    /// What ALBERT's class does to a text before the table of characters: plain quotes, no accents, small letters.
    fn albert_normalizers(&self) -> tokenizers::Result<Vec<NormalizerWrapper>> {
        let mut parts = vec![Replace::new("``", "\"")?.into(), Replace::new("''", "\"")?.into()];
        if self.normalizer.strip_accents != Some(false) {
            parts.extend([NFKD.into(), StripAccents.into()]);
        }
        if self.normalizer.lower_case {
            parts.push(Lowercase.into());
        }
        Ok(parts)
    }

    /// Special tokens that the tokenizer's own file does not know, and flags that it has otherwise. A token beyond the
    /// embedding table is left out: the reference fails on every text that has it.
    fn add_tokens(&self, tokenizer: &mut Tokenizer, vocab_rows: usize) -> Result<(), String> {
        let known: HashSet<String> =
            tokenizer.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
        let named = self.named.values().chain(&self.extra).filter(|token| !known.contains(&token.content));
        let mut next = tokenizer.get_vocab_size(true);
        let (mut tokens, mut seen) = (Vec::new(), HashSet::new());
        for token in self.listed.values().chain(named) {
            if !seen.insert(&token.content) {
                continue;
            }
            if tokenizer.token_to_id(&token.content).is_none() {
                if next >= vocab_rows {
                    tracing::info!(token = token.content, "a token without a row in the embedding table is left out");
                    continue;
                }
                next += 1;
            }
            tokens.push(token.clone());
        }
        tokenizer.add_tokens(tokens).map(|_| ()).map_err(|error| error.to_string())
    }
}

fn special(content: &str) -> AddedToken {
    AddedToken::from(content, true)
}

/// A token as the files have it: its content, or an object with its flags. `is_special` where nothing else is said.
fn token(value: &Value, is_special: bool) -> Option<AddedToken> {
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    let content = value.as_str().or_else(|| value.get("content").and_then(Value::as_str))?;
    if content.is_empty() {
        return None;
    }
    let is_special = flag("special").unwrap_or(is_special);
    let mut token = AddedToken::from(content, is_special);
    token.lstrip = flag("lstrip").unwrap_or(false);
    token.rstrip = flag("rstrip").unwrap_or(false);
    token.single_word = flag("single_word").unwrap_or(false);
    token.normalized = flag("normalized").unwrap_or(!is_special);
    Some(token)
}

/// A JSON file, or null where there is none.
fn json(folder: &Path, name: &str) -> Result<Value, String> {
    let path = folder.join(name);
    let bytes = match small_file::read(&path, MAX_FILE_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Value::Null),
        Err(error) => return Err(format!("{name}: {error}")),
    };
    serde_json::from_slice(&bytes).map_err(|error| format!("{name}: {error}"))
}
