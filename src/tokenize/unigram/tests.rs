//! Ours against the library, id by id.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::tokenize::load;

/// Pieces with equal scores, of several scripts, one the beginning of another; characters that no piece has alone.
fn file(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let pieces = [
        ("<unk>", 0.0),
        ("<s>", 0.0),
        ("▁", -2.0),
        ("a", -3.0),
        ("b", -3.0),
        ("c", -3.5),
        ("ab", -4.0),
        ("bc", -4.0),
        ("abc", -6.0),
        ("▁a", -4.5),
        ("▁abc", -5.0),
        ("xyz", -9.0),
        ("é", -5.0),
        ("éa", -5.5),
        ("北", -6.0),
        ("北京", -6.5),
        ("😀", -7.0),
        ("qq", -30.0),
        (".", -1.0),
        ("..", -2.0),
        ("...", -3.0),
    ];
    let added = json!([
        {"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
        {"id": 21, "content": "<mask>", "single_word": false, "lstrip": true, "rstrip": false, "normalized": false, "special": true},
    ]);
    let mut value = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"},
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        ]},
        "post_processor": null, "decoder": null,
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false, "vocab": pieces},
    });
    change(&mut value);
    value.to_string().into_bytes()
}

fn spelt_in_bytes(value: &mut Value) {
    value["model"]["byte_fallback"] = json!(true);
    let pieces = value["model"]["vocab"].as_array_mut().unwrap();
    pieces.extend((0..=255_u8).map(|byte| json!([format!("<0x{byte:02X}>"), -20.0])));
    value["added_tokens"].as_array_mut().unwrap().remove(1);
}

/// How many tokens both readings have.
#[track_caller]
fn check(file: &[u8], text: &str) -> usize {
    let library = Tokenizer::from_bytes(file).unwrap();
    let (own, rest) = Unigram::of(file).expect("ours");
    let mut without = Tokenizer::from_bytes(rest).unwrap();
    without.with_model(Unigram::placeholder());
    let ids = own.ids(&without, text);
    assert_eq!(ids.as_ref().ok(), load::ids(&library, text, false).ok().as_ref(), "{text:?}");
    ids.map_or(0, |ids| ids.len())
}

#[test]
fn every_kind_of_text_has_the_librarys_ids() {
    let long = "abcé".repeat(500);
    let texts = [
        "",
        " ",
        "abc abc",
        "aabbcc  abcabc",
        "xyz xy z zyx",
        "q qq qqq",
        "éa é ea 北京 北 京 京京",
        "😀😀 🙂 a🙂b",
        "<s> a <mask>b <unk> <unk>z",
        "...... . ..",
        "<0x41> A \u{0}",
        &long,
    ];
    for bytes in [file(|_| {}), file(spelt_in_bytes)] {
        for text in texts {
            check(&bytes, text);
        }
    }
    assert_eq!(check(&file(|_| {}), "abc"), 1);
    assert_eq!(check(&file(|_| {}), "zzz"), 2, "unknown characters beside each other are one token");
    assert_eq!(check(&file(spelt_in_bytes), "zz"), 3);
    // Nothing stands for the unknown.
    check(&file(|value| value["model"]["unk_id"] = Value::Null), "abc abz");
}

// The post-processor's tokens are found by what they stand around: that must be nothing like them.
#[test]
fn the_frame_is_the_librarys_whatever_stands_for_the_unknown() {
    let unknown_first = |value: &mut Value| {
        value["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<unk>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<unk>": {"id": "<unk>", "ids": [0], "tokens": ["<unk>"]}},
        });
    };
    let mut path = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut path, &file(unknown_first)).unwrap();
    let served = load::load_to_serve(path.path(), 100).unwrap();
    assert!(served.unigram.is_some());
    assert_eq!(served.frame, load::load(path.path(), 100).unwrap().1);
    assert_eq!(served.frame.prefix, [0]);
}

#[test]
fn what_the_library_has_to_judge_is_left_to_it() {
    let refused = |change: fn(&mut Value)| Unigram::of(&file(change)).is_none();
    assert!(refused(|value| value["model"]["type"] = json!("BPE")));
    assert!(refused(|value| value["model"]["unk_id"] = json!(500)));
    assert!(refused(|value| value["model"]["vocab"][3][0] = json!("b")), "two pieces of one text");
    assert!(refused(|value| value["model"]["vocab"][3][0] = json!("")));
    assert!(refused(|value| value["model"]["vocab"] = json!([])));
    assert!(Unigram::of(b"{}").is_none() && Unigram::of(b"\xff").is_none());
}

#[test]
fn all_pieces_are_in_the_tree() {
    let (own, _) = Unigram::of(&file(spelt_in_bytes)).unwrap();
    let pieces = own.pieces();
    assert_eq!(pieces.len(), own.scores.len());
    for (id, piece) in pieces {
        assert_eq!(own.pieces.get(piece.as_bytes()), Some(id));
    }
    assert_eq!(own.pieces.get("abcd".as_bytes()), None);
}

proptest! {
    #[test]
    fn any_text_has_the_librarys_ids(text in "([abcqxyz.é北京😀 ]|<s>|<mask>|<unk>){0,40}", bytes in any::<bool>()) {
        check(&file(|value| if bytes { spelt_in_bytes(value) }), &text);
    }
}
