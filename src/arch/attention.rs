//! Loading of the attention block: query, key and value, fused as far as their formats are the same, attention between
//! offsets, output projection.

use std::sync::Arc;

use crate::arch::spec::EncoderSpec;
use crate::kernel::{
    Activation, Attention, DistanceBias, Linear, MatrixShape, PackedMatrix, Packing, Rotary, SelfAttention,
};
use crate::weights::{Weights, WeightsError};

/// What a layer's attention knows of positions; tables are shared between layers.
#[derive(Debug, Clone)]
pub struct Places {
    pub bias: Option<Arc<DistanceBias>>,
    pub rotary: Option<Arc<Rotary>>,
    /// A query sees the keys at most this far away.
    pub window: Option<usize>,
}

/// One layer's self-attention.
///
/// # Errors
/// A missing or misshapen tensor.
pub fn load(
    spec: &EncoderSpec,
    weights: &Weights,
    layer: usize,
    places: Places,
    packing: Packing<'_>,
) -> Result<SelfAttention, WeightsError> {
    let (qkv, output) = stored(spec, weights, layer)?;
    let delicate = packing.where_delicate();
    let qkv = if delicate.compute == packing.compute {
        vec![qkv.pack(packing, Activation::None)]
    } else {
        let (scores, values) = qkv.split_at(2 * spec.inner_size());
        vec![scores.pack(packing, Activation::None), values.pack(delicate, Activation::None)]
    };
    Ok(SelfAttention {
        qkv,
        attention: Attention {
            n_heads: spec.n_heads,
            scale: spec.attention.scale,
            bias: places.bias,
            rotary: places.rotary,
            window: places.window,
            precision: delicate.compute.precision,
        },
        output: output.pack(delicate, Activation::None),
    })
}

/// Query, key and value as one product `[3·inner, hidden]`, and the output projection `[hidden, inner]`.
///
/// # Errors
/// A missing or misshapen tensor.
pub fn stored(
    spec: &EncoderSpec,
    weights: &Weights,
    layer: usize,
) -> Result<(StoredLinear, StoredLinear), WeightsError> {
    let role = format!("layers.{layer}.attention");
    let (hidden, inner) = (spec.hidden_size, spec.inner_size());
    let stack = Stack { whole: "qkv", parts: &["query", "key", "value"] };
    let qkv = load_stacked(weights, &role, stack, MatrixShape { n: inner, k: hidden }, spec.attention.input_bias)?;
    let shape = MatrixShape { n: hidden, k: inner };
    let output = load_matrix(weights, &format!("{role}.output"), shape, spec.attention.output_bias)?;
    Ok((qkv, output))
}

/// A linear layer as it is stored: `[n, k]`, row-major, and its bias.
#[derive(Debug)]
pub struct StoredLinear {
    pub shape: MatrixShape,
    pub weight: Vec<f32>,
    pub bias: Option<Vec<f32>>,
}

impl StoredLinear {
    /// The layer as two: the first `n` outputs, and the others.
    fn split_at(mut self, n: usize) -> (Self, Self) {
        let MatrixShape { n: all, k } = self.shape;
        let weight = self.weight.split_off(n * k);
        let bias = self.bias.as_mut().map(|bias| bias.split_off(n));
        (Self { shape: MatrixShape { n, k }, ..self }, Self { shape: MatrixShape { n: all - n, k }, weight, bias })
    }

    /// Packed for the kernels.
    pub fn pack(self, Packing { compute, arena }: Packing<'_>, activation: Activation) -> Linear {
        let weight = PackedMatrix::pack_in(arena, compute.precision, self.shape, &self.weight, self.bias);
        Linear { weight: Arc::new(weight), activation, isa: compute.isa }
    }
}

/// A linear layer stored as `role.weight [n, k]`, with `role.bias [n]` where the model has biases.
///
/// # Errors
/// A missing or misshapen tensor.
pub fn load_matrix(
    weights: &Weights,
    role: &str,
    shape: MatrixShape,
    has_bias: bool,
) -> Result<StoredLinear, WeightsError> {
    let MatrixShape { n, k } = shape;
    let weight = weights.take(&format!("{role}.weight"), &[n, k])?;
    let bias = has_bias.then(|| weights.take(&format!("{role}.bias"), &[n])).transpose()?;
    Ok(StoredLinear { shape, weight, bias })
}

/// The names of several linear layers that are one product.
#[derive(Debug, Clone, Copy)]
pub struct Stack<'a> {
    /// Stored as one layer already.
    pub whole: &'a str,
    /// Stored one by one, in this order.
    pub parts: &'a [&'a str],
}

/// Several linear layers of shape `[n, k]` as one of `[parts·n, k]`: one product instead of several.
///
/// # Errors
/// A missing or misshapen tensor.
pub fn load_stacked(
    weights: &Weights,
    role: &str,
    Stack { whole, parts }: Stack<'_>,
    MatrixShape { n, k }: MatrixShape,
    has_bias: bool,
) -> Result<StoredLinear, WeightsError> {
    let rows = parts.len() * n;
    let shape = MatrixShape { n: rows, k };
    if weights.contains(&format!("{role}.{whole}.weight")) {
        return load_matrix(weights, &format!("{role}.{whole}"), shape, has_bias);
    }
    let (mut weight, mut bias) = (Vec::with_capacity(rows * k), Vec::with_capacity(rows));
    for part in parts {
        weight.extend(weights.take(&format!("{role}.{part}.weight"), &[n, k])?);
        if has_bias {
            bias.extend(weights.take(&format!("{role}.{part}.bias"), &[n])?);
        }
    }
    Ok(StoredLinear { shape, weight, bias: has_bias.then_some(bias) })
}
