//! Safetensors on disk to tensors in memory: opened, checked, converted to f32.
//!
//! Receives paths that `source` has verified and never looks for files itself. Everything is checked before a byte is
//! interpreted: the header's size, every expected name, shape and dtype; and afterwards that nothing which looks like
//! part of the encoder was left unread, because a tensor that the configuration does not explain means that the
//! vectors would be wrong. Stored f32, f16 and bf16 are accepted and widened to f32;
//! the kernels narrow them again where another number format is asked for.

#![expect(unsafe_code, reason = "one memory mapping of a verified file, and giving its pages back")]

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use half::{bf16, f16};
use memmap2::{Mmap, UncheckedAdvice};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorView};
use thiserror::Error;

use crate::excerpt::{excerpt, path_excerpt};

/// A header describes tensors; 16 MiB is room for more than 100,000 of them.
const MAX_HEADER_BYTES: u64 = 16 * 1024 * 1024;
/// As many sizes of a shape as messages show: a header can claim millions, and no tensor here has more than two.
const SHOWN_SIZES: usize = 8;

/// Why weights cannot be used.
#[derive(Debug, Error)]
pub enum WeightsError {
    #[error("cannot read {}: {reason}", path_excerpt(.path))]
    Read { path: PathBuf, reason: String },
    #[error("{} is not a safetensors file: {}", path_excerpt(.path), excerpt(.reason))]
    Format { path: PathBuf, reason: String },
    #[error("tensor {name} is missing from the weights")]
    Missing { name: String },
    #[error("tensor {name} has shape {found:?}, the configuration needs {expected:?}")]
    Shape { name: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("tensor {name} is stored as {dtype:?}; f32, f16 and bf16 are supported")]
    Dtype { name: String, dtype: Dtype },
    #[error("the weights hold tensors that the configuration does not explain: {names}")]
    Unexpected { names: String },
    #[error("tensor {name}: {reason}")]
    Tensor { name: String, reason: String },
}

impl WeightsError {
    /// The same error about a tensor under another name.
    #[must_use]
    pub fn renamed(self, rename: impl Fn(&str) -> String) -> Self {
        match self {
            Self::Missing { name } => Self::Missing { name: rename(&name) },
            Self::Shape { name, found, expected } => Self::Shape { name: rename(&name), found, expected },
            Self::Dtype { name, dtype } => Self::Dtype { name: rename(&name), dtype },
            Self::Tensor { name, reason } => Self::Tensor { name: rename(&name), reason },
            Self::Unexpected { names } => {
                let names: Vec<String> = names.split(", ").map(rename).collect();
                Self::Unexpected { names: names.join(", ") }
            }
            other @ (Self::Read { .. } | Self::Format { .. }) => other,
        }
    }
}

/// The open weight files of one model, and which of their tensors have been taken.
#[derive(Debug)]
pub struct Weights {
    files: Vec<OpenFile>,
    /// Canonical name to file, stored name.
    index: HashMap<String, (usize, String)>,
    taken: Mutex<BTreeSet<String>>,
}

/// One mapped file: its header, and where its data begins.
#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    data_start: usize,
}

impl OpenFile {
    /// Gives the pages of a tensor that was read back to the system: without this, a model would be in memory twice
    /// while it is loaded, once mapped and once packed.
    fn release(&self, bytes: Range<usize>) {
        if bytes.is_empty() {
            return;
        }
        // SAFETY: the mapping is shared and read-only; pages dropped from it are read from the file again when needed.
        let advised = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, bytes.start, bytes.len()) };
        if let Err(error) = advised {
            tracing::debug!(%error, path = %self.path.display(), "the system keeps the pages of a tensor");
        }
    }
}

