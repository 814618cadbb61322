//! `vocab.txt`, BERT's vocabulary as a list of words: what older repositories have instead of `tokenizer.json`.
//!
//! The result is the `tokenizer.json` that transformers would write of it (`BertTokenizer`, `MPNetTokenizer`): one id per
//! line, from 0; of a word that occurs twice, the last id.

use serde_json::{Map, Value, json};

use crate::tokenize::settings::{Class, Settings};

/// The tokenizer of a word list, under the class and the special tokens of `settings`.
///
/// # Errors
/// A class that has no word lists, or a special token that is not in this one.
pub fn tokenizer_json(words: &str, settings: &Settings) -> Result<Vec<u8>, String> {
    if !matches!(settings.class, Class::Bert | Class::MpNet) {
        return Err("only the tokenizers of BERT, DistilBERT and MPNet are read from it; save a tokenizer.json \
                    (AutoTokenizer.from_pretrained, then save_pretrained)"
            .to_owned());
    }
    let vocabulary: Map<String, Value> =
        lines(words).enumerate().map(|(id, word)| (word.to_owned(), Value::from(id))).collect();
    let role = |role: &str| {
        let content = settings.named(role).ok_or_else(|| format!("tokenizer_config.json: {role} is missing"))?;
        let id = vocabulary.get(content).ok_or_else(|| format!("it has no {content}, the {role}"))?;
        Ok::<_, String>((content, id.clone()))
    };
    let ((first, first_id), (last, last_id), (unknown, _)) =
        (role("cls_token")?, role("sep_token")?, role("unk_token")?);
    let special = |content: &str, id: &Value| json!({"id": content, "ids": [id], "tokens": [content]});
    let specials =
        Map::from_iter([(first.to_owned(), special(first, &first_id)), (last.to_owned(), special(last, &last_id))]);
    let frame = json!([
        {"SpecialToken": {"id": first, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": last, "type_id": 0}},
    ]);
    let normalizer = settings.normalizer;
    let whole = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        // `Settings::apply` adds them.
        "added_tokens": [],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": normalizer.chinese_characters,
            "strip_accents": normalizer.strip_accents,
            "lowercase": normalizer.lower_case,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": frame,
            "pair": frame,
            "special_tokens": specials,
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    });
    serde_json::to_vec(&whole).map_err(|error| error.to_string())
}

/// Lines as Python reads them, in any of the three endings; nothing follows the last one.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let text = text.strip_suffix("\r\n").or_else(|| text.strip_suffix(['\n', '\r'])).unwrap_or(text);
    text.split('\n').flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'))
}

#[cfg(test)]
mod tests {
    use super::lines;

    #[test]
    fn lines_end_as_in_python() {
        let words = |text| lines(text).collect::<Vec<_>>();
        assert_eq!(words("a\nb\r\nc\rd\n"), ["a", "b", "c", "d"]);
        assert_eq!(words("a\n\n\u{2028}b\u{85}\n "), ["a", "", "\u{2028}b\u{85}", " "]);
    }
}
