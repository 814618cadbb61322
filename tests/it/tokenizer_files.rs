//! The files beside `tokenizer.json`: what the class of a tokenizer makes of it. Golden models hold the vectors to
//! sentence-transformers; here stands what has no vector.

use std::path::Path;

use embedserve::tokenize::load::{ids, load};
use serde_json::{Value, json};

use crate::support::tiny_model::{TinyModel, vocabulary};

fn put(folder: &Path, name: &str, value: &Value) {
    std::fs::write(folder.join(name), value.to_string()).unwrap();
}

/// The ids of a text under this `tokenizer_config.json`, or why the tokenizer cannot be used.
fn read(folder: &Path, config: &Value, rows: usize, text: &str) -> Result<Vec<u32>, String> {
    put(folder, "tokenizer_config.json", config);
    let (tokenizer, _) = load(&folder.join("tokenizer.json"), rows).map_err(|error| error.to_string())?;
    ids(&tokenizer, text, false)
}

#[test]
fn the_class_has_the_last_word_where_it_has_an_opinion() {
    let folder = TinyModel::default().write();
    let rows = vocabulary().len();
    let read = |config: Value, text: &str| read(folder.path(), &config, rows, text).unwrap();
    let lower = read(json!({"tokenizer_class": "PreTrainedTokenizerFast"}), "hello 中文");
    let cased = json!({"do_lower_case": false, "tokenize_chinese_chars": false});
    let with_class = |class: &str| {
        let mut config = cased.clone();
        config["tokenizer_class"] = json!(class);
        config
    };
    for class in ["PreTrainedTokenizerFast", "XLMRobertaTokenizer", "Unheard"] {
        assert_eq!(read(with_class(class), "HELLO 中文"), lower, "{class}");
    }
    for class in ["BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "MPNetTokenizer"] {
        assert_ne!(read(with_class(class), "HELLO"), lower[..1], "{class}");
        assert_ne!(read(with_class(class), "hello 中文"), lower, "{class}");
    }
    // Without a name, the model's type decides; BERT's default is to lower-case.
    assert_ne!(read(cased.clone(), "HELLO"), lower[..1]);
    assert_eq!(read(json!({}), "HELLO 中文"), lower);
    let config = json!({"model_type": "bert", "tokenizer_class": "PreTrainedTokenizerFast"});
    put(folder.path(), "config.json", &config);
    assert_eq!(read(cased, "HELLO 中文"), lower);
}

/// A Unigram tokenizer as BAAI/bge-m3 has it: spaces are merged by the normaliser, and nothing splits at white space.
fn unigram(folder: &Path) -> usize {
    let pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁hello", "▁world", "hello"];
    let vocabulary: Vec<Value> = pieces.iter().enumerate().map(|(n, piece)| json!([piece, -(n as f64)])).collect();
    let special = |id: usize| {
        json!({"id": id, "content": pieces[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0), special(1), special(2), special(3)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]},
                "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}},
        "decoder": null,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocabulary, "byte_fallback": false}});
    put(folder, "tokenizer.json", &tokenizer);
    pieces.len()
}

// The ids are those of transformers 5.23 for these files.
#[test]
fn white_space_at_the_end_of_a_text_is_no_piece_for_classes_of_sentencepiece() {
    let folder = tempfile::tempdir().unwrap();
    let rows = unigram(folder.path());
    let read = |config: Value, text: &str| read(folder.path(), &config, rows, text).unwrap();
    for class in ["XLMRobertaTokenizer", "XLMRobertaTokenizerFast", "CamembertTokenizer", "T5TokenizerFast"] {
        let config = json!({"tokenizer_class": class});
        for text in ["hello world", "hello world ", " hello\u{a0}world\n", "hello  \t world"] {
            assert_eq!(read(config.clone(), text), [5, 6], "{class} {text:?}");
        }
        assert_eq!(read(config, " "), [0_u32; 0], "{class}");
    }
    let unprefixed = json!({"tokenizer_class": "XLMRobertaTokenizer", "add_prefix_space": false});
    assert_eq!(read(unprefixed, "hello"), [7]);
    // Without an opinion, as the file has it.
    assert_eq!(read(json!({"tokenizer_class": "PreTrainedTokenizerFast"}), "hello "), [5, 4]);
    put(folder.path(), "config.json", &json!({"model_type": "xlm-roberta"}));
    assert_eq!(read(json!({}), "hello "), [5]);
}

