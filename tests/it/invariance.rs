//! A row's vector is the same, bit for bit, whatever it rides with: alone, packed, reordered, under any number of
//! threads, beside rows that were cut.

use embedserve::kernel::Isa;
use embedserve::request::{RawRequest, TruncateField};

use crate::support::random::Random;
use crate::support::served::{embed, embed_raw, shared, shared_with, try_load, try_load_with};
use crate::support::tiny_model::TinyModel;

fn texts() -> Vec<String> {
    let mut random = Random::new(11);
    let words = ["hello", "world", "the", "quick", "brown", "fox", "a", "b1", "é", "中文", "?", "jumps"];
    let text = |length| (0..length).map(|_| words[random.below(words.len())]).collect::<Vec<_>>().join(" ");
    [1, 2, 3, 40, 5, 17, 1, 30, 8, 9, 33, 2].into_iter().map(text).collect()
}

fn vectors(embedded: &embedserve::engine::Embedded) -> Vec<Vec<f32>> {
    embedded.rows.iter().map(|row| row.vector.as_slice().to_vec()).collect()
}

// N-06, V-08
#[tokio::test]
async fn a_text_has_the_same_bits_alone_and_in_any_company_and_order() {
    let folder = TinyModel { hidden: 48, ..TinyModel::default() }.write();
    let served = try_load(folder.path()).unwrap().served;
    let texts = texts();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut alone = Vec::new();
    for text in &texts {
        alone.extend(vectors(&embed(&served, &[text]).await.unwrap()));
    }
    assert_eq!(vectors(&embed(&served, &texts).await.unwrap()), alone);
    let mut random = Random::new(12);
    for _ in 0..20 {
        let order: Vec<usize> = (0..=random.below(63)).map(|_| random.below(texts.len())).collect();
        let batch: Vec<&str> = order.iter().map(|index| texts[*index]).collect();
        let expected: Vec<Vec<f32>> = order.iter().map(|index| alone[*index].clone()).collect();
        assert_eq!(vectors(&embed(&served, &batch).await.unwrap()), expected);
    }
}

// N-06
#[tokio::test]
async fn the_number_of_threads_and_the_vector_width_change_nothing() {
    let folder = TinyModel { hidden: 64, positions: 200, ..TinyModel::default() }.write();
    let texts = texts();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let expected = vectors(&embed(&try_load(folder.path()).unwrap().served, &texts).await.unwrap());
    for threads in [1, 2, 5] {
        let shared = shared_with(threads, shared().isa);
        let served = try_load_with(folder.path(), &shared).unwrap().served;
        assert_eq!(vectors(&embed(&served, &texts).await.unwrap()), expected, "{threads} threads");
    }
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        let served = try_load_with(folder.path(), &shared_with(2, isa)).unwrap().served;
        let found = vectors(&embed(&served, &texts).await.unwrap());
        let pairs = found.iter().flatten().zip(expected.iter().flatten());
        let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 2e-6, "{isa}: {worst:e}");
    }
}

// V-08
#[tokio::test]
async fn order_and_values_survive_rows_that_were_cut() {
    let served = try_load(TinyModel::default().write().path()).unwrap().served;
    let long = "x ".repeat(200);
    let truncate = || RawRequest { truncate: Some(TruncateField::Flag(true)), ..RawRequest::default() };
    let full = "x ".repeat(62);
    let kept = vectors(&embed(&served, &[&full]).await.unwrap()).remove(0);
    for batch in [["a", &long, "b"], [long.as_str(), "b", "a"], ["b", "a", &long]] {
        let embedded = embed_raw(&served, &batch, truncate()).await.unwrap();
        for (row, text) in embedded.rows.iter().zip(batch) {
            if text == long {
                assert_eq!((row.vector.as_slice(), row.tokens), (kept.as_slice(), 64));
                assert_eq!(row.cut.unwrap().original_tokens, Some(202));
            } else {
                assert_eq!(row.vector.as_slice(), vectors(&embed(&served, &[text]).await.unwrap())[0]);
                assert_eq!(row.cut, None);
            }
        }
    }
}
