//! Ours against the library, id by id.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Words, pieces of words, marks, one piece longer than a key, letters of other scripts.
fn vocabulary() -> Vec<String> {
    let words = [
        "the", "cat", "cats", "un", "able", "unable", "running", "Berlin", "straße", "é", "北", "don", "’", "к", "от",
        "ß",
    ];
    let pieces = [
        "##s",
        "##able",
        "##ning",
        "##a",
        "##b",
        "##c",
        "##é",
        "##ß",
        "##от",
        "##ё",
        "##aninordinatelylongpiece",
        "##1",
        "##2",
    ];
    let long =
        ["internationalisation", "exactlysixteenxx", "aninordinatelylongpiece", "[", "]", "#", "##", "-", ".", ","];
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let letters = ('a'..='z').filter(|letter| *letter != 'q').map(String::from);
    let tails = ('a'..='p').map(|letter| format!("##{letter}"));
    let plain = special.iter().chain(&words).chain(&pieces).chain(&long).map(|piece| (*piece).to_owned());
    let mut all: Vec<String> = plain.chain(letters).chain(tails).collect();
    all.sort();
    all.dedup();
    all
}

fn file(lower_case: bool, change: impl FnOnce(&mut Value)) -> Tokenizer {
    let vocabulary = vocabulary();
    let ids: serde_json::Map<_, _> =
        vocabulary.iter().enumerate().map(|(id, piece)| (piece.clone(), json!(id))).collect();
    let added = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(|content| {
        json!({"id": ids[content], "content": content, "single_word": false, "lstrip": content == "[MASK]",
            "rstrip": false, "normalized": false, "special": true})
    });
    let mut value = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": lower_case},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": ids},
    });
    change(&mut value);
    Tokenizer::from_bytes(value.to_string()).unwrap()
}

/// How many tokens both readings have.
#[track_caller]
fn check(library: &Tokenizer, text: &str) -> usize {
    let words = WordPiece::of(library).expect("ours");
    let ours = words.ids(library, text);
    assert_eq!(ours, load::ids(library, text, false), "{text:?}");
    ours.unwrap().len()
}

#[test]
fn every_kind_of_text_has_the_librarys_ids() {
    let long = |length| "c".repeat(length);
    let texts = [
        "",
        " ",
        "the cat",
        "The Cats, unable -- running.",
        "  the\tcat\r\n cats  ",
        "unableq qunable q",
        "北 [MASK]the cat",
        "[CLS] the 北京 cats [SEP] unable",
        "é北[MASK]un北able [mask]",
        "\u{e01}cat cat\u{e01} 😀 the😀cats",
        "internationalisation exactlysixteenxx exactlysixteenxxs aninordinatelylongpiece",
        "caninordinatelylongpieces canan inordinatelylongpieceb",
        &long(99),
        &long(100),
        &long(101),
        &long(300),
        &format!("the {} cat {}. cat", long(101), long(100)),
        "straße é Berlin caf\u{e9} cafe\u{301} \u{301}cat the",
        "北京the cat 北 北",
        "the\u{a0}cat\u{3000}cats\u{200b}s the",
        "the\u{0}cat \u{1} c\u{7f}at \u{b}cat\u{c}cats \u{fffd} cat",
        "[MASK] the [MASK]cat[mask] [Mask ] [ MASK] [UNK]",
        "cat[MASK]é é[MASK]",
        "[MÁSK] [CLS][SEP] [[PAD]] ##s #s [##able]",
        "🎉cat 🎉 the🎉",
        "Ünäblé ÇAT’S “the” cat—cats… cat\u{2009}cat\u{2028}s cat\u{ad}s ſ İ ǅ ŉ",
        &format!("{} {} {}ß", "é".repeat(100), "é".repeat(101), "ß".repeat(99)),
        "кот Ёж Σίσυφος ΣΑΣ אב\u{5b0}ג عربي ٣ ؟ × § ° ½ ² ª",
    ];
    let (lower, exact) = (file(true, |_| {}), file(false, |_| {}));
    let counted: usize = texts.iter().map(|text| check(&lower, text).max(check(&exact, text))).sum();
    assert!(counted > 100, "{counted} tokens");
}

#[test]
fn only_what_is_read_here_is_read_here() {
    let is_ours = |change: fn(&mut Value)| WordPiece::of(&file(true, change)).is_some();
    let add = |value: &mut Value, content: &str| {
        let token = json!({"id": 900, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": true, "special": false});
        value["added_tokens"].as_array_mut().unwrap().push(token);
    };
    assert!(is_ours(|_| {}));
    assert!(is_ours(|value| value["normalizer"]["strip_accents"] = json!(false)));
    assert!(!is_ours(|value| value["normalizer"] = json!({"type": "Lowercase"})));
    assert!(!is_ours(|value| value["normalizer"] = Value::Null));
    assert!(!is_ours(|value| value["pre_tokenizer"] = json!({"type": "Whitespace"})));
    assert!(!is_ours(|value| value["model"]["max_input_chars_per_word"] = json!(200)));
    assert!(!is_ours(|value| value["model"]["unk_token"] = json!("[NONE]")));
    for (content, ours) in [("<entity>", true), ("word", false), ("<two words>", false), ("<é>", false)] {
        let library = file(true, |value| add(value, content));
        assert_eq!(WordPiece::of(&library).is_some(), ours, "{content}");
        if ours {
            check(&library, "the <entity> cat<ENTITY>s <Entity>é é <entit> <");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_texts_have_the_librarys_ids(
        parts in proptest::collection::vec(
            prop_oneof![
                4 => proptest::sample::select(vocabulary()),
                4 => proptest::sample::select(vec![" ", " ", "  ", "\n", "\t", ".", "-", "[", "]", "##", "'"])
                    .prop_map(str::to_owned),
                2 => "[ -~]{1,6}",
                2 => "[\u{a0}-\u{17f}]{1,4}",
                1 => "[\u{180}-\u{7ff}]{1,4}",
                1 => "[\u{2000}-\u{20ff}]{1,2}",
                1 => "\\PC{1,4}",
                1 => any::<char>().prop_map(String::from),
            ],
            0..24,
        ),
        lower_case in any::<bool>(),
    ) {
        let (library, text) = (file(lower_case, |_| {}), parts.concat());
        let words = WordPiece::of(&library).unwrap();
        prop_assert_eq!(words.ids(&library, &text), load::ids(&library, &text, false), "{:?}", text);
    }
}
