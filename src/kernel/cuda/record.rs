//! Launches that are recorded once and asked for as one ever after: CUDA graphs. The kernels of a small batch take less time
//! than it takes to ask for them one by one.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, result};

use super::{CudaError, Device};

/// Launches as they were asked for: the same kernels in the same order, with the same parameters.
pub struct Recording {
    graph: CudaGraph,
    device: Device,
}

// SAFETY: a graph belongs to no thread, and whoever has the recording is the only one that uses it.
unsafe impl Send for Recording {}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Recording").field(&self.device.label()).finish()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // It may still be played; what fails here is told by the next call.
        let _ = self.device.settle();
    }
}

impl Recording {
    /// Asks for all of it, behind what was asked for before. The memory that the kernels work on has to be there still.
    ///
    /// # Errors
    /// The device failed, maybe in something that was asked for before.
    pub fn play(&self) -> Result<(), CudaError> {
        let Device { inner, stream, .. } = &self.device;
        inner.context.bind_to_thread()?;
        // SAFETY: graph and stream are alive; of the memory that the kernels were given pointers to, the caller answers for
        // it, as for any launch.
        unsafe { result::graph::launch(self.graph.cu_graph_exec(), stream.cu_stream()) }?;
        inner.played.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Device {
    /// Records what `ask` asks of the device that it is given, and does none of it. Only kernels and products can be
    /// recorded, and of these only what was asked for before in the same shape: what libraries load and search when they
    /// first see it has no place in a recording.
    ///
    /// # Errors
    /// This cannot be recorded, or the device failed.
    pub fn record(&self, ask: impl FnOnce(&Self) -> Result<(), CudaError>) -> Result<Recording, CudaError> {
        // In a stream of its own: what other threads ask of the device meanwhile goes its own way.
        let stream = self.inner.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        let asked = ask(&Self { stream: Arc::clone(&stream), ..self.clone() });
        // In any case: a stream that records is good for nothing else.
        let graph = stream.end_capture(CUgraphInstantiate_flags(0));
        asked?;
        let graph = graph?.ok_or_else(|| CudaError::Other("nothing was recorded".to_owned()))?;
        Ok(Recording { graph, device: self.clone() })
    }

    /// How many recordings were played so far, of all models on this device.
    pub fn played(&self) -> u64 {
        self.inner.played.load(Ordering::Relaxed)
    }

    /// The same device, whose small batches are launched kernel by kernel.
    #[must_use]
    pub fn without_recordings(self) -> Self {
        Self { records: false, ..self }
    }

    /// Whether small batches are recorded.
    pub const fn records(&self) -> bool {
        self.records
    }
}