// As transformers 5.23 does for these files: each class has a switch of its own for accents.
#[test]
fn accents_are_kept_or_not_as_the_class_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let rows = unigram(folder.path());
    let albert = |switches: Value, text: &str| {
        let mut config = json!({"tokenizer_class": "AlbertTokenizer"});
        config.as_object_mut().unwrap().extend(switches.as_object().unwrap().clone());
        read(folder.path(), &config, rows, text).unwrap()
    };
    for switches in [json!({}), json!({"strip_accents": false}), json!({"keep_accents": false})] {
        assert_eq!(albert(switches.clone(), " HÉLLO  wörld "), [5, 6], "{switches}");
    }
    assert_ne!(albert(json!({"keep_accents": true}), "héllo"), [5]);
    assert_ne!(albert(json!({"do_lower_case": false}), "HELLO"), [5]);
    assert_eq!(albert(json!({"do_lower_case": false}), "héllo"), [5]);

    let folder = TinyModel::default().write();
    let rows = vocabulary().len();
    let bert = |config: Value, text: &str| read(folder.path(), &config, rows, text).unwrap();
    let plain = bert(json!({"tokenizer_class": "BertTokenizer"}), "hello");
    assert_eq!(bert(json!({"tokenizer_class": "BertTokenizer", "keep_accents": true}), "héllo"), plain);
    let cased = json!({"tokenizer_class": "BertTokenizer", "do_lower_case": false, "keep_accents": false});
    assert_ne!(bert(cased, "héllo"), plain);
}

#[test]
fn special_tokens_are_added_where_the_embedding_table_has_a_row() {
    let folder = TinyModel::default().write();
    let rows = vocabulary().len();
    let id = |word: &str| u32::try_from(vocabulary().iter().position(|token| token == word).unwrap()).unwrap();
    let new = u32::try_from(rows).unwrap();
    let extra = json!({"additional_special_tokens": ["fox", "[ENT]"]});
    let plain = read(folder.path(), &json!({}), rows, "xfoxy[ENT]").unwrap();
    // A word of the vocabulary is recognised inside of others; a new one needs a row.
    let found = read(folder.path(), &extra, rows + 1, "xfoxy[ENT]").unwrap();
    assert_eq!(found, [id("x"), id("fox"), id("y"), new]);
    let without = read(folder.path(), &extra, rows, "xfoxy[ENT]").unwrap();
    assert_eq!(without[..3], [id("x"), id("fox"), id("y")]);
    assert_eq!(without[3..], plain[plain.len() + 3 - without.len()..]);
    // The flags of a listed token are the ones that count.
    let mask = json!({"content": "[MASK]", "lstrip": false, "rstrip": false, "single_word": true, "special": true});
    let listed = json!({"added_tokens_decoder": {"4": mask}});
    assert_eq!(read(folder.path(), &json!({}), rows, "x[MASK]").unwrap(), [id("x"), id("[MASK]")]);
    assert_ne!(read(folder.path(), &listed, rows, "x[MASK]").unwrap(), [id("x"), id("[MASK]")]);
    put(folder.path(), "special_tokens_map.json", &json!({"mask_token": null, "sep_token": {"content": "quick"}}));
    assert_eq!(read(folder.path(), &json!({}), rows, "xquick").unwrap(), [id("x"), id("quick")]);
}

