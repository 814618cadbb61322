//! How a model computes: the number format of its matrix products, and the instruction set they run on.

use std::fmt;

use thiserror::Error;

use super::Isa;

/// Counts up whenever a kernel of a reduced precision gives other numbers than before: what was found out about their
/// accuracy does not outlive it.
pub const KERNEL_VERSION: u32 = 3;

/// The number format of weights and of the inputs of matrix products. Everything else, the residual stream, norms,
/// softmax and every sum, is f32 in all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Single precision: equal to the reference within 1e-5.
    #[default]
    F32,
    /// float16 weights and inputs, sums in f32; on GPUs alone. What is beyond 65,504 overflows: a model of which that is seen
    /// is refused.
    F16,
    /// bfloat16 weights and inputs, sums in f32.
    Bf16,
    /// 8-bit weights, one scale per output column, and 8-bit inputs, one scale per token, both rotated; sums in i32. What
    /// is delicate is kept wider: see [`Self::where_delicate`].
    Int8,
}

impl Precision {
    /// From the most exact to the smallest.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Int8];
    /// Those that have kernels for CPUs.
    pub const ON_CPUS: [Self; 3] = [Self::F32, Self::Bf16, Self::Int8];

    /// The name used by `--dtype`, models.toml and in logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// What an operator wrote.
    ///
    /// # Errors
    /// Anything but the names and their long forms.
    pub fn parse(text: &str) -> Result<Self, UnknownPrecision> {
        match text {
            "f32" | "float32" | "fp32" => Ok(Self::F32),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            "int8" => Ok(Self::Int8),
            "f16" | "float16" | "fp16" | "half" => Ok(Self::F16),
            _ => Err(UnknownPrecision),
        }
    }

    /// The format of what is delicate: the values and the output of attention, through which everything goes that a layer
    /// mixes, and the first product of the feed-forward network in the last layer but one. int8 keeps them in bf16, or in
    /// f32 where the processor does not multiply bf16.
    ///
    /// Loss of cosine on real MiniLM weights, mean over 87 texts and six rotations, and the worst of the gate's texts:
    ///
    /// | in bf16 | work, in units of 8-bit work | mean | worst |
    /// |---|---|---|---|
    /// | nothing | 1.00 | 5.8e-4 | 15.7e-4 |
    /// | the second product of each feed-forward network | 1.33 | 4.3e-4 | 12.1e-4 |
    /// | values | 1.08 | 4.0e-4 | 12.2e-4 |
    /// | values, outputs | 1.17 | 3.6e-4 | 10.5e-4 |
    /// | values, outputs, that first product | 1.22 | 2.9e-4 | 8.0e-4 |
    #[must_use]
    pub fn where_delicate(self) -> Self {
        match self {
            Self::Int8 if processor_has("avx512bf16") => Self::Bf16,
            Self::Int8 => Self::F32,
            Self::F32 | Self::F16 | Self::Bf16 => self,
        }
    }

    /// Bytes of one weight of a linear layer.
    pub const fn weight_bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }
}

/// A number format that there is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected f32 (or float32), f16 (or float16; on GPUs), bf16 (or bfloat16) or int8")]
pub struct UnknownPrecision;

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a model is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compute {
    pub isa: Isa,
    pub precision: Precision,
}

impl Compute {
    /// Single precision on a given instruction set.
    pub const fn exact(isa: Isa) -> Self {
        Self { isa, precision: Precision::F32 }
    }

    /// The same for products that are delicate: see [`Precision::where_delicate`].
    #[must_use]
    pub fn where_delicate(self) -> Self {
        Self { precision: self.precision.where_delicate(), ..self }
    }

    /// Whether this processor has what the kernels need.
    ///
    /// # Errors
    /// What is missing, and which formats are left.
    pub fn check(self) -> Result<(), UnsupportedPrecision> {
        self.check_on(processor_has)
    }

