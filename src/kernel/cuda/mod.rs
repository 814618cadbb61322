//! NVIDIA GPUs: the driver, memory, the kernels of `device/`, and matrix products by cuBLASLt.
//!
//! Nothing is linked. The driver and cuBLASLt are opened when a GPU is asked for, so one executable runs with and without
//! them. The kernels travel as PTX for compute capability 8.0, which the driver translates; `device/compile.py` makes it.
//!
//! A [`Device`] has one stream for kernels: they run in the order in which they were asked for. Batches go up and vectors come
//! down in two streams beside it ([`Pinned`]), which events order. What is asked for is not checked on the device: whoever
//! calls [`Device::launch`] answers for pointers and sizes. Launches can be recorded and asked for as one ([`Recording`]).

#![expect(unsafe_code, reason = "foreign functions: the driver, cuBLASLt and kernels take bare pointers")]

mod cublas;
mod format;
pub mod launch;
mod matmul;
mod pinned;
mod record;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, DriverError, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;
use thiserror::Error;

use matmul::{Matmul, Operands};

pub use format::Format;
pub use pinned::Pinned;
pub use record::Recording;

/// The kernels, as the driver reads them.
const PTX: &str = include_str!("kernels.ptx");
/// The least compute capability with `mma.sync` of bfloat16: Ampere.
const LEAST_CAPABILITY: (i32, i32) = (8, 0);
/// Threads of a block, in all kernels.
pub const BLOCK: u32 = 128;

/// Why a GPU cannot be used, or failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CudaError {
    #[error("no NVIDIA driver was found: libcuda.so.1 is not here")]
    NoDriver,
    #[error(
        "no cuBLASLt was found: neither libcublasLt.so.12 nor libcublasLt.so.13 is here; install CUDA 12.4 or later, or use the CUDA \
         image"
    )]
    NoMatmul,
    #[error("there is no GPU {ordinal}: {}", counted(*.count))]
    NoSuchDevice { ordinal: usize, count: usize },
    #[error("GPU {ordinal} ({name}) has compute capability {major}.{minor}, and 8.0 is needed")]
    TooOld { ordinal: usize, name: String, major: i32, minor: i32 },
    #[error("out of device memory")]
    OutOfMemory,
    /// Nothing that this process computes on the device can be trusted any more.
    #[error("the GPU is lost: {0}")]
    Lost(String),
    #[error("CUDA: {0}")]
    Other(String),
}

/// One GPU, opened. Clones share it.
#[derive(Clone)]
pub struct Device {
    inner: Arc<Inner>,
    /// Of the kernels, and of everything that is loaded.
    stream: Arc<CudaStream>,
    /// Whether the launches of small batches are recorded and replayed.
    records: bool,
}

struct Inner {
    context: Arc<CudaContext>,
    /// Of what batches bring, and of what they leave with.
    up: Arc<CudaStream>,
    down: Arc<CudaStream>,
    /// A stream for recording alone.
    recorder: Mutex<Arc<CudaStream>>,
    played: AtomicU64,
    kernels: HashMap<&'static str, CudaFunction>,
    matmul: Mutex<Matmul>,
    name: String,
}

/// Memory of a device, 256-byte aligned.
pub struct Buffer {
    memory: CudaSlice<u8>,
    pointer: u64,
}

/// One parameter of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Argument {
    Pointer(u64),
    Int(i32),
    Long(u64),
    Float(f32),
}

/// The shape of a launch: blocks of [`BLOCK`] threads.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    pub blocks: (u32, u32),
    pub shared_bytes: u32,
}

/// How many GPUs there are; 0 where there is no driver.
pub fn count() -> usize {
    if !is_driver_present() {
        return 0;
    }
    CudaContext::device_count().ok().and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
}

fn is_driver_present() -> bool {
    // SAFETY: opens a library by its usual name and closes it; NVIDIA's has no initialiser that could misbehave.
    unsafe { sys::is_culib_present() }
}

