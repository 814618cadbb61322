//! How an array of token ids is read. V-04
//!
//! The bytes are words: policy, encoding, requested model, vocabulary, and then the ids.

use embedserve::http::error::ApiError;
use embedserve::request::{InputLocation, RequestError, TokenArrays, TokenEncoding};
use embedserve::tokenize::load::Frame;
use embedserve::tokenize::token_arrays::{Reading, Rules, Vocabulary};

use super::Verdict;
use super::request_json::refused;

pub fn check(data: &[u8]) -> Verdict {
    let text = std::str::from_utf8(data).map_err(|_| "not UTF-8".to_owned())?;
    let mut words = text.split_ascii_whitespace();
    let policy = match words.next() {
        Some("model") => TokenArrays::Model,
        Some("cl100k") => TokenArrays::Cl100k,
        Some("reject") => TokenArrays::Reject,
        _ => TokenArrays::Auto,
    };
    let encodings = [TokenEncoding::Cl100k, TokenEncoding::O200k, TokenEncoding::Model];
    let encoding = words.next().and_then(|word| encodings.into_iter().find(|encoding| encoding.name() == word));
    let requested_model = words.next().unwrap_or_default().to_owned();
    let (prefix, suffix, rows) = match words.next() {
        Some("xlm-r") => (vec![0], vec![2], 250_002),
        Some("bare") => (Vec::new(), Vec::new(), 1000),
        Some("tail") => (Vec::new(), vec![1], 32_128),
        _ => (vec![101], vec![102], 30_522),
    };
    // The wire saturates what does not fit.
    let id = |word: &str| word.parse().unwrap_or(if word.starts_with('-') { i64::MIN } else { i64::MAX });
    let ids: Vec<i64> = words.map(id).collect();
    if ids.is_empty() {
        return Err("refused before it is read".to_owned());
    }
    let frame = Frame { prefix, suffix };
    let vocabulary = Vocabulary { frame: &frame, rows, model: "m" };
    let rules = Rules { policy, encoding, requested_model };
    match rules.read(&ids, InputLocation::at(false, 0), &vocabulary) {
        Ok(Reading::Ids(read)) => {
            assert_ne!(policy, TokenArrays::Reject);
            assert!(read.iter().all(|id| (*id as usize) < rows), "an id outside the vocabulary: {read:?}");
            let framed = read.starts_with(&frame.prefix) && read.ends_with(&frame.suffix);
            assert!(framed && read.len() >= frame.len(), "no frame: {read:?}");
            let kept =
                read.windows(ids.len()).any(|window| window.iter().map(|id| i64::from(*id)).eq(ids.iter().copied()));
            assert!(kept, "{ids:?} became {read:?}");
            Ok(())
        }
        Ok(Reading::Text(text, _)) => {
            assert_ne!(policy, TokenArrays::Reject);
            assert!(!text.is_empty(), "nothing is left of {ids:?}");
            assert!(ids.iter().all(|id| (0..=200_018).contains(id)), "{ids:?}");
            Ok(())
        }
        Err(error) => {
            if let RequestError::TokenId { id, .. } = &error {
                assert!(ids.contains(id), "{id} is not among {ids:?}");
            }
            Err(refused(ApiError::from(error), data))
        }
    }
}