    /// How many multiply-adds this instruction set does in the time of one in f32 on the vector units, which is what
    /// [`super::cpu::roofline`] measures: the roof of a format in units of that one. AMX multiplies sixteen times as many
    /// bf16 as AVX-512 multiplies f32, and an f32 takes six of them.
    pub fn roof_over_f32(self) -> f64 {
        match (self.isa, self.precision) {
            (Isa::Amx, Precision::F32) => 16.0 / 6.0,
            (Isa::Amx, Precision::F16 | Precision::Bf16) => 16.0,
            (Isa::Amx, Precision::Int8) => 32.0,
            (_, Precision::F32) => 1.0,
            (_, Precision::F16 | Precision::Bf16) => 2.0,
            (_, Precision::Int8) => 4.0,
        }
    }

    /// The formats that this processor can compute on the same instruction set, in the order of [`Precision::ON_CPUS`].
    pub fn usable(self) -> Vec<Precision> {
        self.usable_on(processor_has)
    }

    fn check_on(self, has: fn(&str) -> bool) -> Result<(), UnsupportedPrecision> {
        let usable = self.usable_on(has);
        if usable.contains(&self.precision) {
            return Ok(());
        }
        let at = |isa| Self { isa, ..self }.features();
        // Of the lowest level of this processor's kind that computes it: higher ones have everything anyway.
        let needed = Isa::ALL.into_iter().rev().filter_map(at).find(|needed| !needed.is_empty()).unwrap_or_default();
        let missing: Vec<&'static str> = needed.iter().copied().filter(|feature| !has(feature)).collect();
        let held_back = missing.is_empty() && !needed.is_empty();
        Err(UnsupportedPrecision {
            wanted: self,
            features: if held_back { needed.to_vec() } else { missing },
            held_back,
            usable,
        })
    }

    fn usable_on(self, has: fn(&str) -> bool) -> Vec<Precision> {
        let features = |precision: &Precision| Self { precision: *precision, ..self }.features();
        let runs = |precision: &Precision| features(precision).is_some_and(|needed| needed.iter().all(|f| has(f)));
        Precision::ON_CPUS.into_iter().filter(runs).collect()
    }

    /// What the processor must have beside the instruction set itself; `None` = there are no such kernels. The portable
    /// level computes every format, slowly: it is the reference of the others. NEON computes every format, and faster
    /// where the processor has more.
    const fn features(self) -> Option<&'static [&'static str]> {
        match (self.isa, self.precision) {
            (_, Precision::F16) | (Isa::Avx2, Precision::Bf16 | Precision::Int8) => None,
            (Isa::Portable | Isa::Neon | Isa::Amx, _) | (_, Precision::F32) => Some(&[]),
            (Isa::Avx512, Precision::Bf16) => Some(&["avx512f", "avx512vl", "avx512bw", "avx512bf16"]),
            (Isa::Avx512, Precision::Int8) => Some(&["avx512f", "avx512vl", "avx512bw", "avx512vnni"]),
        }
    }
}

/// A number format that this processor, or the instruction set that was asked for, cannot compute.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct UnsupportedPrecision {
    pub wanted: Compute,
    /// The features that are missing; all that are needed, where only the instruction set is in the way.
    pub features: Vec<&'static str>,
    /// The processor has them, and a lower instruction set was asked for.
    pub held_back: bool,
    /// The formats that are left.
    pub usable: Vec<Precision>,
}

impl fmt::Display for UnsupportedPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted: Compute { isa, precision }, features, held_back, usable } = self;
        let (features, usable) =
            (features.join(", "), usable.iter().map(|p| p.name()).collect::<Vec<_>>().join(" or "));
        if *precision == Precision::F16 {
            return write!(f, "{precision} is computed on GPUs only: use {usable} on this processor, or --device cuda");
        }
        if *held_back {
            return write!(
                f,
                "{precision} has no {isa} kernels, it needs {features}, which this processor has: leave out --kernel-isa \
                 {isa}, or use {usable}"
            );
        }
        write!(
            f,
            "{precision} needs {features}, which this processor lacks; with {isa} kernels it can compute {usable}"
        )
    }
}