#[test]
fn a_word_list_is_read_for_the_classes_that_have_them() {
    let folder = TinyModel::default().write();
    let rows = vocabulary().len();
    let whole = read(folder.path(), &json!({}), rows, "hello world [MASK] é").unwrap();
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let words = |words: &str| std::fs::write(folder.path().join("vocab.txt"), words).unwrap();
    words(&vocabulary().join("\r\n"));
    assert_eq!(read(folder.path(), &json!({}), rows, "hello world [MASK] é").unwrap(), whole);
    for (config, list, named) in [
        (
            json!({"tokenizer_class": "RobertaTokenizer"}),
            vocabulary().join("\n"),
            "vocab.txt is not a usable tokenizer: only the tokenizers of BERT",
        ),
        (json!({}), "[PAD]\n[UNK]\n[CLS]\n".to_owned(), "it has no [SEP], the sep_token"),
        (json!({"cls_token": null}), vocabulary().join("\n"), "cls_token is missing"),
        (json!({}), format!("{}\nzzz", vocabulary().join("\n")), "the embedding table has"),
    ] {
        words(&list);
        let error = read(folder.path(), &config, rows, "x").unwrap_err();
        assert!(error.contains(named), "{error}");
    }
}

// U-03
#[test]
fn files_that_are_no_json_are_named() {
    for name in ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json"] {
        let folder = TinyModel::default().write();
        std::fs::write(folder.path().join(name), b"{").unwrap();
        let error = load(&folder.path().join("tokenizer.json"), vocabulary().len()).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}

// The reference reads scores exactly. One that is off by its last bit cuts a run of one character in another order.
#[test]
fn scores_of_a_vocabulary_are_read_to_the_last_bit() {
    let scores = ["-3.9379777908325195", "-3.9984934329986572", "-7.3209004402160645", "-7.4025349617004395"];
    for score in scores {
        let read: f64 = serde_json::from_str(score).unwrap();
        assert_eq!(read.to_bits(), score.parse::<f64>().unwrap().to_bits(), "{score}");
    }
}

// U-03: what would cost gigabytes, or end the process, is refused before the library builds anything of it.
#[test]
fn vocabularies_that_cost_more_than_their_bytes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(&mut Value)| {
        let rows = unigram(folder.path());
        let path = folder.path().join("tokenizer.json");
        let mut value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut value);
        std::fs::write(&path, value.to_string()).unwrap();
        load(&path, rows + 20_000).map(|_| ()).map_err(|error| error.to_string())
    };
    let add = |value: &mut Value, n: usize, length: usize| {
        let pieces = value["model"]["vocab"].as_array_mut().unwrap();
        pieces.extend((0..n).map(|piece| json!([format!("{piece:0length$}"), -9.0])));
    };
    assert_eq!(refused(&|value| add(value, 10, 1024)), Ok(()));
    let long = refused(&|value| add(value, 1, 1025)).unwrap_err();
    assert!(long.contains("a piece of its vocabulary has 1025 bytes"), "{long}");
    let many = refused(&|value| add(value, 8200, 1024)).unwrap_err();
    assert!(many.contains("the pieces of its vocabulary have"), "{many}");
    let folder = TinyModel::default().write();
    let path = folder.path().join("tokenizer.json");
    let mut value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    value["model"]["max_input_chars_per_word"] = json!(1001);
    std::fs::write(&path, value.to_string()).unwrap();
    let words = load(&path, vocabulary().len()).map(|_| ()).unwrap_err().to_string();
    assert!(words.contains("max_input_chars_per_word is 1001"), "{words}");
}

#[test]
fn tokenizers_that_are_programs_are_named() {
    let folder = TinyModel::default().write();
    for class in ["BertJapaneseTokenizer", "PhobertTokenizer", "BertweetTokenizer"] {
        let config = json!({"tokenizer_class": class});
        let refused = read(folder.path(), &config, vocabulary().len(), "x").unwrap_err();
        assert!(refused.contains(&format!("{class} is Python code")), "{refused}");
    }
}
