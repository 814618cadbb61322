//! Matrix products by cuBLASLt, with plans that are kept: the search for an algorithm happens once for each shape.
//!
//! Sums are float in all formats, and products of floats are floats: TF32 is never used. A plan is for a power of two of
//! tokens and serves all smaller numbers down to half of it, so that a row seldom meets another algorithm because of its
//! company.

use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::Arc;

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::sys;
use cudarc::driver::CudaStream;

use super::cublas::{self, Functions};
use super::launch::Weight;
use super::{Buffer, CudaError, Format};
use crate::kernel::MatrixShape;

/// What algorithms may use besides their operands; NVIDIA's recommendation for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// A handle, its workspace, and the plans made so far.
pub(super) struct Matmul {
    library: &'static Functions,
    handle: sys::cublasLtHandle_t,
    workspace: Buffer,
    plans: HashMap<Key, Plan>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    format: Format,
    /// The most tokens.
    tokens: usize,
    shape: MatrixShape,
    bias: bool,
}

/// `out = x·weightᵀ + bias`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operands<'a> {
    pub(super) x: &'a Buffer,
    pub(super) weight: &'a Weight,
    pub(super) out: &'a Buffer,
}

/// cuBLASLt counts columns first: what are rows here are columns there, so `out = x·weightᵀ` is `outᵀ = weight·xᵀ`.
struct Plan {
    library: &'static Functions,
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
        let library = cublas::library()?;
        // SAFETY: a workspace needs no initial value.
        let workspace = unsafe { stream.alloc::<u8>(WORKSPACE_BYTES) }?;
        let workspace = Buffer::of(workspace, stream);
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle.
        let made = unsafe { (library.create)(&raw mut handle) }.result();
        made.map_err(|error| CudaError::Other(format!("{} does not work with this driver: {error}", library.name)))?;
        Ok(Self { library, handle, workspace, plans: HashMap::new() })
    }

    /// See [`Pass::multiply`](super::launch::Pass::multiply), which checks the sizes.
    pub(super) fn run(
        &mut self,
        stream: &Arc<CudaStream>,
        format: Format,
        tokens: usize,
        Operands { x, weight, out }: Operands<'_>,
    ) -> Result<(), CudaError> {
        const MANY: usize = 16;
        let tokens_planned = tokens.next_power_of_two().max(MANY);
        let key = Key { format, tokens: tokens_planned, shape: weight.shape, bias: weight.bias.is_some() };
        if !self.plans.contains_key(&key) {
            let plan = Plan::new(self.library, self.handle, key, self.workspace.len())?;
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
            (self.library.matmul)(
                self.handle,
                plan.description,
                (&raw const one).cast(),
                weight.values.pointer as *const c_void,
                plan.weight,
                x.pointer as *const c_void,
                plan.x,
                (&raw const zero).cast(),
                out.pointer as *const c_void,
                plan.out,
                out.pointer as *mut c_void,
                plan.out,
                &raw const plan.algorithm,
                self.workspace.pointer as *mut c_void,
                self.workspace.len(),
                stream.cu_stream().cast(),
            )
        }
        .result()?;
        Ok(())
    }
}

impl Drop for Matmul {
    fn drop(&mut self) {
        // Before the handle; what fails here has nobody to hear it.
        self.plans.clear();
        // SAFETY: made in `new`, used nowhere else, destroyed once.
        let _ = unsafe { (self.library.destroy)(self.handle) };
    }
}

