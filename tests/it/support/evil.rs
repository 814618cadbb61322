//! An encoder whose behaviour is chosen by token id, around a real one. It records every batch it saw, so that tests
//! can count forward passes.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use candle_core::{Device, Tensor};
use embedserve::arch::packed::PackedBatch;
use embedserve::arch::{Encoder, EncoderError, Submitted};
use embedserve::kernel::Reduce;

/// Token ids with a meaning. All others are embedded as `[id, id + 1, ..]` scaled by position.
pub const ERROR: u32 = 7;
pub const PANIC: u32 = 8;
pub const NAN: u32 = 9;
pub const BLOCK: u32 = 10;
/// Too big for the device, however small the batch.
pub const TOO_BIG: u32 = 11;
/// The device is lost for good.
pub const LOST: u32 = 12;
/// Fails only together with [`COMPANION`].
pub const SHY: u32 = 13;
pub const COMPANION: u32 = 14;
/// Panics in a way that no `catch_unwind` outlives: what was thrown panics again when it is dropped.
pub const DIE: u32 = 15;

/// Hidden size of the vectors.
pub const HIDDEN: usize = 8;

/// The controls of an [`EvilEncoder`] that runs on another thread.
#[derive(Clone, Default)]
pub struct Evil(Arc<State>);

#[derive(Default)]
struct State {
    batches: Mutex<Vec<Vec<Vec<u32>>>>,
    released: Mutex<bool>,
    release: Condvar,
    /// What is wrong with every pass from now on.
    fault: Mutex<Fault>,
    /// Of an encoder that overlaps passes, what was asked of it.
    steps: Mutex<Vec<Step>>,
}

/// Half of a pass, by the first id of its first row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Submit(u32),
    Collect(u32),
}

/// What can be wrong with the device itself.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// Every vector is a little off.
    Drift,
    /// Vectors depend on how often the device was asked.
    Flicker,
    /// Rows in company have other vectors than alone.
    Crowd,
    Error,
    Hang,
    /// Every pass takes this long at least.
    Slow(Duration),
    /// Every token takes this long at least.
    Paced(Duration),
    /// More tokens than this do not fit.
    Small(usize),
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "evil payload");
    }
}

pub struct EvilEncoder(Evil);

/// The same on a device that computes beside its thread: a pass is computed when it is collected. What does not fit is told
/// at once, all other failures then.
pub struct OverlappingEncoder {
    inner: EvilEncoder,
    under_way: Vec<Option<UnderWay>>,
}

/// What a pass was begun with.
struct UnderWay {
    batch: PackedBatch,
    ways: Vec<Reduce>,
    skips: Vec<usize>,
}

impl Evil {
    pub fn encoder(&self) -> Box<dyn Encoder> {
        Box::new(EvilEncoder(self.clone()))
    }

    pub fn overlapping(&self) -> Box<dyn Encoder> {
        Box::new(OverlappingEncoder { inner: EvilEncoder(self.clone()), under_way: Vec::new() })
    }

    /// What an overlapping encoder was asked so far.
    pub fn steps(&self) -> Vec<Step> {
        self.0.steps.lock().unwrap().clone()
    }

    fn step(&self, step: Step) {
        self.0.steps.lock().unwrap().push(step);
    }

    /// The rows of every forward pass so far.
    pub fn batches(&self) -> Vec<Vec<Vec<u32>>> {
        self.0.batches.lock().unwrap().clone()
    }

    /// Forgets the passes so far.
    pub fn forget(&self) {
        self.0.batches.lock().unwrap().clear();
        self.0.steps.lock().unwrap().clear();
    }

    /// From now on this is wrong with the device.
    pub fn fault(&self, fault: Fault) {
        *self.0.fault.lock().unwrap() = fault;
    }

    /// Lets blocked passes go on, now and for ever.
    pub fn release(&self) {
        *self.0.released.lock().unwrap() = true;
        self.0.release.notify_all();
    }
}

