//! Truncation fields against each other, dimensions against the model, and the order of checks.

use std::time::Instant;

use super::*;

fn limits() -> RequestLimits {
    RequestLimits {
        max_tokens: 512,
        dimensions: 64,
        matryoshka: true,
        max_inputs: 3,
        max_request_tokens: 1000,
        max_input_bytes: 4096,
        allow_empty_input: false,
        token_arrays: TokenArrays::Auto,
        truncate: None,
        prompts: Prompts::default(),
        max_prompt_bytes: 64,
    }
}

fn texts(texts: &[&str]) -> RawRequest {
    let texts = texts.iter().map(|text| (*text).to_owned()).collect();
    RawRequest { inputs: RawInputs::Texts { single: false, texts }, ..RawRequest::default() }
}

fn parse(raw: RawRequest, limits: &RequestLimits) -> Result<EmbedRequest, RequestError> {
    EmbedRequest::parse("m".to_owned(), raw, limits, Instant::now())
}

#[test]
fn counts_and_empty_inputs_are_checked_first() {
    let limits = limits();
    assert_eq!(parse(texts(&[]), &limits).unwrap_err(), RequestError::EmptyArray { place: "input".to_owned() });
    assert_eq!(parse(texts(&["a"; 4]), &limits).unwrap_err(), RequestError::TooManyInputs { limit: 3 });
    let empty = parse(texts(&["a", ""]), &limits).unwrap_err();
    assert_eq!(empty, RequestError::EmptyString { place: InputLocation::at(false, 1) });
    let lenient = RequestLimits { allow_empty_input: true, ..limits };
    assert!(parse(texts(&["a", ""]), &lenient).is_ok());
    assert!(parse(texts(&[]), &lenient).is_err());
    let arrays = RawInputs::Tokens { single: false, arrays: vec![vec![1], vec![]] };
    let error = parse(RawRequest { inputs: arrays, ..RawRequest::default() }, &lenient).unwrap_err();
    assert_eq!(error, RequestError::EmptyArray { place: "input[1]".to_owned() });
}

#[test]
fn dimensions_depend_on_the_model() {
    let with = |dimensions, matryoshka| {
        let limits = RequestLimits { matryoshka, ..limits() };
        parse(RawRequest { dimensions: Some(dimensions), ..texts(&["a"]) }, &limits).map(|r| r.dimensions.get())
    };
    assert_eq!(with(8, true), Ok(8));
    assert_eq!(with(64, true), Ok(64));
    assert_eq!(with(64, false), Ok(64));
    assert_eq!(with(65, true), Err(RequestError::DimensionsTooLarge { value: 65, native: 64 }));
    assert_eq!(with(8, false), Err(RequestError::DimensionsUnsupported { native: 64 }));
    for value in [0, -1, i64::MIN] {
        assert_eq!(with(value, true), Err(RequestError::DimensionsTooSmall { value }));
    }
}

#[test]
fn truncation_fields_agree_or_fail() {
    let word = |word: &str| Some(TruncateField::Word(word.to_owned()));
    let side = |value: &str| Some(("truncation_side", value.to_owned()));
    let end = Ok((Some(Side::End), 512));
    let start = Ok((Some(Side::Start), 512));
    let none = Ok((None, 512));
    let bad = |field, value: &str| Err((field, value.to_owned()));
    let flag = |on| Some(TruncateField::Flag(on));
    let cases = [
        (RawRequest::default(), none.clone()),
        (RawRequest { truncate: flag(true), ..Default::default() }, end.clone()),
        (RawRequest { truncate: flag(false), ..Default::default() }, none.clone()),
        (RawRequest { truncate: word("start"), ..Default::default() }, start.clone()),
        (RawRequest { truncate: word("MIDDLE"), ..Default::default() }, bad("truncate", "MIDDLE")),
        (RawRequest { truncation: Some(true), truncation_side: side("LEFT"), ..Default::default() }, start.clone()),
        (RawRequest { truncation_side: side("left"), ..Default::default() }, none),
        (RawRequest { truncation_side: side("up"), ..Default::default() }, bad("truncation_side", "up")),
        (RawRequest { truncate: flag(false), truncation: Some(true), ..Default::default() }, bad("truncation", "true")),
        (
            RawRequest { truncate: word("START"), truncation_side: side("right"), ..Default::default() },
            bad("truncation_side", "right"),
        ),
        (RawRequest { truncate_prompt_tokens: Some(-1), ..Default::default() }, end),
        (RawRequest { truncate_prompt_tokens: Some(7), ..Default::default() }, Ok((Some(Side::End), 7))),
        (RawRequest { truncate_prompt_tokens: Some(0), ..Default::default() }, bad("truncate_prompt_tokens", "0")),
        (RawRequest { truncate_prompt_tokens: Some(513), ..Default::default() }, bad("truncate_prompt_tokens", "513")),
        (
            RawRequest { truncate_prompt_tokens: Some(7), truncation: Some(false), ..Default::default() },
            bad("truncate_prompt_tokens", "7"),
        ),
    ];
    for (raw, expected) in cases {
        let description = format!("{raw:?}");
        let raw = RawRequest { inputs: texts(&["a"]).inputs, ..raw };
        let found = parse(raw, &limits()).map(|request| (request.truncation.side, request.truncation.max_tokens));
        let found = found.map_err(|error| {
            let RequestError::InvalidValue { field, value, .. } = error else { unreachable!("{error:?}") };
            (field, value)
        });
        assert_eq!(found, expected, "{description}");
    }
}

#[test]
fn the_operators_default_applies_until_the_request_says_otherwise() {
    let limits = RequestLimits { truncate: Some(Side::Start), ..limits() };
    let side = |raw: RawRequest| {
        let raw = RawRequest { inputs: texts(&["a"]).inputs, ..raw };
        parse(raw, &limits).unwrap().truncation.side
    };
    assert_eq!(side(RawRequest::default()), Some(Side::Start));
    assert_eq!(side(RawRequest { truncation: Some(false), ..Default::default() }), None);
    assert_eq!(
        side(RawRequest { truncate: Some(TruncateField::Word("END".into())), ..Default::default() }),
        Some(Side::End)
    );
}
