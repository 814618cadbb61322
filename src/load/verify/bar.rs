//! How far a vector may be from its reference, for each number format.

use std::fmt;

use crate::kernel::Precision;

/// What is still right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bar {
    /// Largest difference of one value, per unit of the vector's largest magnitude; for products, of the product. `None` =
    /// single values are not judged.
    value: Option<f32>,
    product: f32,
    /// Least cosine of any text.
    min_cosine: f64,
    /// Least mean over all texts.
    mean_cosine: f64,
}

impl Bar {
    /// The bar of a format, against a reference that is itself only known to `tolerance`.
    pub fn of(precision: Precision, tolerance: f32) -> Self {
        let exact = 1.0 - f64::from(tolerance);
        match precision {
            Precision::F32 => {
                Self { value: Some(tolerance), product: tolerance, min_cosine: exact, mean_cosine: exact }
            }
            // Three more bits than bf16.
            Precision::F16 => Self::by_cosine(0.99999_f64.min(exact), 0.99999_f64.min(exact), tolerance),
            Precision::Bf16 => Self::by_cosine(0.9999_f64.min(exact), 0.9999_f64.min(exact), tolerance),
            Precision::Int8 => Self::by_cosine(0.999_f64.min(exact), 0.9995_f64.min(exact), tolerance),
        }
    }

    fn by_cosine(min_cosine: f64, mean_cosine: f64, tolerance: f32) -> Self {
        // Two unit vectors, each turned by at most the angle of `min_cosine`: their product moves by twice that angle.
        #[expect(clippy::cast_possible_truncation, reason = "a bar of two digits")]
        let turned = (2.0 * min_cosine.acos()) as f32;
        Self { value: None, product: turned + tolerance, min_cosine, mean_cosine }
    }

    /// Whether one text is within the bar; a NaN is not.
    pub(super) fn fits(&self, error: f32, cosine: Option<f64>) -> bool {
        match cosine {
            None => error <= self.product,
            Some(cosine) => cosine >= self.min_cosine && self.value.is_none_or(|value| error <= value),
        }
    }

    /// Whether all texts together are.
    pub(super) fn fits_mean(&self, mean: Option<f64>) -> bool {
        mean.is_none_or(|mean| mean >= self.mean_cosine)
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { value, min_cosine, mean_cosine, .. } = self;
        match value {
            Some(value) => write!(f, "{value:.0e}"),
            None if min_cosine < mean_cosine => write!(f, "cosine {min_cosine}, mean {mean_cosine}"),
            None => write!(f, "cosine {min_cosine}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_is_held_to_its_own_bar() {
        use Precision::{Bf16, F16, F32, Int8};
        // Format, tolerance, error, cosine, whether it fits.
        let table: [(Precision, f32, f32, Option<f64>, bool); 18] = [
            (F32, 1e-5, 9e-6, Some(1.0), true),
            (F32, 1e-5, 2e-5, Some(1.0), false),
            (F32, 1e-5, 0.0, Some(0.9999), false),
            (F32, 1e-5, 2e-5, None, false),
            (F32, 2e-3, 1e-3, Some(0.999), true),
            (F16, 1e-5, 0.1, Some(0.999_991), true),
            (F16, 1e-5, 0.0, Some(0.999_989), false),
            (Bf16, 1e-5, 0.1, Some(0.99991), true),
            (Bf16, 1e-5, 0.0, Some(0.99989), false),
            (Bf16, 2e-3, 0.1, Some(0.9985), true),
            (Bf16, 1e-5, 0.02, None, true),
            (Bf16, 1e-5, 0.03, None, false),
            (Int8, 1e-5, 0.1, Some(0.9991), true),
            (Int8, 1e-5, 0.1, Some(0.9989), false),
            (Int8, 1e-5, 0.08, None, true),
            (Int8, 1e-5, 0.1, None, false),
            (Int8, 1e-5, 0.0, Some(f64::NAN), false),
            (Bf16, 1e-5, f32::NAN, None, false),
        ];
        for (precision, tolerance, error, cosine, fits) in table {
            let bar = Bar::of(precision, tolerance);
            assert_eq!(bar.fits(error, cosine), fits, "{precision} {tolerance} {error} {cosine:?}");
        }
        for (precision, mean, fits) in [(Int8, 0.9996, true), (Int8, 0.9994, false), (Bf16, 0.9994, false)] {
            assert_eq!(Bar::of(precision, 1e-5).fits_mean(Some(mean)), fits, "{precision} {mean}");
        }
        assert!(Bar::of(Int8, 1e-5).fits_mean(None));
    }

    #[test]
    fn a_bar_is_shown_as_what_it_judges() {
        for (precision, shown) in [
            (Precision::F32, "1e-5"),
            (Precision::F16, "cosine 0.99999"),
            (Precision::Bf16, "cosine 0.9999"),
            (Precision::Int8, "cosine 0.999, mean 0.9995"),
        ] {
            assert_eq!(Bar::of(precision, 1e-5).to_string(), shown);
        }
    }
}
