//! Published vectors: what a model must give for a text, and how far from it is still right.
//!
//! A reference is data, from models.toml or from a file of the operator's; `load::verify` compares.

/// One published result of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    pub text: String,
    /// What is put before the text; `None` = what the model does when nothing is asked for.
    pub prompt: Option<ReferencePrompt>,
    /// The length the vector was cut to, when it was.
    pub dimensions: Option<usize>,
    pub expected: Expected,
    /// What the text counts, special tokens included.
    pub tokens: Option<usize>,
    /// Whether what was published had length 1: ours must then have it by itself. `None` = nobody said: ours may also fit
    /// after scaling.
    pub normalized: Option<bool>,
    /// Largest accepted difference of one value, per unit of the vector's largest magnitude (at least 1).
    pub tolerance: f32,
    /// Why the tolerance is wider than float32 needs.
    pub tolerance_reason: Option<String>,
    /// The document that published it.
    pub published: String,
}

/// The prompt of a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReferencePrompt {
    /// This text itself.
    Text(String),
    /// The model's prompt of this name.
    Named(String),
}

/// What was published.
#[derive(Debug, Clone, PartialEq)]
pub enum Expected {
    /// Every value.
    Vector(Vec<f32>),
    /// The first values.
    Leading(Vec<f32>),
    /// The dot product with the vector of another text.
    Dot { other: String, value: f64 },
    /// The cosine with the vector of another text.
    Cosine { other: String, value: f64 },
}

/// What float32 arithmetic in another order explains: the bar of references that say nothing else.
pub const TOLERANCE: f32 = 1e-5;
