//! Memory that kernels stream through: zeroed, aligned to cache lines, on huge pages where the system grants them.
//!
//! Hardware prefetchers stop at page borders, and a weight of hundreds of megabytes needs a hundred thousand small pages
//! and eighty large ones. Most systems give huge pages only on request (`madvise`).

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use memmap2::{Advice, MmapMut};

/// Bytes past the end that may be read (prefetched, or loaded with a whole register) without leaving the buffer.
const SLACK: usize = 256;

/// A fixed number of values.
pub struct Pages<T> {
    map: MmapMut,
    len: usize,
    kind: PhantomData<T>,
}

/// Values of which every bit pattern is one, zeros included.
pub trait Plain: Copy + Send + Sync + 'static {}
impl Plain for f32 {}
impl Plain for u16 {}
impl Plain for i8 {}
impl Plain for u8 {}

impl<T: Plain> Pages<T> {
    /// `len` zeros.
    ///
    /// # Panics
    /// When the system has no memory left, as every other allocation does.
    pub fn zeroed(len: usize) -> Self {
        let bytes = len.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_add(SLACK));
        let map =
            bytes.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::OutOfMemory)).and_then(MmapMut::map_anon);
        let Ok(map) = map else {
            std::alloc::handle_alloc_error(std::alloc::Layout::new::<T>());
        };
        // A wish: without it everything works, slower.
        #[cfg(target_os = "linux")]
        if let Err(error) = map.advise(Advice::HugePage) {
            tracing::debug!(%error, "no huge pages");
        }
        Self { map, len, kind: PhantomData }
    }

    /// Memory held, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.map.len()
    }
}

impl<T: Plain> Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping begins on a page and holds `len` values, of which every bit pattern is valid.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.len) }
    }
}

impl<T: Plain> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; the exclusive borrow covers the mapping.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), self.len) }
    }
}

impl<T> std::fmt::Debug for Pages<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pages").field("len", &self.len).finish_non_exhaustive()
    }
}
