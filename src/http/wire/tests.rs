//! Types and their places, shapes of `input`, and what is no JSON.

use super::*;
use crate::request::RawInputs;

const CAPS: Caps = Caps { max_inputs: 4, max_request_tokens: 10 };

fn read(body: &str) -> WireRequest {
    parse(body.as_bytes(), CAPS).unwrap()
}

/// `place: expected, got` of a wrong type.
fn fault(body: &str) -> String {
    let error = parse(body.as_bytes(), CAPS).unwrap_err();
    let ApiError::WrongType { place, expected, got } = error else { panic!("{error:?}") };
    format!("{place}: {expected}, {got}")
}

/// Why it is no JSON of ours.
fn syntax(body: &[u8]) -> String {
    let error = parse(body, CAPS).unwrap_err();
    let ApiError::Json { reason } = error else { panic!("{error:?}") };
    reason
}

fn input(body: &str) -> RawInputs {
    read(&format!("{{\"input\":{body}}}")).raw.inputs
}

fn texts(single: bool, texts: &[&str]) -> RawInputs {
    RawInputs::Texts { single, texts: texts.iter().map(|text| (*text).to_owned()).collect() }
}

#[test]
fn element_0_decides_the_shape() {
    assert_eq!(input("\"a\\u00e9\\n\""), texts(true, &["aé\n"]));
    assert_eq!(input(r#"["a","","b"]"#), texts(false, &["a", "", "b"]));
    assert_eq!(input("[]"), texts(false, &[]));
    assert_eq!(input("[1,-2]"), RawInputs::Tokens { single: true, arrays: vec![vec![1, -2]] });
    assert_eq!(input("[[1],[]]"), RawInputs::Tokens { single: false, arrays: vec![vec![1], vec![]] });
    let saturated = vec![i64::MAX, i64::MIN, i64::MAX, i64::MAX];
    let numbers = "[18446744073709551615,-99999999999999999999,4e30,9223372036854775808]";
    assert_eq!(input(numbers), RawInputs::Tokens { single: true, arrays: vec![saturated] });
}

#[test]
fn the_first_odd_item_is_named() {
    for (input, expected) in [
        ("5", "input: a string or an array, an integer"),
        ("1.5", "input: a string or an array, a number with a fraction"),
        ("{\"a\":[1]}", "input: a string or an array, an object"),
        ("true", "input: a string or an array, a boolean"),
        ("[\"a\",1]", "input[1]: a string, an integer"),
        ("[1,\"a\"]", "input[1]: an integer, a string"),
        ("[[1],\"a\"]", "input[1]: an array of integers, a string"),
        ("[[1],2]", "input[1]: an array of integers, an integer"),
        ("[\"a\",[1],3]", "input[1]: a string, an array"),
        ("[null]", "input[0]: a string, an integer or an array of integers, null"),
        ("[\"a\",null]", "input[1]: a string, null"),
        ("[\"a\",{\"b\":{}}]", "input[1]: a string, an object"),
        ("[[\"a\"]]", "input[0][0]: an integer, a string"),
        ("[[1],[2,[3]]]", "input[1][1]: an integer, an array"),
        ("[[1.5]]", "input[0][0]: an integer, a number with a fraction"),
        ("[1,2.0]", "input[1]: an integer, a number with a fraction"),
        ("[1.5]", "input[0]: an integer, a number with a fraction"),
        ("[true]", "input[0]: a string, an integer or an array of integers, a boolean"),
    ] {
        assert_eq!(fault(&format!("{{\"input\":{input}}}")), expected);
    }
}

#[test]
fn known_fields_have_types_and_unknown_ones_do_not_matter() {
    for (field, value, expected) in [
        ("model", "123", "model: a string, an integer"),
        ("encoding_format", "1", "encoding_format: a string, an integer"),
        ("dimensions", "1.5", "dimensions: an integer, a number with a fraction"),
        ("dimensions", "\"8\"", "dimensions: an integer, a string"),
        ("dimensions", "[8]", "dimensions: an integer, an array"),
        ("user", "{}", "user: a string, an object"),
        ("truncate", "1", "truncate: a boolean or a string, an integer"),
        ("truncation", "\"yes\"", "truncation: a boolean, a string"),
        ("truncate_prompt_tokens", "true", "truncate_prompt_tokens: an integer, a boolean"),
        ("truncation_side", "false", "truncation_side: a string, a boolean"),
        ("token_encoding", "[]", "token_encoding: a string, an array"),
    ] {
        assert_eq!(fault(&format!("{{\"{field}\":{value}}}")), expected);
        let absent = read(&format!("{{\"{field}\":null}}"));
        assert_eq!((absent.raw, absent.model), (RawRequest::default(), None));
    }
    let request = read(
        "\u{feff} {\"foo\":[[[{\"a\":1e5}]]],\"drop_params\":true,\"mode\\u006c\":\"m\",\"dimensions\":-9e99,\"user\":\"\"}\n",
    );
    assert_eq!(
        (request.model.as_deref(), request.raw.dimensions, request.has_input),
        (Some("m"), Some(i64::MIN), false)
    );
    // The first fault counts.
    assert_eq!(fault(r#"{"input":[1,"a"],"model":1}"#), "input[1]: an integer, a string");
}

// W-01
#[test]
fn what_is_no_json_object_says_where() {
    for (body, expected) in [
        (&b""[..], "it is empty"),
        (b" \r\n", "it is empty"),
        (b"{\"model\":", "EOF while parsing a value at line 1 column 9"),
        (b"{\"model\":\"a\",}", "trailing comma at line 1 column 14"),
        (b"{}\n x", "trailing characters at line 2 column 2"),
        (b"[]", "invalid type: array, expected a JSON object at line 1 column 2"),
        (b"\"x\"", "invalid type: string, expected a JSON object at line 1 column 3"),
        (b"null", "invalid type: null, expected a JSON object at line 1 column 4"),
        (b"{\"a\":\n\"\xff\"}", "invalid UTF-8 at line 2 column 2"),
        (b"{\"input\":\"\\ud800\"}", "half of a surrogate pair at line 1 column 17"),
        (b"{\"input\":\"\\udc00x\"}", "half of a surrogate pair at line 1 column 16"),
        (b"{\"input\":\"a\",\"input\":\"b\"}", "duplicate field `input` at line 1 column 20"),
        (b"{\"input\":[1e400]}", "number out of range at line 1 column 15"),
        // A type error in front does not hide that the rest is broken.
        (b"{\"model\":1,\"input\":[", "EOF while parsing a list at line 1 column 20"),
    ] {
        assert_eq!(syntax(body), expected, "{}", String::from_utf8_lossy(body));
    }
    syntax("[".repeat(10_000).as_bytes());
    syntax(format!("{{\"input\":{}", "[".repeat(10_000)).as_bytes());
    syntax(format!("{{\"foo\":{}", "[".repeat(1_000_000)).as_bytes());
    syntax(br#"{"input":"\udc00"}"#);
    syntax(format!("{{\"input\":[1{}]}}", "0".repeat(400)).as_bytes());
}

#[test]
fn oversized_input_is_counted_but_not_stored() {
    let too_many = read(&format!("{{\"input\":[{}\"x\"]}}", "\"x\",".repeat(99)));
    assert_eq!(too_many.raw.inputs, texts(false, &["x"; 5]));
    let ids = read(&format!("{{\"input\":[{}1]}}", "1,".repeat(99)));
    assert_eq!(ids.raw.inputs, RawInputs::Tokens { single: true, arrays: vec![vec![1; 80]] });
    assert_eq!(ids.refusal, Some(RequestError::TooManyTokens { tokens: 100, limit: 10 }));
    let arrays = read(&format!("{{\"input\":[[{}1],[1]]}}", "1,".repeat(79)));
    assert_eq!(arrays.refusal, Some(RequestError::TooManyTokens { tokens: 81, limit: 10 }));
    assert_eq!(read(&format!("{{\"input\":[{}1]}}", "1,".repeat(79))).refusal, None);
}

#[test]
fn two_names_for_one_side_must_agree() {
    let agreeing = read(r#"{"truncation_side":"left","truncation_direction":"LEFT"}"#);
    assert_eq!((agreeing.raw.truncation_side, agreeing.refusal), (Some(("truncation_side", "left".to_owned())), None));
    let refusal = read(r#"{"truncation_direction":"left","truncation_side":"right"}"#).refusal;
    assert!(matches!(refusal, Some(RequestError::InvalidValue { field: "truncation_side", .. })), "{refusal:?}");
}

// Forms of vectors that other APIs let a client choose: ours is taken, any other refused, under whatever name.
#[test]
fn a_form_that_is_not_ours_is_refused_and_never_ignored() {
    let refused = |body: &str| {
        let refusal = read(body).refusal.map(|refusal| {
            let RequestError::InvalidValue { field, value, allowed } = refusal else { panic!("{refusal:?}") };
            format!("{field} = {value}: {allowed}")
        });
        refusal.unwrap_or_default()
    };
    for fine in [
        r#"{"output_dtype":"float","embed_dtype":"float32","endianness":"little"}"#,
        r#"{"output_dtype":null,"output_dimension":null,"embedding_type":null}"#,
        r#"{"embedding_type":"base64","encoding_format":"base64"}"#,
        r#"{"dimensions":8,"output_dimension":8}"#,
    ] {
        assert_eq!(refused(fine), "", "{fine}");
    }
    for (body, expected) in [
        (r#"{"output_dtype":"int8"}"#, "output_dtype = int8: Supported values: ['float']"),
        (r#"{"embedding_type":"binary"}"#, "embedding_type = binary: Supported values: ['float', 'base64']"),
        (r#"{"endianness":"big"}"#, "endianness = big: Supported values: ['native', 'little']"),
        (r#"{"embed_dtype":"fp8"}"#, "embed_dtype = fp8: Supported values: ['float32']"),
        (r#"{"dimensions":8,"output_dimension":9}"#, "output_dimension = 9: The length was given as 8 before"),
        (r#"{"output_dimension":8,"dimensions":9}"#, "dimensions = 9: The length was given as 8 before"),
        (
            r#"{"embedding_type":"float","encoding_format":"base64"}"#,
            "encoding_format = base64: It contradicts 'embedding_type': 'float'",
        ),
        (
            r#"{"encoding_format":"base64","embedding_type":"float"}"#,
            "embedding_type = float: It contradicts 'encoding_format': 'base64'",
        ),
    ] {
        assert_eq!(refused(body), expected, "{body}");
    }
    assert_eq!(read(r#"{"output_dimension":8}"#).raw.dimensions, Some(8));
    assert_eq!(read(r#"{"embedding_type":"base64"}"#).encoding_format.as_deref(), Some("base64"));
    let roles = read(r#"{"input_type":"text","task":""}"#).raw;
    assert_eq!((roles.input_type, roles.task), (None, None));
    assert_eq!(fault(r#"{"output_dimension":"8"}"#), "output_dimension: an integer, a string");
}
