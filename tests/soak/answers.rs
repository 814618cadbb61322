//! What is right: the vectors of the quiet server, bit for bit, after they were compared with sentence-transformers' own.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::TINY;
use crate::server::Server;
use crate::support::raw::RawAnswer;

pub const MODEL: &str = "sentence-transformers/all-MiniLM-L6-v2";

/// Largest difference of one value to sentence-transformers in float32.
const TOLERANCE: f32 = 1e-5;

/// Texts and their vectors.
pub struct Answers {
    real: Vec<Known>,
    tiny: [Vec<Known>; 2],
    /// Bodies.
    pub malformed: Vec<Vec<u8>>,
    /// Whole requests, or what is none.
    pub streams: Vec<Vec<u8>>,
}

pub struct Known {
    pub text: String,
    pub tokens: u64,
    vector: Vec<f32>,
}

impl Answers {
    /// Asks the quiet server for each text alone. The first hundred and more are the golden ones.
    pub fn of_quiet(server: &Server, exact: bool) -> Self {
        let golden: Value = serde_json::from_str(include_str!("../golden/minilm.json")).unwrap();
        let limit = golden["max_tokens"].as_u64().unwrap();
        let whole = |item: &&Value| item["text"].is_string() && item["full_tokens"].as_u64().unwrap() <= limit;
        let items: Vec<&Value> = golden["items"].as_array().unwrap().iter().filter(whole).collect();
        let real: Vec<Known> = items.iter().map(|item| known(server, "real", item["text"].as_str().unwrap())).collect();
        for (known, item) in real.iter().zip(items) {
            let golden = STANDARD.decode(item["vector"].as_str().unwrap()).unwrap();
            let pairs = floats(&golden).into_iter().zip(&known.vector);
            let distance = pairs.map(|(golden, ours)| (golden - ours).abs()).fold(0.0, f32::max);
            assert!(!exact || distance <= TOLERANCE, "{:?} is {distance:e} from sentence-transformers", known.text);
        }
        let words = |n: usize| vec!["hello"; n].join(" ");
        let tiny = TINY.map(|model| (1..=20).map(|n| known(server, model, &words(n))).collect());
        Self { real, tiny, malformed: malformed("request_json"), streams: malformed("http_stream") }
    }

    pub fn len(&self) -> usize {
        self.real.len() + self.tiny.iter().map(Vec::len).sum::<usize>()
    }

    pub fn real(&self) -> &[Known] {
        &self.real
    }

    pub fn tiny(&self, index: usize) -> &[Known] {
        &self.tiny[index]
    }
}

/// What the fuzzers' corpus says no server may accept: request bodies, or whole byte streams. Not what is too much for the
/// fuzz target's own limits alone.
fn malformed(target: &str) -> Vec<Vec<u8>> {
    let folder = format!("{}/tests/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_bad = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("bad-") && !name.contains("long") && !name.contains("many")
    };
    let bad = files.filter(is_bad);
    let bytes: Vec<Vec<u8>> = bad.map(|path| std::fs::read(path).unwrap()).collect();
    assert!(bytes.len() > 5, "the corpus of {target} has lost what is malformed");
    bytes
}

fn known(server: &Server, model: &str, text: &str) -> Known {
    let (status, body) = server.embed(&json!({"model": model, "input": text}).to_string());
    assert_eq!(status, 200, "{text:?}: {body}");
    let answer: Value = serde_json::from_str(&body).unwrap();
    let vector = vector(&answer["data"][0]["embedding"]).unwrap();
    Known { text: text.to_owned(), tokens: answer["usage"]["prompt_tokens"].as_u64().unwrap(), vector }
}

/// What is wrong with an answer to these texts in this order; `None` = nothing.
pub fn wrong(answer: &RawAnswer, texts: &[&Known]) -> Option<String> {
    let body: Value = match serde_json::from_str(&answer.body) {
        Ok(body) => body,
        Err(error) => return Some(format!("no JSON: {error}")),
    };
    let rows = body["data"].as_array().map_or(&[][..], Vec::as_slice);
    if rows.len() != texts.len() {
        return Some(format!("{} vectors for {} texts", rows.len(), texts.len()));
    }
    let tokens = texts.iter().map(|known| known.tokens).sum::<u64>();
    if body["usage"]["prompt_tokens"].as_u64() != Some(tokens) {
        return Some(format!("{} tokens counted, {tokens} meant", body["usage"]["prompt_tokens"]));
    }
    rows.iter().zip(texts).enumerate().find_map(|(index, (row, known))| {
        let bits = |vector: &[f32]| vector.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        let same =
            row["index"] == index && vector(&row["embedding"]).is_some_and(|it| bits(&it) == bits(&known.vector));
        (!same).then(|| format!("the vector of {:?} at {index} is another one", known.text))
    })
}

/// From numbers or from base64.
fn vector(value: &Value) -> Option<Vec<f32>> {
    if let Some(text) = value.as_str() {
        return Some(floats(&STANDARD.decode(text).ok()?));
    }
    #[expect(clippy::cast_possible_truncation, reason = "the shortest decimals of an f32 give it back")]
    let float = |number: &Value| number.as_f64().map(|number| number as f32);
    value.as_array()?.iter().map(float).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}
