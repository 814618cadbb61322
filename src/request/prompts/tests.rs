//! Which field wins, which fields contradict each other, and what a role means for a model.

use std::time::Instant;

use super::*;
use crate::request::{EmbedRequest, RawInputs, RawRequest, TokenArrays};

fn limits(prompts: &[(&str, &str)], default: &str) -> RequestLimits {
    let named = prompts.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    RequestLimits {
        max_tokens: 512,
        dimensions: 64,
        matryoshka: false,
        max_inputs: 3,
        max_request_tokens: 1000,
        max_input_bytes: 4096,
        allow_empty_input: false,
        token_arrays: TokenArrays::Auto,
        truncate: None,
        prompts: Prompts { named, default: default.to_owned() },
        max_prompt_bytes: 16,
    }
}

/// The prompt that these fields choose, or `field: allowed` of the refusal.
fn chosen(fields: &[(&str, &str)], limits: &RequestLimits) -> Result<String, String> {
    let mut raw =
        RawRequest { inputs: RawInputs::Texts { single: true, texts: vec!["a".to_owned()] }, ..RawRequest::default() };
    for (field, value) in fields {
        let text = Some((*value).to_owned());
        match *field {
            "prompt" => raw.prompt = text,
            "prompt_name" => raw.prompt_name = text,
            "input_type" => raw.input_type = text,
            "task" => raw.task = text,
            "suffix" => raw.role_suffix = WORDS.iter().map(|(word, _)| *word).find(|word| word == value),
            other => unreachable!("{other}"),
        }
    }
    let request = EmbedRequest::parse("m".to_owned(), raw, limits, Instant::now());
    request.map(|request| request.prompt).map_err(|error| {
        let RequestError::InvalidValue { field, allowed, .. } = error else { unreachable!("{error:?}") };
        format!("{field}: {allowed}")
    })
}

const E5: [(&str, &str); 2] = [("passage", "passage: "), ("query", "query: ")];

#[test]
fn the_nearest_choice_wins() {
    let limits = limits(&[("passage", "p: "), ("query", "q: "), ("other", "o: "), ("none", "")], "d: ");
    for (fields, expected) in [
        (&[][..], "d: "),
        (&[("suffix", "query")], "q: "),
        (&[("task", "retrieval.passage")], "p: "),
        (&[("input_type", "query")], "q: "),
        (&[("input_type", "QUERY")], "q: "),
        (&[("input_type", "query"), ("task", "retrieval.query"), ("suffix", "query")], "q: "),
        (&[("prompt_name", "other")], "o: "),
        (&[("prompt_name", "none")], ""),
        (&[("prompt_name", "other"), ("input_type", "query")], "o: "),
        (&[("prompt", "mine ")], "mine "),
        (&[("prompt", "")], ""),
        (&[("prompt", "mine "), ("input_type", "query"), ("task", "query")], "mine "),
        // Equal choices do not contradict each other.
        (&[("prompt", "o: "), ("prompt_name", "other")], "o: "),
        (&[("prompt", "q: "), ("suffix", "query")], "q: "),
        (&[("prompt_name", "passage"), ("suffix", "passage")], "p: "),
        // A role without a prompt is no reason for the default one, which is for something else.
        (&[("input_type", "classification")], ""),
    ] {
        assert_eq!(chosen(fields, &limits).as_deref(), Ok(expected), "{fields:?}");
    }
}

