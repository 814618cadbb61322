//! `tokenizer.json`, up to token ids. U-03, U-04

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use embedserve::tokenize::load;

use super::Verdict;
use super::message;

/// More than the vocabulary of the tiny models.
const ROWS: usize = 256;

pub fn check(data: &[u8]) -> Verdict {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(data).expect("room for it");
    let (tokenizer, frame) =
        load::load(file.path(), ROWS).map_err(|error| message::checked(error.to_string(), data))?;
    let inside = |ids: &[u32]| assert!(ids.iter().all(|id| (*id as usize) < ROWS), "an id beyond the table: {ids:?}");
    inside(&frame.prefix);
    inside(&frame.suffix);
    let served = load::load_to_serve(file.path(), ROWS).expect("what the library takes is served");
    assert_eq!(served.frame, frame);
    let long = "word ".repeat(40);
    for text in ["hello world", "", "é 中文 😀\u{301}\0 x", long.as_str(), "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!"]
    {
        // A panic here costs a request and nothing else: it is caught where texts are tokenised.
        let ids = catch_unwind(AssertUnwindSafe(|| load::ids(&tokenizer, text, false)));
        if let Ok(Ok(ids)) = ids {
            inside(&ids);
            let own = served.unigram.as_ref().map(|unigram| unigram.ids(&served.library, text));
            assert!(own.is_none_or(|own| own.as_ref() == Ok(&ids)), "{text:?}: other ids than the library's {ids:?}");
        }
    }
    Ok(())
}
