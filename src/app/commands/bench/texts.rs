//! The texts of the measurement: seeded, and of exactly as many tokens as wanted, because every word is one token.

use hyper::body::Bytes;
use serde_json::json;

use crate::load::work::Work;

/// One request's body, and what it asks for.
#[derive(Debug, Clone)]
pub(super) struct Payload {
    pub(super) body: Bytes,
    pub(super) n_texts: usize,
    /// Special tokens included.
    pub(super) n_tokens: usize,
    /// Floating-point operations of its forward passes, where the model is known.
    pub(super) flops: Option<f64>,
}

/// Makes requests for one model.
#[derive(Debug, Clone)]
pub(super) struct Texts {
    pub(super) model: String,
    /// One token each.
    pub(super) words: Vec<String>,
    /// Tokens of every text beside its words.
    pub(super) frame: usize,
    /// Tokens that the model takes.
    pub(super) limit: usize,
    pub(super) work: Option<Work>,
    /// Whether to keep away the model's default prompt: other servers may not know the field.
    pub(super) own_server: bool,
}

impl Texts {
    /// A length that this model has: as wanted, or the nearest possible.
    pub(super) fn length(&self, wanted: usize) -> usize {
        wanted.min(self.limit).max(self.frame + 1)
    }

    /// A request with one text of each of `lengths`, in tokens; each must be one that [`Self::length`] gives.
    pub(super) fn payload(&self, lengths: &[usize], random: &mut Random) -> Payload {
        let texts: Vec<String> = lengths.iter().map(|length| self.text(*length, random)).collect();
        // The format that OpenAI's clients ask for.
        let mut body = json!({ "model": self.model, "input": texts, "encoding_format": "base64" });
        if self.own_server {
            body["prompt"] = json!("");
        }
        Payload {
            body: Bytes::from(body.to_string()),
            n_texts: lengths.len(),
            n_tokens: lengths.iter().sum(),
            flops: self.work.as_ref().map(|work| lengths.iter().map(|length| work.flops(*length)).sum()),
        }
    }

    /// `n` requests with one text of `length` tokens each.
    pub(super) fn uniform(&self, n: usize, length: usize) -> Vec<Payload> {
        let mut random = Random::new(length as u64);
        (0..n).map(|_| self.payload(&[length], &mut random)).collect()
    }

    /// The mixed workload: 256 texts in requests of `n_texts` each.
    pub(super) fn mixed(&self, n_texts: usize) -> Vec<Payload> {
        let mut random = Random::new(MIXED as u64);
        let lengths: Vec<usize> = mixed_lengths(&mut random).into_iter().map(|length| self.length(length)).collect();
        lengths.chunks(n_texts).map(|lengths| self.payload(lengths, &mut random)).collect()
    }

    fn text(&self, length: usize, random: &mut Random) -> String {
        let words = (self.frame..length).filter_map(|_| self.words.get(random.below(self.words.len())));
        words.map(String::as_str).collect::<Vec<_>>().join(" ")
    }
}

/// Texts of the mixed workload.
const MIXED: usize = 256;

/// Lognormal lengths, median 40 and sigma 0.8, clipped to 4..=512: what search engines and their users send.
fn mixed_lengths(random: &mut Random) -> Vec<usize> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 4..=512")]
    let length = |normal: f64| (40.0 * (0.8 * normal).exp()).round().clamp(4.0, 512.0) as usize;
    (0..MIXED).map(|_| length(random.normal())).collect()
}

/// SplitMix64 (Steele, Lea and Flood, 2014): the same texts and arrivals in every run.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "less than `bound`")]
        let index = (self.next() % bound.max(1) as u64) as usize;
        index
    }

    /// Uniform in (0, 1).
    pub(super) fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// Standard normal (Box and Muller).
    fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(limit: usize) -> Texts {
        let words = ["one", "two", "three"].map(str::to_owned).to_vec();
        Texts { model: "m".to_owned(), words, frame: 2, limit, work: None, own_server: true }
    }

    #[test]
    fn a_text_has_as_many_words_as_tokens_are_wanted_beside_the_frame() {
        let texts = texts(512);
        for length in [3, 16, 512] {
            let payload = texts.payload(&[length, length], &mut Random::new(1));
            let body: serde_json::Value = serde_json::from_slice(&payload.body).unwrap();
            let words = body["input"][1].as_str().unwrap().split(' ').count();
            assert_eq!((words + 2, payload.n_tokens, payload.n_texts), (length, 2 * length, 2));
        }
    }

    #[test]
    fn lengths_stay_within_what_the_model_takes() {
        let texts = texts(16);
        assert_eq!([1, 16, 128].map(|wanted| texts.length(wanted)), [3, 16, 16]);
        let longest = texts.mixed(1).iter().map(|payload| payload.n_tokens).max();
        assert_eq!(longest, Some(16));
    }

    #[test]
    fn the_mixed_workload_is_the_documented_one_and_the_same_every_time() {
        let lengths = mixed_lengths(&mut Random::new(MIXED as u64));
        let mean = lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
        assert!((50.0..62.0).contains(&mean), "{mean}");
        let mut sorted = lengths.clone();
        sorted.sort_unstable();
        assert!((36..=44).contains(&sorted[MIXED / 2]), "{}", sorted[MIXED / 2]);
        assert!(sorted[0] >= 4 && sorted[MIXED - 1] <= 512);
        let bodies = |texts: &Texts| texts.mixed(32).into_iter().map(|payload| payload.body).collect::<Vec<_>>();
        assert_eq!((bodies(&texts(512)).len(), bodies(&texts(512))), (8, bodies(&texts(512))));
    }
}
