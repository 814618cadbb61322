//! Host memory that a device copies from and to by itself, in streams beside its kernels: while one batch is computed, the
//! numbers of the next one go up and the vectors of the one before come down. It stays where it is, so the driver needs no
//! copy of its own on the way, and the thread that asks for a copy goes on.

use std::fmt;

use cudarc::driver::{CudaEvent, PinnedHostSlice};

use super::{Buffer, CudaError, Device};

/// Locked host memory of one device for copies in one direction, which grows to the most that was ever needed.
pub struct Pinned {
    memory: Option<Memory>,
    flight: Flight,
    /// Dropped last: the events above belong to its streams.
    device: Device,
}

struct Memory {
    bytes: PinnedHostSlice<u8>,
    /// The kernels have come to where the copy may begin.
    ready: CudaEvent,
    copied: CudaEvent,
}

/// What the device may still do with the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flight {
    Landed,
    /// A copy was asked for, and maybe no event stands behind it.
    Asked,
    /// The event stands behind the copy.
    Marked,
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pinned").field(&self.len()).finish()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Memory that is being copied must not be given back. What fails here is told by the next call; it may be the failure
        // of an earlier one, without having waited.
        if self.settle().is_err() {
            let _ = self.device.settle();
        }
    }
}

impl Pinned {
    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.memory.as_ref().map_or(0, |memory| memory.bytes.len())
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
            let context = &self.device.inner.context;
            let bytes = bytes.next_power_of_two();
            // SAFETY: bytes of the operating system's have some value, and all that are read were written before.
            let bytes = unsafe { context.alloc_pinned_with_flags(bytes, 0) }?;
            self.memory = Some(Memory { bytes, ready: context.new_event(None)?, copied: context.new_event(None)? });
        }
        Ok(())
    }

    /// Copies `values` to the beginning of `buffer`, which has room for them, for the kernels that are asked for from now
    /// on. The values are taken at once; the copy waits for no kernel, so none that was asked for before may still need
    /// what is there. The buffer is one that [`Device::grow`] made.
    ///
    /// # Errors
    /// The host has no memory that can be locked, or the device failed.
    pub fn send<T: bytemuck::Pod>(&mut self, values: &[T], buffer: &mut Buffer) -> Result<(), CudaError> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        self.grow(bytes.len())?;
        self.settle()?;
        let Self { memory: Some(memory), flight, device } = self else { return Ok(()) };
        let (stream, up) = (&device.stream, &device.inner.up);
        let here = &mut memory.bytes.as_mut_slice()?[..bytes.len()];
        here.copy_from_slice(bytes);
        *flight = Flight::Asked;
        // Asked for with a plain slice: the event of the library's own type would be one more.
        up.memcpy_htod(&*here, &mut buffer.memory)?;
        memory.copied.record(up)?;
        *flight = Flight::Marked;
        Ok(stream.wait(&memory.copied)?)
    }

    /// Asks for the first `len` values of `buffer`, as the kernels leave them that were asked for before. They are here when
    /// [`Self::arrived`] returns; until then no kernel may be asked to write there.
    ///
    /// # Errors
    /// The device failed; the host has no memory that can be locked.
    ///
    /// # Panics
    /// The buffer holds fewer.
    pub fn fetch(&mut self, buffer: &Buffer, len: usize) -> Result<(), CudaError> {
        let n_bytes = len * size_of::<f32>();
        self.grow(n_bytes)?;
        self.settle()?;
        let Self { memory: Some(memory), flight, device } = self else { return Ok(()) };
        let (stream, down) = (&device.stream, &device.inner.down);
        memory.ready.record(stream)?;
        down.wait(&memory.ready)?;
        let here = &mut memory.bytes.as_mut_slice()?[..n_bytes];
        *flight = Flight::Asked;
        down.memcpy_dtoh(&buffer.memory.slice(..n_bytes), here)?;
        memory.copied.record(down)?;
        *flight = Flight::Marked;
        Ok(())
    }

    /// The `len` values that were fetched last, once they are here.
    ///
    /// # Errors
    /// The device failed, now or while it computed.
    ///
    /// # Panics
    /// Fewer were fetched.
    pub fn arrived(&mut self, len: usize) -> Result<Vec<f32>, CudaError> {
        self.settle()?;
        let Some(memory) = &self.memory else { return Ok(Vec::new()) };
        let here = &memory.bytes.as_slice()?[..len * size_of::<f32>()];
        Ok(bytemuck::cast_slice::<u8, f32>(here).to_vec())
    }

    /// Waits until the device is done with the memory.
    fn settle(&mut self) -> Result<(), CudaError> {
        match (std::mem::replace(&mut self.flight, Flight::Landed), &self.memory) {
            (Flight::Marked, Some(memory)) => Ok(memory.copied.synchronize()?),
            (Flight::Asked, _) => self.device.settle(),
            (Flight::Landed | Flight::Marked, _) => Ok(()),
        }
    }
}

impl Device {
    /// Locked host memory for copies to this device, or from it, none so far.
    pub fn pinned(&self) -> Pinned {
        Pinned { memory: None, flight: Flight::Landed, device: self.clone() }
    }
}