/// The vector of a row, as mean pooling over the states below gives it.
pub fn expected(ids: &[u32]) -> Vec<f32> {
    let column = |c: usize| ids.iter().map(|id| f64::from(state(*id, c))).sum::<f64>() / ids.len() as f64;
    #[expect(clippy::cast_possible_truncation, reason = "rounded once, as the pooling does")]
    (0..HIDDEN).map(|c| column(c) as f32).collect()
}

fn state(id: u32, column: usize) -> f32 {
    (id as f32).mul_add(0.25, column as f32)
}

impl Encoder for EvilEncoder {
    fn forward(&mut self, batch: &PackedBatch) -> Result<Tensor, EncoderError> {
        let rows: Vec<Vec<u32>> = (0..batch.n_rows()).map(|row| batch.row(row).to_vec()).collect();
        self.0.0.batches.lock().unwrap().push(rows);
        let has = |id: u32| batch.ids().contains(&id);
        let fault = *self.0.0.fault.lock().unwrap();
        if has(BLOCK) || fault == Fault::Hang {
            let released = self.0.0.released.lock().unwrap();
            drop(self.0.0.release.wait_while(released, |released| !*released).unwrap());
        }
        if let Fault::Slow(pause) = fault {
            std::thread::sleep(pause);
        }
        if let Fault::Paced(pause) = fault {
            std::thread::sleep(pause * u32::try_from(batch.n_tokens()).unwrap());
        }
        assert!(!has(PANIC), "evil row");
        if has(DIE) {
            std::panic::panic_any(Bomb);
        }
        if has(LOST) {
            return Err(EncoderError::Lost { reason: "an illegal address".to_owned() });
        }
        if has(TOO_BIG) || matches!(fault, Fault::Small(capacity) if batch.n_tokens() > capacity) {
            return Err(EncoderError::OutOfMemory);
        }
        if fault == Fault::Error || has(ERROR) || (has(SHY) && has(COMPANION)) {
            return Err(EncoderError::Compute(candle_core::Error::Msg("evil row".to_owned())));
        }
        let drift = match fault {
            Fault::Drift => f32::EPSILON,
            Fault::Crowd if batch.n_rows() > 1 => 1.0,
            Fault::Flicker => self.0.batches().len() as f32,
            Fault::None
            | Fault::Crowd
            | Fault::Error
            | Fault::Hang
            | Fault::Slow(_)
            | Fault::Paced(_)
            | Fault::Small(_) => 0.0,
        };
        let value = |(id, column): (u32, usize)| if id == NAN { f32::NAN } else { state(id, column) + drift };
        let states = batch.ids().iter().flat_map(|&id| (0..HIDDEN).map(move |column| value((id, column)))).collect();
        Ok(Tensor::from_vec::<_, f32>(states, (batch.n_tokens(), HIDDEN), &Device::Cpu)?)
    }

    fn hidden_size(&self) -> usize {
        HIDDEN
    }
}

impl Encoder for OverlappingEncoder {
    fn forward(&mut self, batch: &PackedBatch) -> Result<Tensor, EncoderError> {
        self.inner.forward(batch)
    }

    fn submit(&mut self, batch: &PackedBatch, ways: &[Reduce], skips: &[usize]) -> Result<Submitted, EncoderError> {
        self.inner.0.step(Step::Submit(batch.ids()[0]));
        if batch.ids().contains(&TOO_BIG) {
            return Err(EncoderError::OutOfMemory);
        }
        assert!(self.under_way.iter().flatten().count() < 2, "more passes than may be under way");
        let (batch, ways, skips) = (batch.clone(), ways.to_vec(), skips.to_vec());
        self.under_way.push(Some(UnderWay { batch, ways, skips }));
        Ok(Submitted::UnderWay(self.under_way.len() - 1))
    }

    fn collect(&mut self, submitted: Submitted) -> Result<Vec<f32>, EncoderError> {
        let Submitted::UnderWay(number) = submitted else { panic!("{submitted:?} was never given") };
        let UnderWay { batch, ways, skips } = self.under_way[number].take().expect("a pass is collected once");
        self.inner.0.step(Step::Collect(batch.ids()[0]));
        self.inner.pooled(&batch, &ways, &skips)
    }

    fn overlaps(&self) -> bool {
        true
    }

    fn hidden_size(&self) -> usize {
        HIDDEN
    }
}
