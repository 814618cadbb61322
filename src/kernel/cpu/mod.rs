//! The CPU kernels, with the instruction set chosen at run time: no build flags, one binary for every x86-64 and one for
//! every 64-bit Arm processor.
//!
//! Element-wise kernels are written once in plain Rust and compiled per instruction set by `dispatch!`; the matrix
//! product has hand-written tiles in `tile`. In f32, AVX2, AVX-512 and NEON give the same bits: every result is one
//! chain of fused multiply-adds over k, whatever the vector width. The portable level rounds products before adding
//! them (a fused multiply-add without hardware support is a library call), so its last bits differ.

#![expect(
    unsafe_code,
    reason = "vector intrinsics and disjoint writes from several threads; each block states why it is sound"
)]
#![expect(clippy::inline_always, reason = "a kernel body must be inlined to take on the target features of its caller")]

pub mod activation;
mod attention;
pub mod embed;
pub mod forward;
pub mod linear;
pub mod matrix;
pub mod norm;
pub mod pages;
#[cfg(target_arch = "x86_64")]
mod parts;
pub mod position;
mod processors;
mod product;
mod quantise;
pub mod reduce;
pub mod roofline;
mod rows;
mod team;
mod team_size;
mod tile;
mod transpose;
pub mod worker;

use std::fmt;

/// Instruction set levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// No assumption beyond the compilation target.
    Portable,
    /// NEON, which every 64-bit Arm processor has.
    Neon,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F and VL, beside AVX2 and FMA.
    Avx512,
    /// AMX: products of whole register tiles, beside AVX-512 with BW, BF16 and VNNI.
    Amx,
}

impl Isa {
    /// The best level of this processor.
    pub fn detect() -> Self {
        Self::ALL.into_iter().rev().find(|isa| isa.is_supported()).unwrap_or(Self::Portable)
    }

    /// In rising order.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Neon, Self::Avx2, Self::Avx512, Self::Amx];

    pub fn is_supported(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") && Self::Avx2.is_supported()
            }
            #[cfg(target_arch = "x86_64")]
            Self::Amx => {
                is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512bf16")
                    && is_x86_feature_detected!("avx512vnni")
                    && Self::Avx512.is_supported()
                    && tile::amx_is_granted()
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 | Self::Amx => false,
        }
    }

    /// The name used by `--kernel-isa` and in logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `a·b + c`, fused where the instruction set has it.
#[inline(always)]
pub(crate) fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Compiles one generic kernel body per instruction set and calls the one asked for.
///
/// `dispatch!(isa, body::<FUSED>(arguments))`: the body must be `#[inline(always)]`, so that it takes on the target
/// features of the wrapper it is inlined into and the compiler vectorises it accordingly.
macro_rules! dispatch {
    ($isa:expr, $body:ident ( $($name:ident : $type:ty),* $(,)? ) $(-> $out:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn avx2($($name: $type),*) $(-> $out)? { $body::<true>($($name),*) }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
        fn avx512($($name: $type),*) $(-> $out)? { $body::<true>($($name),*) }
        match $isa {
            $crate::kernel::cpu::Isa::Portable => $body::<false>($($name),*),
            #[cfg(target_arch = "x86_64")]
            $crate::kernel::cpu::Isa::Avx2 => {
                // SAFETY: an `Isa` above portable is only chosen after `is_supported` returned true.
                unsafe { avx2($($name),*) }
            }
            #[cfg(target_arch = "x86_64")]
            $crate::kernel::cpu::Isa::Avx512 | $crate::kernel::cpu::Isa::Amx => {
                // SAFETY: as above.
                unsafe { avx512($($name),*) }
            }
            #[cfg(target_arch = "aarch64")]
            $crate::kernel::cpu::Isa::Neon => $body::<true>($($name),*),
            // Levels of other architectures are never chosen.
            #[cfg(not(target_arch = "aarch64"))]
            $crate::kernel::cpu::Isa::Neon => $body::<false>($($name),*),
            #[cfg(not(target_arch = "x86_64"))]
            $crate::kernel::cpu::Isa::Avx2 | $crate::kernel::cpu::Isa::Avx512 | $crate::kernel::cpu::Isa::Amx => {
                $body::<false>($($name),*)
            }
        }
    }};
}
pub(crate) use dispatch;