#[test]
fn contradictions_and_unknown_values_name_what_is_wrong() {
    let limits = limits(&E5, "");
    let suffix = "It contradicts the role 'query' in the name of the model";
    let words = "Supported values: ['query', 'document', 'passage', 'search_query', 'search_document', \
                 'classification', 'clustering', 'retrieval.query', 'retrieval.passage', 'text-matching', 'separation']";
    let names = "Supported values: ['passage', 'query']";
    for (fields, expected) in [
        (&[("prompt", "x"), ("prompt_name", "query")][..], "prompt: It contradicts 'prompt_name'".to_owned()),
        (&[("prompt", ""), ("prompt_name", "query")], "prompt: It contradicts 'prompt_name'".to_owned()),
        (&[("prompt", "x"), ("suffix", "query")], format!("prompt: {suffix}")),
        (&[("prompt_name", "passage"), ("suffix", "query")], format!("prompt_name: {suffix}")),
        (&[("input_type", "passage"), ("suffix", "query")], format!("input_type: {suffix}")),
        (&[("task", "classification"), ("suffix", "query")], format!("task: {suffix}")),
        (&[("input_type", "query"), ("task", "separation")], "task: It contradicts 'input_type'".to_owned()),
        (&[("input_type", "image")], format!("input_type: {words}")),
        (&[("input_type", "")], format!("input_type: {words}")),
        (&[("task", "embed")], format!("task: {words}")),
        // Also behind a choice that would win.
        (&[("prompt", "x"), ("task", "embed")], format!("task: {words}")),
        (&[("prompt_name", "Query")], format!("prompt_name: {names}")),
        (&[("prompt_name", "")], format!("prompt_name: {names}")),
        (&[("prompt", "12345678901234567")], "prompt: At most 16 bytes are allowed".to_owned()),
    ] {
        assert_eq!(chosen(fields, &limits), Err(expected), "{fields:?}");
    }
    assert!(chosen(&[("prompt", "1234567890123456")], &limits).is_ok());
}

#[test]
fn a_model_without_prompts_takes_roles_and_refuses_names() {
    let limits = limits(&[], "");
    for (word, _) in WORDS {
        assert_eq!(chosen(&[("input_type", word)], &limits).as_deref(), Ok(""), "{word}");
    }
    let none = chosen(&[("prompt_name", "query")], &limits);
    assert_eq!(none, Err("prompt_name: This model has no prompts".to_owned()));
    assert_eq!(chosen(&[("prompt", "x: ")], &limits).as_deref(), Ok("x: "));
    // Not even here can a client mean two things.
    assert!(chosen(&[("input_type", "query"), ("suffix", "passage")], &limits).is_err());
}

#[test]
fn a_role_finds_the_prompt_under_the_names_that_models_use() {
    let nomic = [("classification", "c: "), ("clustering", "k: "), ("search_document", "d: "), ("search_query", "q: ")];
    let jina = [("retrieval.passage", "p: "), ("retrieval.query", "q: "), ("separation", "s: "), ("text-matching", "")];
    // sentence-transformers saves every model with an empty `document` and `query`.
    let saved = [("document", ""), ("passage", "p: "), ("query", "q: ")];
    let mteb = [("Classification", "c: "), ("Clustering", "k: "), ("STS", "s: "), ("s2p_query", "q: ")];
    for (prompts, word, expected) in [
        (&E5[..], "query", "query: "),
        (&E5, "search_query", "query: "),
        (&E5, "document", "passage: "),
        (&E5, "retrieval.passage", "passage: "),
        (&E5, "clustering", ""),
        (&nomic, "query", "q: "),
        (&nomic, "passage", "d: "),
        (&nomic, "clustering", "k: "),
        (&nomic, "separation", "k: "),
        (&nomic, "text-matching", ""),
        (&jina, "query", "q: "),
        (&jina, "passage", "p: "),
        (&jina, "clustering", "s: "),
        (&jina, "text-matching", ""),
        (&saved, "query", "q: "),
        (&saved, "passage", "p: "),
        // What `encode_document` gives for such a model.
        (&saved, "document", ""),
        (&saved, "search_document", "p: "),
        (&mteb, "query", "q: "),
        (&mteb, "classification", "c: "),
        (&mteb, "text-matching", "s: "),
        (&mteb, "document", ""),
    ] {
        let found = chosen(&[("input_type", word)], &limits(prompts, "default: "));
        assert_eq!(found.as_deref(), Ok(expected), "{word} of {prompts:?}");
    }
}
