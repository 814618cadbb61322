//! Host memory that a device copies from and to by itself. It stays where it is, so the driver needs no copy of its own on the
//! way, and a copy to the device is only asked for: the thread goes on to the kernels.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaStream, PinnedHostSlice};

use super::{Buffer, CudaError, Device};

/// Locked host memory of one device, which grows to the most that was ever needed.
pub struct Pinned {
    memory: Option<PinnedHostSlice<u8>>,
    stream: Arc<CudaStream>,
    /// The device may not have read it yet.
    in_flight: bool,
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pinned").field(&self.len()).finish()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.in_flight {
            // Memory that is being read must not be given back; what fails here is told by the next call.
            let _ = self.stream.synchronize();
        }
    }
}

impl Pinned {
    pub(super) const fn new(stream: Arc<CudaStream>) -> Self {
        Self { memory: None, stream, in_flight: false }
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.memory.as_ref().map_or(0, PinnedHostSlice::len)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Room for `bytes` at least, whose contents are lost if it has to be another one.
    ///
    /// # Errors
    /// The host has no memory that can be locked, or the device failed.
    pub fn grow(&mut self, bytes: usize) -> Result<(), CudaError> {
        if self.len() < bytes {
            self.settle()?;
            self.memory = None;
            let bytes = bytes.next_power_of_two();
            // SAFETY: bytes of the operating system's have some value, and all that are read were written before.
            self.memory = Some(unsafe { self.stream.context().alloc_pinned_with_flags(bytes, 0) }?);
        }
        Ok(())
    }

    /// Copies `values` to the beginning of `buffer`, which has room for them. The values are taken at once, the copy happens
    /// in its turn.
    ///
    /// # Errors
    /// The host has no memory that can be locked, or the device failed.
    pub fn send<T: bytemuck::Pod>(&mut self, values: &[T], buffer: &mut Buffer) -> Result<(), CudaError> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        self.grow(bytes.len())?;
        self.settle()?;
        let Some(memory) = &mut self.memory else { return Ok(()) };
        let here = &mut memory.as_mut_slice()?[..bytes.len()];
        here.copy_from_slice(bytes);
        self.in_flight = true;
        // Asked for with a plain slice: an event for each copy is not needed, `in_flight` says the same.
        Ok(self.stream.memcpy_htod(&*here, &mut buffer.memory)?)
    }

    /// The first `len` values of `buffer`, once everything that was asked for is done.
    ///
    /// # Errors
    /// The device failed, now or while it computed; the host has no memory that can be locked.
    ///
    /// # Panics
    /// The buffer holds fewer.
    pub fn receive(&mut self, buffer: &Buffer, len: usize) -> Result<Vec<f32>, CudaError> {
        let n_bytes = len * size_of::<f32>();
        self.grow(n_bytes)?;
        let Some(memory) = &mut self.memory else { return Ok(Vec::new()) };
        let here = &mut memory.as_mut_slice()?[..n_bytes];
        self.stream.memcpy_dtoh(&buffer.memory.slice(..n_bytes), here)?;
        self.stream.synchronize()?;
        Ok(bytemuck::cast_slice::<u8, f32>(here).to_vec())
    }

    /// Waits until the device has read what it was sent.
    fn settle(&mut self) -> Result<(), CudaError> {
        if std::mem::take(&mut self.in_flight) {
            self.stream.synchronize()?;
        }
        Ok(())
    }
}

impl Device {
    /// Locked host memory for copies to and from this device, none so far.
    pub fn pinned(&self) -> Pinned {
        Pinned::new(Arc::clone(&self.0.stream))
    }
}
