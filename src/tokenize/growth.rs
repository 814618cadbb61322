//! How long a text becomes when a tokenizer normalises it: compatibility forms (NFKC, and the tables of SentencePiece) write
//! some characters out. One that stands for a sentence of Arabic becomes eleven times as long, and the library keeps
//! dozens of bytes for each byte of it; so limits count what a text grows to, and cut it there.

/// The most that any character grows, as a factor.
const MOST: usize = 11;

/// Bytes of a text with such characters written out. All others become at most four times as long, which limits
/// allow for. A text that cannot pass `cap` is not looked through.
pub(super) fn grown_bytes(text: &str, cap: usize) -> usize {
    if text.len().saturating_mul(MOST) <= cap { text.len() } else { text.chars().map(grown).sum() }
}

/// What grows to at most `cap` bytes, from the start; the word at the cut may be incomplete and is left out, if anything
/// precedes it.
pub(super) fn whole_words_before(text: &str, cap: usize) -> &str {
    let head = &text[..end_within(text, cap)];
    head.rfind(char::is_whitespace).filter(|end| *end > 0).map_or(head, |end| &head[..end])
}

/// The mirror image, from the end.
pub(super) fn whole_words_after(text: &str, cap: usize) -> &str {
    let tail = &text[start_within(text, cap)..];
    tail.find(char::is_whitespace).map(|space| &tail[space..]).filter(|rest| !rest.trim().is_empty()).unwrap_or(tail)
}

/// Where the longest beginning of a text ends that grows to at most `cap` bytes.
fn end_within(text: &str, cap: usize) -> usize {
    let mut room = cap;
    let beyond = text.char_indices().find(|(_, character)| !take(&mut room, *character));
    beyond.map_or(text.len(), |(index, _)| index)
}

/// Where the longest end of a text begins that grows to at most `cap` bytes.
fn start_within(text: &str, cap: usize) -> usize {
    let mut room = cap;
    let beyond = text.char_indices().rev().find(|(_, character)| !take(&mut room, *character));
    beyond.map_or(0, |(index, character)| index + character.len_utf8())
}

fn take(room: &mut usize, character: char) -> bool {
    match room.checked_sub(grown(character)) {
        Some(left) => {
            *room = left;
            true
        }
        None => false,
    }
}

/// Bytes that a character may become.
const fn grown(character: char) -> usize {
    match character {
        '\u{FDFA}' => 33,
        '\u{FDFB}' => 15,
        // Words in a square, in brackets, in a circle.
        '\u{3200}'..='\u{33FF}' => 18,
        other => other.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::{NormalizedString, Normalizer as _};

    use super::*;

    // V-05: no character grows by more than its limit says, whatever the form.
    #[test]
    fn every_character_grows_as_it_says() {
        use tokenizers::normalizers::unicode::{NFC, NFD, NFKC, NFKD};
        let forms: [&dyn Fn(&mut NormalizedString); 4] = [
            &|text| NFC.normalize(text).unwrap(),
            &|text| NFD.normalize(text).unwrap(),
            &|text| NFKC.normalize(text).unwrap(),
            &|text| NFKD.normalize(text).unwrap(),
        ];
        let all: Vec<char> = ('\u{80}'..=char::MAX).collect();
        for form in forms {
            for character in &all {
                let mut text = NormalizedString::from(character.to_string());
                form(&mut text);
                let (size, grown) = (text.get().len(), grown(*character));
                assert!(size <= 4 * character.len_utf8() || size <= grown, "{character:?}: {size}, {grown}");
                assert!(grown <= MOST * character.len_utf8());
            }
        }
    }

    #[test]
    fn texts_are_measured_and_cut_as_they_grow() {
        let text = "ab\u{FDFA}c\u{FDFA}é";
        assert_eq!(grown_bytes(text, 1), 2 + 33 + 1 + 33 + 2);
        assert_eq!(grown_bytes(text, 1000), text.len());
        for (cap, end, start) in [(0, 0, 11), (1, 1, 11), (2, 2, 9), (34, 2, 9), (35, 5, 6), (70, 9, 1), (71, 11, 0)] {
            assert_eq!(end_within(text, cap), end, "{cap}");
            let found = start_within(text, cap);
            assert!(found == start || grown_bytes(&text[found..], 0) <= cap, "{cap}: {found}");
        }
        assert_eq!(&text[start_within(text, 36)..], "c\u{FDFA}é");
    }
}