fn counted(count: usize) -> String {
    match count {
        0 => "there is none".to_owned(),
        1 => "there is one, number 0".to_owned(),
        _ => format!("there are {count}, numbers 0 to {}", count - 1),
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.label()).finish()
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Buffer").field(&self.memory.num_bytes()).finish()
    }
}

// === impl CudaError ===

impl From<DriverError> for CudaError {
    fn from(error: DriverError) -> Self {
        /// What poisons the context: every later call fails with the same, and results are worth nothing.
        const STICKY: [CUresult; 11] = [
            CUresult::CUDA_ERROR_DEINITIALIZED,
            CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE,
            CUresult::CUDA_ERROR_ECC_UNCORRECTABLE,
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
            CUresult::CUDA_ERROR_LAUNCH_TIMEOUT,
            CUresult::CUDA_ERROR_ASSERT,
            CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR,
            CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION,
            CUresult::CUDA_ERROR_MISALIGNED_ADDRESS,
            CUresult::CUDA_ERROR_LAUNCH_FAILED,
            CUresult::CUDA_ERROR_UNKNOWN,
        ];
        let code = error.0;
        if code == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            Self::OutOfMemory
        } else if STICKY.contains(&code) {
            Self::Lost(format!("{code:?}"))
        } else {
            Self::Other(format!("{code:?}"))
        }
    }
}

// === impl Device ===

