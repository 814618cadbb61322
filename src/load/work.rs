//! The arithmetic of a forward pass, from the encoder's sizes: what a measured rate is compared with.
//!
//! Per token: `2·(4·hidden·inner + m·hidden·intermediate)` for the matrices of each layer, `m` = 2, or 3 where the
//! feed-forward is gated. Per token and token it sees: `4·inner` for each layer's attention. Embeddings, norms,
//! activations and pooling are left out: they are a few percent of the time and no multiply-adds to speak of.

use std::path::Path;

use crate::arch::Described;
use crate::arch::spec::EncoderSpec;
use crate::load::LoadError;
use crate::load::modules::required_json;

/// The floating-point operations of one model's texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    per_token: u64,
    per_pair: u64,
    /// How many tokens a token sees at most, for each layer; `None` = the whole text.
    reach: Vec<Option<usize>>,
}

impl Work {
    /// The work of the model that lies in `folder`.
    ///
    /// # Errors
    /// Its configuration cannot be read or is not one of ours.
    pub fn of_folder(folder: &Path) -> Result<Self, LoadError> {
        let config = required_json(&folder.join("config.json"))?;
        Ok(Self::of(&Described::read(&config)?.spec))
    }

    pub fn of(spec: &EncoderSpec) -> Self {
        let (hidden, inner) = (spec.hidden_size as u64, spec.inner_size() as u64);
        let matrices = if spec.feed_forward.gated { 3 } else { 2 };
        let layer = 2 * (4 * hidden * inner + matrices * hidden * spec.intermediate_size as u64);
        let reach = spec.layers.iter().map(|layer| layer.window.map(|window| 2 * window + 1)).collect();
        Self { per_token: layer * spec.n_layers() as u64, per_pair: 4 * inner, reach }
    }

    /// Operations of one text of `n_tokens`.
    pub fn flops(&self, n_tokens: usize) -> f64 {
        let seen: usize = self.reach.iter().map(|reach| reach.map_or(n_tokens, |reach| reach.min(n_tokens))).sum();
        n_tokens as f64 * (self.per_token as f64 + self.per_pair as f64 * seen as f64)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn work(config: &Value) -> Work {
        Work::of(&Described::read(config).unwrap().spec)
    }

    fn bert(hidden: usize, layers: usize) -> Value {
        json!({"model_type": "bert", "hidden_size": hidden, "num_hidden_layers": layers,
            "num_attention_heads": hidden / 32, "intermediate_size": 4 * hidden, "hidden_act": "gelu",
            "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "type_vocab_size": 2, "vocab_size": 30522})
    }

    /// MFLOP per token of the matrices, and kFLOP per token and token seen: the table of the cost model.
    #[test]
    fn known_shapes_have_known_costs() {
        for (hidden, layers, linear, attention) in
            [(384, 6, 21.2, 9.2), (768, 12, 169.9, 36.9), (1024, 24, 604.0, 98.3)]
        {
            let work = work(&bert(hidden, layers));
            let (one, two) = (work.flops(1), work.flops(2));
            let pair = (two - 2.0 * one) / 2.0;
            assert!((pair / 1e3 - attention).abs() < 0.05, "{hidden}: {pair}");
            assert!(((one - pair) / 1e6 - linear).abs() < 0.05, "{hidden}: {one}");
        }
    }

    #[test]
    fn a_window_bounds_what_a_token_sees() {
        let mut work = work(&bert(384, 6));
        let whole = work.flops(512);
        work.reach = vec![Some(129); 6];
        assert!(
            (work.flops(100) / (100.0 * (work.per_token as f64 + 600.0 * work.per_pair as f64)) - 1.0).abs() < 1e-12
        );
        assert!(work.flops(512) < whole);
    }
}
