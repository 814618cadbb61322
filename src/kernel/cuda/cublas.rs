//! cuBLASLt, opened at run time under the names that its releases have.
//!
//! The functions used here are the same in CUDA 12 and 13. The first is looked for first: its library works with every driver
//! from 550 on, that of CUDA 13 needs 580. What they take and give is described by `cudarc`'s types.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use cudarc::cublaslt::sys;
use libloading::Library;
use sys::cublasStatus_t as Status;

use super::CudaError;

/// The names, in the order in which they are tried. The last one is where a developer's link points.
pub(super) const NAMES: [&str; 3] = ["libcublasLt.so.12", "libcublasLt.so.13", "libcublasLt.so"];

/// Bare constant and mutable pointers, as C declares them.
type Constant = *const c_void;
type Mutable = *mut c_void;

/// A struct of the functions, each with its name in the library, and a function that finds them all.
macro_rules! functions {
    ($($field:ident = $name:literal ($($parameter:ty),*);)*) => {
        /// All that is used of the library. Calling any of them is as unsafe as its documentation says.
        pub(super) struct Functions {
            /// Which of [`NAMES`] was found.
            pub(super) name: &'static str,
            $(pub(super) $field: unsafe extern "C" fn($($parameter),*) -> Status,)*
            /// Open for as long as the process lives, and with it the functions.
            _library: Library,
        }

        impl Functions {
            fn find(name: &'static str, library: Library) -> Result<Self, libloading::Error> {
                Ok(Self {
                    name,
                    // SAFETY: cublasLt.h declares each of them with these parameters, in 12 and in 13.
                    $($field: *unsafe { library.get($name) }?,)*
                    _library: library,
                })
            }
        }
    };
}

functions! {
    create = c"cublasLtCreate" (*mut sys::cublasLtHandle_t);
    destroy = c"cublasLtDestroy" (sys::cublasLtHandle_t);
    layout_create = c"cublasLtMatrixLayoutCreate" (*mut sys::cublasLtMatrixLayout_t, sys::cudaDataType, u64, u64, i64);
    layout_set = c"cublasLtMatrixLayoutSetAttribute"
        (sys::cublasLtMatrixLayout_t, sys::cublasLtMatrixLayoutAttribute_t, Constant, usize);
    layout_destroy = c"cublasLtMatrixLayoutDestroy" (sys::cublasLtMatrixLayout_t);
    description_create = c"cublasLtMatmulDescCreate"
        (*mut sys::cublasLtMatmulDesc_t, sys::cublasComputeType_t, sys::cudaDataType_t);
    description_set = c"cublasLtMatmulDescSetAttribute"
        (sys::cublasLtMatmulDesc_t, sys::cublasLtMatmulDescAttributes_t, Constant, usize);
    description_destroy = c"cublasLtMatmulDescDestroy" (sys::cublasLtMatmulDesc_t);
    preference_create = c"cublasLtMatmulPreferenceCreate" (*mut sys::cublasLtMatmulPreference_t);
    preference_set = c"cublasLtMatmulPreferenceSetAttribute"
        (sys::cublasLtMatmulPreference_t, sys::cublasLtMatmulPreferenceAttributes_t, Constant, usize);
    preference_destroy = c"cublasLtMatmulPreferenceDestroy" (sys::cublasLtMatmulPreference_t);
    heuristic = c"cublasLtMatmulAlgoGetHeuristic"
        (sys::cublasLtHandle_t, sys::cublasLtMatmulDesc_t, sys::cublasLtMatrixLayout_t, sys::cublasLtMatrixLayout_t,
         sys::cublasLtMatrixLayout_t, sys::cublasLtMatrixLayout_t, sys::cublasLtMatmulPreference_t, c_int,
         *mut sys::cublasLtMatmulHeuristicResult_t, *mut c_int);
    matmul = c"cublasLtMatmul"
        (sys::cublasLtHandle_t, sys::cublasLtMatmulDesc_t, Constant, Constant, sys::cublasLtMatrixLayout_t, Constant,
         sys::cublasLtMatrixLayout_t, Constant, Constant, sys::cublasLtMatrixLayout_t, Mutable,
         sys::cublasLtMatrixLayout_t, *const sys::cublasLtMatmulAlgo_t, Mutable, usize, sys::cudaStream_t);
}

/// The library, opened once for the process.
///
/// # Errors
/// [`CudaError::NoMatmul`]: it is under none of its names, or lacks a function.
pub(super) fn library() -> Result<&'static Functions, CudaError> {
    static FOUND: OnceLock<Option<Functions>> = OnceLock::new();
    let open = |name: &&'static str| {
        // SAFETY: NVIDIA's library has no initialiser that could misbehave, and is never closed.
        let library = unsafe { Library::new(*name) }.ok()?;
        Functions::find(name, library).ok()
    };
    FOUND.get_or_init(|| NAMES.iter().find_map(open)).as_ref().ok_or(CudaError::NoMatmul)
}
