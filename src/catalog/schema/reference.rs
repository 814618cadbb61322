//! `[[reference]]`: published vectors, kept behind the models because the numbers are long.

use toml::Spanned;
use toml::de::DeTable;

use crate::catalog::ModelSpec;
use crate::catalog::reference::{Expected, Reference, ReferencePrompt, TOLERANCE};
use crate::catalog::schema::{Reader, Value};
use crate::excerpt::excerpt;

/// The keys of a reference as they come; which belong together is decided when all are known.
#[derive(Default)]
struct Fields {
    model: Option<String>,
    text: Option<String>,
    prompt: Option<String>,
    prompt_name: Option<String>,
    vector: Option<Vec<f32>>,
    leading: Option<Vec<f32>>,
    dot: Option<f64>,
    cosine: Option<f64>,
    other: Option<String>,
    tokens: Option<usize>,
    dimensions: Option<usize>,
    normalized: Option<bool>,
    tolerance: Option<f64>,
    tolerance_reason: Option<String>,
    published: Option<String>,
}

impl<'t> Reader<'t> {
    /// Reads one reference and gives it to the model it names.
    pub(super) fn reference(&mut self, whole: &Value<'t>, models: &mut [ModelSpec]) {
        let Some(table) = self.table(whole) else { return };
        let fields = self.reference_fields(table);
        for key in ["model", "text", "published"] {
            self.require(table, whole, key);
        }
        let start = whole.span().start;
        let expected = self.expected(&fields, start);
        if fields.prompt.is_some() && fields.prompt_name.is_some() {
            self.problem(start, "write prompt or prompt_name, not both".to_owned());
        }
        #[expect(clippy::cast_possible_truncation, reason = "a tolerance is a small float in either precision")]
        let tolerance = fields.tolerance.map_or(TOLERANCE, |tolerance| tolerance as f32);
        if tolerance > TOLERANCE && fields.tolerance_reason.is_none() {
            self.problem(start, format!("a tolerance above {TOLERANCE} needs a tolerance_reason"));
        }
        let Fields { model: Some(id), text: Some(text), published: Some(published), .. } = fields else { return };
        let Some(expected) = expected else { return };
        let prompt = fields.prompt.map(ReferencePrompt::Text).or(fields.prompt_name.map(ReferencePrompt::Named));
        let Some(model) = models.iter_mut().find(|model| model.id.eq_ignore_ascii_case(&id)) else {
            let start = table.get("model").map_or(start, |value| value.span().start);
            return self.problem(start, format!("no [[model]] of this file has this id: {}", excerpt(&id)));
        };
        model.references.push(Reference {
            text,
            prompt,
            expected,
            tokens: fields.tokens,
            dimensions: fields.dimensions,
            normalized: fields.normalized,
            tolerance,
            tolerance_reason: fields.tolerance_reason,
            published,
        });
    }

    fn reference_fields(&mut self, table: &DeTable<'t>) -> Fields {
        let mut fields = Fields::default();
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "model" => fields.model = self.string(value),
                "text" => fields.text = self.string(value),
                "prompt" => fields.prompt = self.string(value),
                "prompt_name" => fields.prompt_name = self.string(value),
                "vector" => fields.vector = self.floats(value),
                "leading" => fields.leading = self.floats(value),
                "dot" => fields.dot = self.number(value),
                "cosine" => fields.cosine = self.number(value),
                "other" => fields.other = self.string(value),
                "tokens" => fields.tokens = self.positive(value),
                "dimensions" => fields.dimensions = self.positive(value),
                "normalized" => fields.normalized = self.boolean(value),
                "tolerance" => fields.tolerance = self.tolerance(value),
                "tolerance_reason" => fields.tolerance_reason = self.string(value),
                "published" => fields.published = self.string(value),
                _ => self.unknown(key, KEYS),
            }
        }
        fields
    }

    fn expected(&mut self, fields: &Fields, start: usize) -> Option<Expected> {
        let Fields { vector, leading, dot, cosine, other, .. } = fields;
        let expected = match (vector, leading, dot, cosine, other) {
            (Some(values), None, None, None, None) => Some(Expected::Vector(values.clone())),
            (None, Some(values), None, None, None) => Some(Expected::Leading(values.clone())),
            (None, None, Some(value), None, Some(other)) => Some(Expected::Dot { other: other.clone(), value: *value }),
            (None, None, None, Some(value), Some(other)) => {
                Some(Expected::Cosine { other: other.clone(), value: *value })
            }
            _ => None,
        };
        if expected.is_none() {
            let reason = "expected one of vector, leading, dot with other, cosine with other";
            self.problem(start, reason.to_owned());
        }
        expected
    }

    /// A share of the largest value: above 0, and below what any other model would pass.
    fn tolerance(&mut self, value: &Spanned<toml::de::DeValue<'t>>) -> Option<f64> {
        let number = self.number(value)?;
        if number > 0.0 && number <= 0.01 {
            return Some(number);
        }
        self.wrong_type(value, "a number above 0 and at most 0.01");
        None
    }
}

const KEYS: &str = "model, text, prompt, prompt_name, vector, leading, dot, cosine, other, tokens, dimensions, \
                    normalized, tolerance, tolerance_reason, published";
