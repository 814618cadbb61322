//! Stored tensor names to roles: one table per family, one set of role names for the skeleton.
//!
//! | role | shape |
//! |---|---|
//! | `embeddings.{word,position,token_type,task_type}.weight` | `[rows, embedding]` |
//! | `embeddings.norm`, `norm` (after the last layer) | `[embedding]`, `[hidden]` |
//! | `embeddings.projection` | `[hidden, embedding]` |
//! | `distance_bias.weight` | `[buckets, heads]` |
//! | `layers.N.attention.{query,key,value}`, or `qkv` stacked in this order | `[inner, hidden]` |
//! | `layers.N.attention.output` | `[hidden, inner]` |
//! | `layers.N.feed_forward.up`, `gate`, or `gate_up` or `up_gate` stacked in this order | `[intermediate, hidden]` |
//! | `layers.N.feed_forward.down` | `[hidden, intermediate]` |
//! | `layers.N.attention.norm`, `layers.N.feed_forward.norm` | `[hidden]` |
//!
//! Checkpoints of larger models carry heads, poolers and decoders, which embeddings do not use: they are passed over. A
//! name that belongs to the encoder by its beginning and is in no table is an error: the vectors would be wrong.

/// How one family stores its tensors.
#[derive(Debug, Clone, Copy)]
pub struct TensorNames {
    /// What a checkpoint of a larger model puts before every name of the encoder.
    pub prefixes: &'static [&'static str],
    /// Stored stem and role, both without `.weight` or `.bias`; `#` stands for the layer's number.
    pub stems: &'static [(&'static str, &'static str)],
    /// Beginnings of the encoder's own names.
    pub roots: &'static [&'static str],
    /// Below the roots, but no parameters: buffers that can be computed, copies of a shared table.
    pub surplus: &'static [&'static str],
}

/// Beginnings of roles.
const ROLES: [&str; 4] = ["embeddings.", "distance_bias.", "layers.", "norm."];

impl TensorNames {
    /// The role of a stored name, or the name without its prefix where it has none.
    pub fn role(&self, stored: &str) -> String {
        let name = self.prefixes.iter().find_map(|prefix| stored.strip_prefix(prefix)).unwrap_or(stored);
        // The oldest checkpoints call a norm's parameters gamma and beta.
        let (stem, parameter) = match name.rsplit_once('.') {
            Some((stem, "weight" | "gamma")) => (stem, "weight"),
            Some((stem, "bias" | "beta")) => (stem, "bias"),
            _ => return name.to_owned(),
        };
        let (pattern, layer) = number_out(stem);
        match self.stems.iter().find(|(stored, _)| *stored == pattern) {
            Some((_, role)) => format!("{}.{parameter}", role.replace('#', layer)),
            None => name.to_owned(),
        }
    }

    /// What a role is called in this family's files, for messages to people who look there.
    pub fn stored(&self, role: &str) -> String {
        let (stem, parameter) = role.rsplit_once('.').unwrap_or((role, ""));
        let (pattern, layer) = number_out(stem);
        match self.stems.iter().find(|(_, role)| *role == pattern) {
            Some((stored, _)) => format!("{}.{parameter}", stored.replacen('#', layer, 1)),
            None => role.to_owned(),
        }
    }

    /// Whether a tensor that nobody read makes the vectors wrong.
    pub fn matters(&self, role: &str) -> bool {
        let is_role = ROLES.iter().any(|root| role.starts_with(root));
        (is_role || self.roots.iter().any(|root| role.starts_with(root))) && !self.surplus.contains(&role)
    }
}

/// `encoder.layer.11.output` to `encoder.layer.#.output` and `11`. Only the first number is a layer's.
fn number_out(stem: &str) -> (String, &str) {
    let number = stem.split('.').find(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    let Some(number) = number else { return (stem.to_owned(), "") };
    let parts = stem.split('.');
    let mut seen = false;
    let pattern: Vec<&str> = parts
        .map(|part| {
            if !seen && part == number {
                seen = true;
                return "#";
            }
            part
        })
        .collect();
    (pattern.join("."), number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: TensorNames = TensorNames {
        prefixes: &["bert."],
        stems: &[
            ("embeddings.LayerNorm", "embeddings.norm"),
            ("encoder.block.#.layer.0.SelfAttention.q", "layers.#.attention.query"),
        ],
        roots: &["embeddings.", "encoder."],
        surplus: &["embeddings.position_ids"],
    };

    #[test]
    fn names_become_roles_and_leftovers_are_judged() {
        for (stored, role, matters) in [
            ("bert.embeddings.LayerNorm.gamma", "embeddings.norm.weight", true),
            ("embeddings.LayerNorm.bias", "embeddings.norm.bias", true),
            ("encoder.block.11.layer.0.SelfAttention.q.weight", "layers.11.attention.query.weight", true),
            (
                "encoder.block.11.layer.1.SelfAttention.q.weight",
                "encoder.block.11.layer.1.SelfAttention.q.weight",
                true,
            ),
            ("bert.embeddings.position_ids", "embeddings.position_ids", false),
            ("cls.predictions.bias", "cls.predictions.bias", false),
            ("pooler.dense.weight", "pooler.dense.weight", false),
        ] {
            assert_eq!(NAMES.role(stored), role);
            assert_eq!(NAMES.role(&NAMES.stored(role)), role);
            assert_eq!(NAMES.matters(role), matters, "{role}");
        }
    }
}