impl Weights {
    /// Opens the files and indexes their tensors under canonical names: `rename` maps each stored name.
    ///
    /// # Errors
    /// An unreadable or malformed file.
    pub fn open(paths: &[PathBuf], rename: impl Fn(&str) -> String) -> Result<Self, WeightsError> {
        let mut files = Vec::with_capacity(paths.len());
        let mut index = HashMap::new();
        for path in paths {
            let map = map_file(path)?;
            let format = |reason: String| WeightsError::Format { path: path.clone(), reason };
            let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| format(error.to_string()))?;
            for name in names(&metadata) {
                if index.insert(rename(&name), (files.len(), name.clone())).is_some() {
                    return Err(format(format!("tensor {name} is stored twice")));
                }
            }
            files.push(OpenFile { path: path.clone(), map, metadata, data_start: 8 + header });
        }
        Ok(Self { files, index, taken: Mutex::default() })
    }

    /// Reads `name` from the tensor stored as `other` where `name` itself is not stored.
    pub fn stand_in(&mut self, name: &str, other: &str) {
        if !self.index.contains_key(name)
            && let Some(place) = self.index.get(other).cloned()
        {
            self.index.insert(name.to_owned(), place);
        }
    }

    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// The tensor's values as f32, row-major, after checking its shape.
    ///
    /// # Errors
    /// Missing, another shape, or a dtype that is not a float we know.
    pub fn take(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        self.with_view(name, |view, release| {
            if view.shape() != shape {
                let found = view.shape().iter().copied().take(SHOWN_SIZES).collect();
                let expected = shape.to_vec();
                return Err(WeightsError::Shape { name: name.to_owned(), found, expected });
            }
            self.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
            to_f32(name, view, release)
        })
    }

    /// As [`Self::take`], as a candle tensor on `device`.
    ///
    /// # Errors
    /// As [`Self::take`]; the device may refuse the memory.
    pub fn tensor(&self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor, WeightsError> {
        let values = self.take(name, shape)?;
        Tensor::from_vec(values, shape, device)
            .map_err(|error| WeightsError::Tensor { name: name.to_owned(), reason: error.to_string() })
    }

    /// The stored dtype of a tensor, for the model's description.
    ///
    /// # Errors
    /// Missing.
    pub fn dtype(&self, name: &str) -> Result<Dtype, WeightsError> {
        self.with_view(name, |view, _| Ok(view.dtype()))
    }

    /// Checks that no tensor accepted by `relevant` was left unread.
    ///
    /// # Errors
    /// Names the first few that were.
    pub fn refuse_unread(&self, relevant: impl Fn(&str) -> bool) -> Result<(), WeightsError> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unread: Vec<&str> =
            self.index.keys().map(String::as_str).filter(|name| !taken.contains(*name) && relevant(name)).collect();
        unread.sort_unstable();
        if unread.is_empty() {
            return Ok(());
        }
        unread.truncate(8);
        let names: Vec<String> = unread.into_iter().map(excerpt).collect();
        Err(WeightsError::Unexpected { names: names.join(", ") })
    }

    fn with_view<R>(
        &self,
        name: &str,
        read: impl FnOnce(&TensorView<'_>, &dyn Fn(Range<usize>)) -> Result<R, WeightsError>,
    ) -> Result<R, WeightsError> {
        let missing = || WeightsError::Missing { name: name.to_owned() };
        let (file, stored) = self.index.get(name).ok_or_else(missing)?;
        let file = self.files.get(*file).ok_or_else(missing)?;
        let info = file.metadata.info(stored).ok_or_else(missing)?;
        let (start, end) = info.data_offsets;
        let data = file.map.get(file.data_start + start..file.data_start + end).ok_or_else(missing)?;
        let format = |error: safetensors::SafeTensorError| WeightsError::Format {
            path: file.path.clone(),
            reason: error.to_string(),
        };
        let view = TensorView::new(info.dtype, info.shape.clone(), data).map_err(format)?;
        let data_start = file.data_start + start;
        read(&view, &|bytes| file.release(data_start + bytes.start..data_start + bytes.end))
    }
}

/// Lets candle's own model implementations read the same checked weights, as oracles.
impl candle_nn::var_builder::SimpleBackend for Weights {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let tensor = self.tensor(name, shape.dims(), device).map_err(candle_core::Error::wrap)?;
        tensor.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let shape = self.with_view(name, |view, _| Ok(view.shape().to_vec())).map_err(candle_core::Error::wrap)?;
        self.tensor(name, &shape, device).map_err(candle_core::Error::wrap)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.contains(name)
    }
}

fn map_file(path: &Path) -> Result<Mmap, WeightsError> {
    let read = |error: std::io::Error| WeightsError::Read { path: path.to_owned(), reason: error.to_string() };
    let file = File::open(path).map_err(read)?;
    let size = file.metadata().map_err(read)?.len();
    let format = |reason: &str| WeightsError::Format { path: path.to_owned(), reason: reason.to_owned() };
    if size < 8 {
        return Err(format("it is shorter than its header"));
    }
    // SAFETY: the file lies in a cache that replaces files by renaming, never by writing into them; or in a folder of the
    // operator, who is told not to write into files of a model that is being loaded. The mapping is dropped when the weights
    // are packed, seconds later.
    let map = unsafe { Mmap::map(&file) }.map_err(read)?;
    let header = map.first_chunk::<8>().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
    if header > MAX_HEADER_BYTES || header > size - 8 {
        return Err(format("its header is larger than 16 MiB or than the file"));
    }
    Ok(map)
}

fn names(metadata: &Metadata) -> Vec<String> {
    metadata.tensors().into_keys().collect()
}

fn to_f32(name: &str, view: &TensorView<'_>, release: &dyn Fn(Range<usize>)) -> Result<Vec<f32>, WeightsError> {
    let bytes = view.data();
    #[expect(clippy::wildcard_enum_match_arm, reason = "every other dtype, of today or later, is refused")]
    match view.dtype() {
        Dtype::F32 => Ok(convert(bytes.as_chunks().0, f32::from_le_bytes, release)),
        Dtype::F16 => Ok(convert(bytes.as_chunks().0, |b| f16::from_le_bytes(b).to_f32(), release)),
        Dtype::BF16 => Ok(convert(bytes.as_chunks().0, |b| bf16::from_le_bytes(b).to_f32(), release)),
        dtype => Err(WeightsError::Dtype { name: name.to_owned(), dtype }),
    }
}

/// Block by block, each in parallel and then given back: the word table of a multilingual model has a gigabyte.
fn convert<const N: usize>(
    stored: &[[u8; N]],
    value: impl Fn([u8; N]) -> f32 + Sync,
    release: &dyn Fn(Range<usize>),
) -> Vec<f32> {
    const BLOCK: usize = 1 << 22;
    const SHARE: usize = 1 << 18;
    let mut values = vec![0.0; stored.len()];
    for (index, (values, stored)) in values.chunks_mut(BLOCK).zip(stored.chunks(BLOCK)).enumerate() {
        values.par_chunks_mut(SHARE).zip(stored.par_chunks(SHARE)).for_each(|(values, stored)| {
            for (slot, stored) in values.iter_mut().zip(stored) {
                *slot = value(*stored);
            }
        });
        let start = index * BLOCK * N;
        release(start..start + stored.len() * N);
    }
    values
}
