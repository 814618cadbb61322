//! Matrix products by cuBLASLt, with plans that are kept: the search for an algorithm happens once for each shape.
//!
//! Sums are float in all formats, and products of floats are floats: TF32 is never used. A plan is for a power of two of
//! tokens and serves all smaller numbers down to half of it, so that a row seldom meets another algorithm because of its
//! company.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::CudaStream;

use super::launch::Weight;
use super::{Buffer, CudaError, Format};

/// What algorithms may use besides their operands; NVIDIA's recommendation for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// A handle, its workspace, and the plans made so far.
pub(super) struct Matmul {
    handle: sys::cublasLtHandle_t,
    workspace: Buffer,
    plans: HashMap<Key, Plan>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    format: Format,
    /// The most tokens.
    tokens: usize,
    shape: (usize, usize),
    bias: bool,
}

/// cuBLASLt counts columns first: what are rows here are columns there, so `out = x·weightᵀ` is `outᵀ = weight·xᵀ`.
struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

// SAFETY: cuBLASLt's objects belong to no thread; the lock around the owner lets one use them at a time.
unsafe impl Send for Matmul {}

impl From<CublasError> for CudaError {
    fn from(error: CublasError) -> Self {
        let status = error.0;
        if status == sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED {
            Self::OutOfMemory
        } else if status == sys::cublasStatus_t::CUBLAS_STATUS_EXECUTION_FAILED {
            Self::Lost(format!("{status:?}"))
        } else {
            Self::Other(format!("{status:?}"))
        }
    }
}

impl Matmul {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self, CudaError> {
        // SAFETY: opens a library by its usual names and closes it.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoMatmul);
        }
        // SAFETY: a workspace needs no initial value.
        let workspace = unsafe { stream.alloc::<u8>(WORKSPACE_BYTES) }?;
        let workspace = Buffer::of(workspace, stream);
        Ok(Self { handle: result::create_handle()?, workspace, plans: HashMap::new() })
    }

    /// See [`Pass::multiply`](super::launch::Pass::multiply), which checks the sizes.
    pub(super) fn run(
        &mut self,
        stream: &Arc<CudaStream>,
        (format, tokens): (Format, usize),
        weight: &Weight,
        (x, out): (u64, u64),
    ) -> Result<(), CudaError> {
        const MANY: usize = 16;
        let tokens_planned = tokens.next_power_of_two().max(MANY);
        let key = Key { format, tokens: tokens_planned, shape: weight.shape, bias: weight.bias.is_some() };
        if !self.plans.contains_key(&key) {
            let plan = Plan::new(self.handle, key, self.workspace.len())?;
            self.plans.insert(key, plan);
        }
        let Some(plan) = self.plans.get(&key) else { return Err(CudaError::Other("a plan vanished".to_owned())) };
        plan.of_tokens(tokens)?;
        if let Some(bias) = &weight.bias {
            plan.describe(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias.pointer)?;
        }
        let (one, zero) = (1.0_f32, 0.0_f32);
        // SAFETY: the layouts describe the operands as `Pass::multiply` has checked them, the workspace is as large as the plan
        // was told, and everything lives until the stream is done: buffers are freed in the same stream.
        unsafe {
            result::matmul(
                self.handle,
                plan.description,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                weight.values.pointer as *const c_void,
                plan.weight,
                x as *const c_void,
                plan.x,
                out as *const c_void,
                plan.out,
                out as *mut c_void,
                plan.out,
                &raw const plan.algorithm,
                self.workspace.pointer as *mut c_void,
                self.workspace.len(),
                stream.cu_stream().cast(),
            )
        }?;
        Ok(())
    }
}

impl Drop for Matmul {
    fn drop(&mut self) {
        // Before the handle; what fails here has nobody to hear it.
        self.plans.clear();
        // SAFETY: made by `create_handle`, used nowhere else, destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, key: Key, workspace_bytes: usize) -> Result<Self, CudaError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let (n, k) = (key.shape.0 as u64, key.shape.1 as u64);
        let data = match key.format {
            Format::F32 => sys::cudaDataType_t::CUDA_R_32F,
            Format::F16 => sys::cudaDataType_t::CUDA_R_16F,
            Format::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        };
        // Neither TF32 nor any other format that is narrower than its name.
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let mut plan = Self {
            description: result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F)?,
            weight: result::create_matrix_layout(data, k, n, k.cast_signed())?,
            x: result::create_matrix_layout(data, k, key.tokens as u64, k.cast_signed())?,
            out: result::create_matrix_layout(data, n, key.tokens as u64, n.cast_signed())?,
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        plan.describe(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &1_i32)?;
        plan.describe(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &0_i32)?;
        if key.bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            plan.describe(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        }
        let preference = Preference(result::create_matmul_pref()?);
        // SAFETY: the attribute is a size_t, and is copied.
        unsafe {
            result::set_matmul_pref_attribute(
                preference.0,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace_bytes).cast(),
                size_of::<usize>(),
            )
        }?;
        // SAFETY: all of them were made above and are alive.
        let found = unsafe {
            result::get_matmul_algo_heuristic(
                handle,
                plan.description,
                plan.weight,
                plan.x,
                plan.out,
                plan.out,
                preference.0,
            )
        }?;
        plan.algorithm = found.algo;
        Ok(plan)
    }

    fn describe<T: bytemuck::Pod>(
        &self,
        attribute: sys::cublasLtMatmulDescAttributes_t,
        value: &T,
    ) -> Result<(), CudaError> {
        // SAFETY: the callers give each attribute the type that it is documented with; it is copied.
        unsafe {
            result::set_matmul_desc_attribute(
                self.description,
                attribute,
                std::ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        }?;
        Ok(())
    }

    /// From now on for so many tokens.
    fn of_tokens(&self, tokens: usize) -> Result<(), CudaError> {
        let columns = tokens as u64;
        for layout in [self.x, self.out] {
            // SAFETY: the attribute is a uint64_t, and is copied.
            unsafe {
                result::set_matrix_layout_attribute(
                    layout,
                    sys::cublasLtMatrixLayoutAttribute_t::CUBLASLT_MATRIX_LAYOUT_COLS,
                    (&raw const columns).cast(),
                    size_of::<u64>(),
                )
            }?;
        }
        Ok(())
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        for layout in [self.weight, self.x, self.out] {
            // SAFETY: made by `create_matrix_layout`, owned by this plan, destroyed once.
            let _ = unsafe { result::destroy_matrix_layout(layout) };
        }
        // SAFETY: made by `create_matmul_desc`, owned by this plan, destroyed once.
        let _ = unsafe { result::destroy_matmul_desc(self.description) };
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by `create_matmul_pref`, owned by this value, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