#[cfg(target_arch = "x86_64")]
fn processor_has(feature: &str) -> bool {
    match feature {
        "avx512f" => is_x86_feature_detected!("avx512f"),
        "avx512vl" => is_x86_feature_detected!("avx512vl"),
        "avx512bw" => is_x86_feature_detected!("avx512bw"),
        "avx512bf16" => is_x86_feature_detected!("avx512bf16"),
        "avx512vnni" => is_x86_feature_detected!("avx512vnni"),
        _ => false,
    }
}

#[cfg(not(target_arch = "x86_64"))]
const fn processor_has(_feature: &str) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_spelling_of_itself() {
        for precision in Precision::ALL {
            assert_eq!(Precision::parse(precision.name()), Ok(precision));
        }
        for (text, expected) in [
            ("float32", Ok(Precision::F32)),
            ("bfloat16", Ok(Precision::Bf16)),
            ("float16", Ok(Precision::F16)),
            ("fp16", Ok(Precision::F16)),
            ("half", Ok(Precision::F16)),
            ("", Err(UnknownPrecision)),
            ("INT8", Err(UnknownPrecision)),
            ("q8_0", Err(UnknownPrecision)),
            ("auto", Err(UnknownPrecision)),
        ] {
            assert_eq!(Precision::parse(text), expected, "{text}");
        }
    }

    /// Its name, what it has, the level asked for, and what it can compute.
    type Processor = (&'static str, fn(&str) -> bool, Isa, &'static [Precision]);

    #[test]
    fn what_a_processor_can_compute_depends_on_its_features_and_on_the_level_asked_for() {
        use Isa::{Avx2, Avx512, Neon, Portable};
        use Precision::{Bf16, F32, Int8};
        let everything: fn(&str) -> bool = |_| true;
        let nothing: fn(&str) -> bool = |_| false;
        let no_bf16: fn(&str) -> bool = |feature| feature != "avx512bf16";
        let table: [Processor; 8] = [
            ("zen 4", everything, Avx512, &[F32, Bf16, Int8]),
            ("ice lake", no_bf16, Avx512, &[F32, Int8]),
            ("skylake-x", |feature| !["avx512bf16", "avx512vnni"].contains(&feature), Avx512, &[F32]),
            ("zen 4, held back", everything, Avx2, &[F32]),
            ("haswell", nothing, Avx2, &[F32]),
            ("anything, forced", nothing, Portable, &[F32, Bf16, Int8]),
            ("zen 4, forced", everything, Portable, &[F32, Bf16, Int8]),
            ("any Arm", nothing, Neon, &[F32, Bf16, Int8]),
        ];
        for (name, has, isa, usable) in table {
            for precision in Precision::ON_CPUS {
                let found = Compute { isa, precision }.check_on(has);
                assert_eq!(found.is_ok(), usable.contains(&precision), "{name} {precision}: {found:?}");
                let Err(error) = found else { continue };
                let text = error.to_string();
                assert_eq!((error.wanted.precision, error.usable.as_slice()), (precision, usable), "{name}");
                assert!(text.starts_with(precision.name()) && text.contains("f32"), "{name}: {text}");
                assert_eq!(text.contains("leave out --kernel-isa avx2"), name.ends_with("held back"), "{text}");
            }
        }
        let error = Compute { isa: Avx512, precision: Precision::F16 }.check_on(everything).unwrap_err();
        let expected = "f16 is computed on GPUs only: use f32 or bf16 or int8 on this processor, or --device cuda";
        assert_eq!((error.to_string().as_str(), error.held_back), (expected, false));
        let error = Compute { isa: Avx512, precision: Bf16 }.check_on(no_bf16).unwrap_err();
        let expected =
            "bf16 needs avx512bf16, which this processor lacks; with avx512 kernels it can compute f32 or int8";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn exact_arithmetic_runs_everywhere() {
        for isa in Isa::ALL {
            assert_eq!(Compute::exact(isa).check(), Ok(()));
            assert_eq!(Compute::exact(isa).usable().first(), Some(&Precision::F32));
        }
    }
}
