//! A model's vectors against published ones.

use crate::catalog::reference::{Expected, Reference};
use crate::engine::Served;
use crate::excerpt::quoted;
use crate::kernel::Precision;
use crate::load::verify::{Bar, Comparison, Probe, VerifyError, cosine, dot, embed, largest_error};
use crate::pool::normalise;

/// What was found for one reference.
struct Found<'a> {
    reference: &'a Reference,
    vector: &'a [f32],
    /// The vector of the other text, for products.
    other: Option<&'a [f32]>,
    tokens: usize,
}

/// Embeds every reference text and compares, as strictly as the model's number format allows; one comparison per document and bar, in the references' order.
///
/// # Errors
/// A text is refused (an unknown prompt, say) or gets no vector.
pub async fn against_published(
    served: &Served,
    references: &[Reference],
    precision: Precision,
) -> Result<Vec<Comparison>, VerifyError> {
    let mut probes = Vec::new();
    for reference in references {
        let Reference { text, prompt, dimensions, expected, .. } = reference;
        let probe = Probe { text, prompt: prompt.as_ref(), dimensions: *dimensions };
        probes.push(probe);
        // References without a second text embed their only one twice: one row per reference keeps the two in step.
        probes.push(Probe { text: other(expected).unwrap_or(text), ..probe });
    }
    let rows = embed(served, &probes).await?;
    let mut comparisons: Vec<Comparison> = Vec::new();
    for (reference, rows) in references.iter().zip(rows.chunks_exact(2)) {
        let [first, second] = rows else { continue };
        let found = Found {
            reference,
            vector: first.vector.as_slice(),
            other: other(&reference.expected).map(|_| second.vector.as_slice()),
            tokens: first.tokens,
        };
        let (published, bar) = (&reference.published, Bar::of(precision, reference.tolerance));
        let same = |comparison: &Comparison| comparison.against == *published && comparison.bar == bar;
        let place = comparisons.iter().position(same).unwrap_or_else(|| {
            comparisons.push(Comparison::new(published.clone(), bar));
            comparisons.len() - 1
        });
        if let Some(comparison) = comparisons.get_mut(place) {
            found.judge(comparison);
        }
    }
    Ok(comparisons)
}

fn other(expected: &Expected) -> Option<&str> {
    match expected {
        Expected::Dot { other, .. } | Expected::Cosine { other, .. } => Some(other),
        Expected::Vector(_) | Expected::Leading(_) => None,
    }
}

impl Found<'_> {
    fn judge(&self, comparison: &mut Comparison) {
        let Reference { text, tokens, tolerance_reason, .. } = self.reference;
        let (error, cosine) = self.best(comparison);
        comparison.add(text, error, cosine);
        if let Some(expected) = tokens
            && *expected != self.tokens
        {
            comparison.differences.push(format!("{}: {} tokens, published {expected}", quoted(text), self.tokens));
        }
        if let Expected::Vector(values) = &self.reference.expected
            && values.len() != self.vector.len()
        {
            let (found, expected) = (self.vector.len(), values.len());
            comparison.differences.push(format!("{}: {found} values, published {expected}", quoted(text)));
        }
        let length = dot(self.vector, self.vector).sqrt();
        if self.reference.normalized == Some(true) && (length - 1.0).abs() > f64::from(self.reference.tolerance) {
            comparison.differences.push(format!("{}: length {length:.4}, published with length 1", quoted(text)));
        }
        if let Some(reason) = tolerance_reason {
            comparison.note(format!("bar: {reason}"));
        }
    }

    /// Error and cosine of the vector as it is, or, where nobody said whether the published one was scaled to unit
    /// length, of whichever form fits better.
    fn best(&self, comparison: &mut Comparison) -> (f32, Option<f64>) {
        let plain = self.distance(self.vector, self.other);
        if self.reference.normalized.is_some() {
            return plain;
        }
        let unit = |vector: &[f32]| {
            let mut vector = vector.to_vec();
            normalise(&mut vector);
            vector
        };
        let scaled = self.distance(&unit(self.vector), self.other.map(unit).as_deref());
        if (dot(self.vector, self.vector).sqrt() - 1.0).abs() < 1e-4 {
            return plain;
        }
        if plain.0 <= scaled.0 {
            comparison.note("published as the model gives them, not scaled to length 1".to_owned());
            return plain;
        }
        comparison.note("published scaled to length 1, which this model's own files do not ask for".to_owned());
        scaled
    }

    #[expect(clippy::cast_possible_truncation, reason = "an error is printed with two digits")]
    fn distance(&self, vector: &[f32], other: Option<&[f32]>) -> (f32, Option<f64>) {
        let product = |found: f64, published: f64| ((found - published).abs() / published.abs().max(1.0)) as f32;
        let other = other.unwrap_or(vector);
        match &self.reference.expected {
            Expected::Vector(values) | Expected::Leading(values) => {
                let leading = vector.get(..values.len()).unwrap_or(vector);
                (largest_error(leading, values), Some(cosine(leading, values)))
            }
            Expected::Dot { value, .. } => (product(dot(vector, other), *value), None),
            Expected::Cosine { value, .. } => (product(cosine(vector, other), *value), None),
        }
    }
}