impl Device {
    /// Opens a GPU and loads the kernels.
    ///
    /// # Errors
    /// No driver, no such device, one that is too old, or no cuBLASLt.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        if !is_driver_present() {
            return Err(CudaError::NoDriver);
        }
        let count = count();
        if ordinal >= count {
            return Err(CudaError::NoSuchDevice { ordinal, count });
        }
        let context = CudaContext::new(ordinal)?;
        let name = context.name()?;
        let (major, minor) = context.compute_capability()?;
        if (major, minor) < LEAST_CAPABILITY {
            return Err(CudaError::TooOld { ordinal, name, major, minor });
        }
        // SAFETY: events of each buffer would order the streams; here `Pinned`, the only one that uses another stream than
        // the kernels', orders what it does, and says what its callers have to wait for.
        unsafe { context.disable_event_tracking() };
        let (stream, up, down) = (context.new_stream()?, context.new_stream()?, context.new_stream()?);
        let (recorder, played) = (Mutex::new(context.new_stream()?), AtomicU64::new(0));
        let module = context.load_module(Ptx::from_src(PTX))?;
        let load = |name: &'static str| Ok((name, module.load_function(name)?));
        let kernels = launch::KERNELS.into_iter().map(load).collect::<Result<_, DriverError>>()?;
        let matmul = Mutex::new(Matmul::new(&stream)?);
        let inner = Arc::new(Inner { context, up, down, recorder, played, kernels, matmul, name });
        Ok(Self { inner, stream, records: true })
    }

    /// The device's name, for logs.
    pub fn label(&self) -> String {
        format!("cuda:{} ({})", self.inner.context.ordinal(), self.inner.name)
    }

    /// Free memory and all memory, in bytes, once everything that was asked for is done: what a stream gives back is free
    /// when it comes to that.
    ///
    /// # Errors
    /// The device failed.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.settle()?;
        Ok(self.inner.context.mem_get_info()?)
    }

    /// Waits until everything that was asked for is done.
    ///
    /// # Errors
    /// The device failed, now or before.
    pub fn settle(&self) -> Result<(), CudaError> {
        for stream in [&self.inner.up, &self.stream, &self.inner.down] {
            stream.synchronize()?;
        }
        Ok(())
    }

    /// Memory whose contents are not defined.
    ///
    /// # Errors
    /// Out of memory.
    pub fn allocate(&self, bytes: usize) -> Result<Buffer, CudaError> {
        // SAFETY: bytes need no initial value, and nothing is read that was not written.
        let memory = unsafe { self.stream.alloc::<u8>(bytes.max(1)) }?;
        Ok(Buffer::of(memory, &self.stream))
    }

    /// A copy of `values` on the device.
    ///
    /// # Errors
    /// Out of memory.
    pub fn upload<T: bytemuck::Pod>(&self, values: &[T]) -> Result<Buffer, CudaError> {
        let mut buffer = self.allocate(size_of_val(values))?;
        self.write(values, &mut buffer)?;
        Ok(buffer)
    }

    /// A buffer of at least so many bytes, whose contents are lost if it has to be another one: no copy from or to it may
    /// then be under way. Never smaller than it was: batches of all sizes come and go.
    ///
    /// # Errors
    /// Out of memory; the buffer is then empty.
    pub fn grow(&self, buffer: &mut Buffer, bytes: usize) -> Result<(), CudaError> {
        if buffer.len() < bytes {
            *buffer = self.allocate(0)?;
            *buffer = self.allocate(bytes.next_power_of_two())?;
            // Memory is there when the stream that it was asked for in has come to it, and not before.
            self.inner.up.join(&self.stream)?;
        }
        Ok(())
    }

    /// Overwrites the beginning of `buffer`.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// There is not enough room.
    pub fn write<T: bytemuck::Pod>(&self, values: &[T], buffer: &mut Buffer) -> Result<(), CudaError> {
        self.stream.memcpy_htod(bytemuck::cast_slice::<T, u8>(values), &mut buffer.memory)?;
        Ok(())
    }

    /// The first `len` values of `buffer`, once everything that was asked for is done.
    ///
    /// # Errors
    /// The device failed, now or while it computed.
    ///
    /// # Panics
    /// The buffer holds fewer.
    pub fn read(&self, buffer: &Buffer, len: usize) -> Result<Vec<f32>, CudaError> {
        let mut values = vec![0.0_f32; len];
        let view = buffer.memory.slice(..len * size_of::<f32>());
        self.stream.memcpy_dtoh(&view, bytemuck::cast_slice_mut::<f32, u8>(&mut values))?;
        self.stream.synchronize()?;
        Ok(values)
    }

    /// Puts a kernel into the stream.
    ///
    /// # Errors
    /// The device failed, maybe in something that was asked for before.
    fn launch(&self, kernel: &'static str, grid: Grid, arguments: &[Argument]) -> Result<(), CudaError> {
        let function = self.inner.kernels.get(kernel).ok_or_else(|| CudaError::Other(format!("no kernel {kernel}")))?;
        let mut builder = self.stream.launch_builder(function);
        for argument in arguments {
            match argument {
                Argument::Pointer(value) | Argument::Long(value) => builder.arg(value),
                Argument::Int(value) => builder.arg(value),
                Argument::Float(value) => builder.arg(value),
            };
        }
        let config = LaunchConfig {
            grid_dim: (grid.blocks.0, grid.blocks.1, 1),
            block_dim: (BLOCK, 1, 1),
            shared_mem_bytes: grid.shared_bytes,
        };
        // SAFETY: `launch.rs`, the only caller, gives each kernel the parameters of its declaration, and pointers to
        // buffers of the sizes that it reads and writes.
        unsafe { builder.launch(config) }?;
        Ok(())
    }

    /// See [`launch::Pass::multiply`], the only caller, which checks the sizes.
    fn multiply(&self, format: Format, tokens: usize, operands: Operands<'_>) -> Result<(), CudaError> {
        let mut matmul = self.inner.matmul.lock().unwrap_or_else(PoisonError::into_inner);
        matmul.run(&self.stream, format, tokens, operands)
    }
}

// === impl Buffer ===

impl Buffer {
    fn of(memory: CudaSlice<u8>, stream: &Arc<CudaStream>) -> Self {
        let pointer = memory.device_ptr(stream).0;
        Self { memory, pointer }
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.memory.num_bytes()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where it lies, to tell whether it is still the same.
    pub const fn address(&self) -> u64 {
        self.pointer
    }
}