impl Plan {
    fn new(
        library: &'static Functions,
        handle: sys::cublasLtHandle_t,
        key: Key,
        workspace_bytes: usize,
    ) -> Result<Self, CudaError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let (n, k) = (key.shape.n as u64, key.shape.k as u64);
        let data = match key.format {
            Format::F32 => sys::cudaDataType_t::CUDA_R_32F,
            Format::F16 => sys::cudaDataType_t::CUDA_R_16F,
            Format::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        };
        // Whatever was made is destroyed when this is dropped, also on the way out of a failure.
        let mut plan = Self {
            library,
            description: std::ptr::null_mut(),
            weight: std::ptr::null_mut(),
            x: std::ptr::null_mut(),
            out: std::ptr::null_mut(),
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        // Neither TF32 nor any other format that is narrower than its name.
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        // SAFETY: writes one handle.
        unsafe { (library.description_create)(&raw mut plan.description, compute, sys::cudaDataType_t::CUDA_R_32F) }
            .result()?;
        for (layout, rows, columns) in
            [(&mut plan.weight, k, n), (&mut plan.x, k, key.tokens as u64), (&mut plan.out, n, key.tokens as u64)]
        {
            // SAFETY: writes one handle.
            unsafe { (library.layout_create)(layout, data, rows, columns, rows.cast_signed()) }.result()?;
        }
        plan.describe(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &1_i32)?;
        plan.describe(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &0_i32)?;
        if key.bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            plan.describe(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        }
        plan.algorithm = plan.found(handle, workspace_bytes)?;
        Ok(plan)
    }

    /// The algorithm that the library thinks best.
    fn found(
        &self,
        handle: sys::cublasLtHandle_t,
        workspace_bytes: usize,
    ) -> Result<sys::cublasLtMatmulAlgo_t, CudaError> {
        let library = self.library;
        let mut preference = Preference { library, handle: std::ptr::null_mut() };
        // SAFETY: writes one handle.
        unsafe { (library.preference_create)(&raw mut preference.handle) }.result()?;
        // SAFETY: the attribute is a size_t, and is copied.
        unsafe {
            (library.preference_set)(
                preference.handle,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace_bytes).cast(),
                size_of::<usize>(),
            )
        }
        .result()?;
        let (mut found, mut n_found) = (MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit(), 0);
        // SAFETY: all handles were made above and are alive; there is room for the one result that is asked for.
        unsafe {
            (library.heuristic)(
                handle,
                self.description,
                self.weight,
                self.x,
                self.out,
                self.out,
                preference.handle,
                1,
                found.as_mut_ptr(),
                &raw mut n_found,
            )
        }
        .result()?;
        if n_found == 0 {
            return Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED).into());
        }
        // SAFETY: the library has written as many as it says.
        let found = unsafe { found.assume_init() };
        found.state.result()?;
        Ok(found.algo)
    }

    fn describe<T: bytemuck::Pod>(
        &self,
        attribute: sys::cublasLtMatmulDescAttributes_t,
        value: &T,
    ) -> Result<(), CudaError> {
        // SAFETY: the callers give each attribute the type that it is documented with; it is copied.
        unsafe {
            (self.library.description_set)(
                self.description,
                attribute,
                std::ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        }
        .result()?;
        Ok(())
    }

    /// From now on for so many tokens.
    fn of_tokens(&self, tokens: usize) -> Result<(), CudaError> {
        let columns = tokens as u64;
        for layout in [self.x, self.out] {
            // SAFETY: the attribute is a uint64_t, and is copied.
            unsafe {
                (self.library.layout_set)(
                    layout,
                    sys::cublasLtMatrixLayoutAttribute_t::CUBLASLT_MATRIX_LAYOUT_COLS,
                    (&raw const columns).cast(),
                    size_of::<u64>(),
                )
            }
            .result()?;
        }
        Ok(())
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        for layout in [self.weight, self.x, self.out].into_iter().filter(|layout| !layout.is_null()) {
            // SAFETY: made in `new`, owned by this plan, destroyed once.
            let _ = unsafe { (self.library.layout_destroy)(layout) };
        }
        if !self.description.is_null() {
            // SAFETY: as above.
            let _ = unsafe { (self.library.description_destroy)(self.description) };
        }
    }
}

struct Preference {
    library: &'static Functions,
    handle: sys::cublasLtMatmulPreference_t,
}

impl Drop for Preference {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: made in `found`, owned by this value, destroyed once.
            let _ = unsafe { (self.library.preference_destroy)(self.handle) };
        }
    }
}
