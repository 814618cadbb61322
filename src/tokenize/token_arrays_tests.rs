//! The decision table of `auto`, the decoding rule, and the names that choose a vocabulary.

use super::*;

/// What a model puts around every text, and how many ids it has.
#[derive(Clone, Copy)]
struct Model {
    prefix: u32,
    suffix: u32,
    rows: usize,
}

const BERT: Model = Model { prefix: 101, suffix: 102, rows: 30522 };
const XLM_R: Model = Model { prefix: 0, suffix: 2, rows: 250_002 };

fn read(ids: &[i64], rules: &Rules, model: Model) -> Result<Reading, RequestError> {
    let frame = Frame { prefix: vec![model.prefix], suffix: vec![model.suffix] };
    let vocabulary = Vocabulary { frame: &frame, rows: model.rows, model: "m" };
    rules.read(ids, InputLocation::at(false, 0), &vocabulary)
}

fn rules(policy: TokenArrays, encoding: Option<TokenEncoding>, name: &str) -> Rules {
    Rules { policy, encoding, requested_model: name.to_owned() }
}

fn auto(ids: &[i64]) -> Result<Reading, RequestError> {
    read(ids, &rules(TokenArrays::Auto, None, "m"), BERT)
}

fn text(ids: &[i64]) -> String {
    match auto(ids) {
        Ok(Reading::Text(text, OpenAiEncoding::Cl100k)) => text,
        other => panic!("expected cl100k text, got {other:?}"),
    }
}

#[test]
fn plain_arrays_are_decoded_as_openai_text() {
    assert_eq!(text(&[15339, 1917]), "hello world");
    assert_eq!(text(&[8134]), "foo");
    assert_eq!(text(&[71, 19010, 385, 91416, 73958, 17161]), "héllo 😀 中文");
    assert_eq!(text(&[100_257]), "<|endoftext|>");
}

#[test]
fn halves_of_a_character_are_trimmed() {
    assert_eq!(text(&[71, 76460]), "h");
    assert_eq!(text(&[222, 71]), "h");
    assert_eq!(text(&[222]), "\u{fffd}");
}

#[test]
fn framed_arrays_are_the_models_own_unless_they_are_text_too() {
    assert_eq!(auto(&[101, 7592, 2088, 102]), Ok(Reading::Ids(vec![101, 7592, 2088, 102])));
    let xlm_r = |encoding| read(&[0, 71, 2], &rules(TokenArrays::Auto, encoding, "m"), XLM_R);
    assert!(matches!(xlm_r(None), Err(RequestError::AmbiguousTokenIds { encoding: "cl100k_base", .. })));
    assert_eq!(xlm_r(Some(TokenEncoding::Model)), Ok(Reading::Ids(vec![0, 71, 2])));
    assert_eq!(xlm_r(Some(TokenEncoding::Cl100k)), Ok(Reading::Text("!h#".to_owned(), OpenAiEncoding::Cl100k)));
}

#[test]
fn ids_outside_the_vocabulary_are_named() {
    for id in [100_256, 100_261, 100_275, 100_277, -1, 4_294_967_296] {
        let error = auto(&[1, id]).unwrap_err();
        let RequestError::TokenId { place, id: named, suggest_model: true, .. } = error else { panic!("{error:?}") };
        assert_eq!((place.to_string().as_str(), named), ("input[0][1]", id));
    }
    let own = |ids: &[i64]| read(ids, &rules(TokenArrays::Model, None, "m"), BERT);
    assert_eq!(own(&[7592]), Ok(Reading::Ids(vec![101, 7592, 102])));
    assert_eq!(own(&[101, 7592, 102]), Ok(Reading::Ids(vec![101, 7592, 102])));
    assert!(matches!(own(&[30522]), Err(RequestError::TokenId { id: 30522, .. })));
}

#[test]
fn the_requested_name_chooses_the_vocabulary() {
    let named = |name| read(&[24912, 2375], &rules(TokenArrays::Auto, None, name), BERT);
    assert_eq!(named("gpt-4o"), Ok(Reading::Text("hello world".to_owned(), OpenAiEncoding::O200k)));
    assert!(matches!(named("text-embedding-3-small"), Ok(Reading::Text(_, OpenAiEncoding::Cl100k))));
    let legacy = named("text-similarity-ada-001").unwrap_err();
    assert!(matches!(legacy, RequestError::TokenId { vocabulary, .. } if vocabulary == "r50k_base"));
}

#[test]
fn a_rejecting_model_rejects_every_reading() {
    let rules = rules(TokenArrays::Reject, Some(TokenEncoding::Model), "m");
    assert_eq!(read(&[101, 102], &rules, BERT), Err(RequestError::TokenArraysRejected));
}
