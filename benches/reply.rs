//! Vectors to the bytes of an answer: `cargo bench --bench compute -- reply`. Each line is one JSON object.

use embedserve::engine::EmbeddedRow;
use embedserve::http::reply::{Encoding, embeddings};
use embedserve::pool::FiniteRow;
use serde_json::json;

use crate::support::texts::{FORWARD_128, SERVER_SHARE};
use crate::support::{Random, in_turn, median, rounds};

/// Vectors that each measurement writes.
const ROWS: usize = 1024;

pub fn run() {
    for dimensions in [384, 768] {
        let rows = vectors(dimensions);
        for (name, encoding) in [("float", Encoding::Float), ("base64", Encoding::Base64)] {
            for (shape, n) in [("1 row", 1), ("1,024 rows", ROWS)] {
                let bytes: usize = rows.chunks(n).map(|rows| embeddings("model", rows, encoding).len()).sum();
                let times = in_turn(rounds(), &mut [&mut || write(&rows, n, encoding)]);
                let seconds = median(&times[0]).as_secs_f64();
                let per_row = seconds / ROWS as f64;
                let shares = FORWARD_128.map(|(_, forward)| (1e3 * per_row / (forward * SERVER_SHARE)).round() / 10.0);
                let figures = json!({
                    "bench": "reply", "encoding": name, "answer": shape, "dimensions": dimensions,
                    "mb_per_s": (bytes as f64 / seconds / 1e6).round(), "ns_per_vector": (per_row * 1e9).round(),
                    "percent_of_budget": {"f32": shares[0], "int8": shares[1]},
                });
                println!("{figures}");
            }
        }
    }
}

#[inline(never)]
fn write(rows: &[EmbeddedRow], n: usize, encoding: Encoding) {
    for rows in rows.chunks(n) {
        std::hint::black_box(embeddings("model", rows, encoding));
    }
}

/// Unit vectors, as models give them.
fn vectors(dimensions: usize) -> Vec<EmbeddedRow> {
    let mut random = Random::new(dimensions as u64);
    let mut row = || {
        let values = random.floats(dimensions, 1.0);
        let norm = values.iter().map(|x| x * x).sum::<f32>().sqrt();
        let vector = FiniteRow::new(values.iter().map(|x| x / norm).collect()).expect("finite");
        EmbeddedRow { vector, tokens: 128, cut: None }
    };
    (0..ROWS).map(|_| row()).collect()
}
