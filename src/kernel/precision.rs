//! How a model computes: the number format of its matrix products, and the instruction set they run on.

use std::fmt;

use super::Isa;

/// The number format of weights and of the inputs of matrix products. Everything else, the residual stream, norms,
/// softmax and every sum, is f32 in all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Single precision: equal to the reference within 1e-5.
    #[default]
    F32,
    /// bfloat16 weights and inputs, sums in f32.
    Bf16,
    /// 8-bit weights, one scale per output column, and 8-bit inputs, one scale per token, both rotated; sums in i32.
    Int8,
}

impl Precision {
    /// From the most exact to the smallest.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Int8];

    /// The name used by `--dtype`, models.toml and in logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

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
}
