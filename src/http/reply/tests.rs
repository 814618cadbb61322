//! Floats and base64 bit for bit, the exact bytes of an answer, and its slices.

use std::sync::Arc;

use axum::body::HttpBody as _;
use http_body_util::BodyExt;
use tokio::sync::Semaphore;

use super::*;
use crate::pool::FiniteRow;
use crate::tokenize::Cut;

fn row(values: &[f32], cut: Option<Cut>) -> EmbeddedRow {
    EmbeddedRow { vector: FiniteRow::new(values.to_vec()).unwrap(), tokens: 3, cut }
}

/// The body without what differs every time.
fn text(rows: &[EmbeddedRow], encoding: Encoding) -> String {
    let body = String::from_utf8(embeddings("a\"\n", rows, encoding)).unwrap();
    let (head, rest) = body.split_once("\"id\":\"embd-").unwrap();
    let (_, rest) = rest.split_once(",\"model\"").unwrap();
    format!("{head}\"model\"{rest}")
}

#[test]
fn an_answer_has_exactly_these_bytes() {
    let cut = Some(Cut { original_tokens: Some(9000) });
    let rows =
        [row(&[1.0, -0.5], None), row(&[0.1, 0.0], cut), row(&[1e-7, 3e20], Some(Cut { original_tokens: None }))];
    assert_eq!(
        text(&rows, Encoding::Float),
        "{\"object\":\"list\",\"model\":\"a\\\"\\n\",\"data\":[\
         {\"object\":\"embedding\",\"index\":0,\"embedding\":[1.0,-0.5]},\
         {\"object\":\"embedding\",\"index\":1,\"embedding\":[0.1,0.0],\"truncated\":true,\"original_tokens\":9000},\
         {\"object\":\"embedding\",\"index\":2,\"embedding\":[1e-7,3e+20],\"truncated\":true}],\
         \"usage\":{\"prompt_tokens\":9,\"total_tokens\":9}}"
    );
    assert!(text(&rows[..1], Encoding::Base64).contains("\"embedding\":\"AACAPwAAAL8=\"}]"));
}

// W-14
#[test]
fn both_encodings_give_the_same_bits() {
    // Every exponent, both signs, several mantissas; subnormals included.
    let values: Vec<f32> =
        (0_u32..=u32::MAX).step_by(65_521).map(f32::from_bits).filter(|value| value.is_finite()).collect();
    let rows = [row(&values, None)];
    let read = |encoding| -> serde_json::Value { serde_json::from_slice(&embeddings("m", &rows, encoding)).unwrap() };
    let floats = embeddings("m", &rows, Encoding::Float);
    let floats = String::from_utf8(floats).unwrap();
    let floats = floats.split_once("\"embedding\":[").unwrap().1.split_once(']').unwrap().0;
    let floats: Vec<u32> = floats.split(',').map(|digits| digits.parse::<f32>().unwrap().to_bits()).collect();
    assert!(read(Encoding::Float).is_object());
    let base64 = read(Encoding::Base64)["data"][0]["embedding"].as_str().unwrap().to_owned();
    assert_eq!(base64.len(), (values.len() * 4).div_ceil(3) * 4);
    let base64: Vec<u32> =
        STANDARD.decode(base64).unwrap().chunks(4).map(|four| u32::from_le_bytes(four.try_into().unwrap())).collect();
    let bits: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
    assert_eq!(floats, bits);
    assert_eq!(base64, bits);
}

#[tokio::test]
async fn a_body_is_sent_in_slices_of_known_length() {
    let bytes = vec![7; 2 * SLICE_BYTES + 1];
    let mut sent = body(bytes.clone(), "application/json").into_body();
    assert_eq!(sent.size_hint().exact(), Some(bytes.len() as u64));
    let mut received = Vec::new();
    while let Some(frame) = sent.frame().await {
        let data = frame.unwrap().into_data().unwrap();
        assert!(data.len() <= SLICE_BYTES);
        received.extend_from_slice(&data);
    }
    assert_eq!(received, bytes);
}

// P9: hyper holds slices that are not written yet, and each of them holds the whole answer.
#[tokio::test]
async fn an_answer_keeps_what_it_holds_until_its_last_slice_is_gone() {
    let permits = Arc::new(Semaphore::new(1));
    let room = Arc::clone(&permits).try_acquire_owned().unwrap();
    let mut body = body_holding(room, vec![b'x'; SLICE_BYTES + 1], "text/plain").into_body();
    let mut slices = Vec::new();
    while let Some(frame) = body.frame().await {
        slices.push(frame.unwrap().into_data().unwrap());
    }
    drop(body);
    slices.remove(0);
    assert_eq!((slices.len(), permits.available_permits()), (1, 0));
    drop(slices);
    assert_eq!(permits.available_permits(), 1);
}
