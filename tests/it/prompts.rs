//! The default prompt of a model, as sentence-transformers applies it: before every text, counted, pooled.

use serde_json::json;

use crate::support::served::{embed, try_load};
use crate::support::tiny_model::TinyModel;

fn with_prompt(include_prompt: bool) -> tempfile::TempDir {
    let folder = TinyModel::default().write();
    let config = json!({"prompts": {"query": "the quick ", "document": ""}, "default_prompt_name": "query"});
    std::fs::write(folder.path().join("config_sentence_transformers.json"), config.to_string()).unwrap();
    let pooling = json!({"word_embedding_dimension": 32, "pooling_mode": "mean", "include_prompt": include_prompt});
    std::fs::write(folder.path().join("1_Pooling/config.json"), pooling.to_string()).unwrap();
    folder
}

#[tokio::test]
async fn the_default_prompt_is_put_before_every_text_and_counted() {
    let plain = try_load(TinyModel::default().write().path()).unwrap().served;
    let prompted = try_load(with_prompt(true).path()).unwrap().served;
    let found = embed(&prompted, &["brown fox", "x"]).await.unwrap();
    let expected = embed(&plain, &["the quick brown fox", "the quick x"]).await.unwrap();
    for (found, expected) in found.rows.iter().zip(&expected.rows) {
        assert_eq!((found.vector.as_slice(), found.tokens), (expected.vector.as_slice(), expected.tokens));
    }
    let without = embed(&plain, &["brown fox"]).await.unwrap();
    assert_ne!(found.rows[0].vector.as_slice(), without.rows[0].vector.as_slice());
}

#[test]
fn a_prompt_that_pooling_must_not_see_is_refused() {
    let error = try_load(with_prompt(false).path()).unwrap_err().to_string();
    assert!(error.contains("include_prompt = false"), "{error}");
}
