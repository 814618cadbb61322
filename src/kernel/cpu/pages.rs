//! Memory that kernels stream through: zeroed, aligned to cache lines, on huge pages where the system grants them.
//!
//! Hardware prefetchers stop at page borders, and a weight of 400 MiB needs a hundred thousand small pages or two hundred
//! large ones. Most systems give huge pages only on request (`madvise`), and only to a range that holds a whole
//! one: matrices of a megabyte get them when they lie side by side, in an [`Arena`].

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{Advice, MmapMut, MmapRaw};

use super::tile::LINE;

/// Bytes past the end that may be read (prefetched, or loaded with a whole register) without leaving the buffer.
const SLACK: usize = 256;
/// A huge page of x86-64, and of Arm with pages of 4 KiB.
const HUGE: usize = 2 << 20;
/// Address space an arena takes at once. What is not written to costs no memory.
const REGION: usize = 64 << 20;

/// A fixed number of values.
pub struct Pages<T> {
    region: Arc<MmapRaw>,
    /// Where they begin, in bytes; a multiple of [`LINE`].
    start: usize,
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
    /// `len` zeros with memory of their own.
    ///
    /// # Panics
    /// When the system has no memory left, as every other allocation does.
    pub fn zeroed(len: usize) -> Self {
        let (region, start) = map(size_of_values::<T>(len));
        Self { region: Arc::new(region), start, len, kind: PhantomData }
    }

    /// Memory held, in bytes.
    pub const fn size_bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

/// Memory for what lives and ends together, such as the weights of one model, side by side.
#[derive(Debug, Default)]
pub struct Arena {
    latest: Mutex<Option<Region>>,
}

#[derive(Debug)]
struct Region {
    map: Arc<MmapRaw>,
    /// Where the next buffer begins, in bytes.
    next: usize,
}

impl Arena {
    /// `len` zeros. The memory is given back with the last buffer of its region.
    ///
    /// # Panics
    /// When the system has no memory left, as every other allocation does.
    pub fn zeroed<T: Plain>(&self, len: usize) -> Pages<T> {
        let size_bytes = size_of_values::<T>(len);
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = |region: &&mut Region| region.map.len() - region.next >= size_bytes;
        let region = if let Some(region) = latest.as_mut().filter(has_room) {
            region
        } else {
            let (map, next) = map(size_bytes.max(REGION));
            latest.insert(Region { map: Arc::new(map), next })
        };
        let start = region.next;
        region.next += size_bytes;
        Pages { region: Arc::clone(&region.map), start, len, kind: PhantomData }
    }
}

/// What `len` values take, whole cache lines.
fn size_of_values<T>(len: usize) -> usize {
    let size = len.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_add(SLACK + LINE));
    let Some(size) = size else { out_of_memory() };
    size / LINE * LINE
}

/// At least this many zeroed bytes from the returned place on, which is the beginning of a huge page if one fits.
fn map(size_bytes: usize) -> (MmapRaw, usize) {
    let room = if size_bytes < HUGE { 0 } else { HUGE };
    let map = size_bytes.checked_add(room).map(MmapMut::map_anon);
    let Some(Ok(map)) = map else { out_of_memory() };
    // A wish: without it everything works, slower.
    #[cfg(target_os = "linux")]
    if let Err(error) = map.advise(Advice::HugePage) {
        tracing::debug!(%error, "no huge pages");
    }
    let start = if room == 0 { 0 } else { map.as_ptr().addr().wrapping_neg() % HUGE };
    (MmapRaw::from(map), start)
}

fn out_of_memory() -> ! {
    std::alloc::handle_alloc_error(std::alloc::Layout::new::<u8>())
}

impl<T: Plain> Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let first = self.region.as_ptr().wrapping_add(self.start).cast();
        // SAFETY: the region holds `len` values from there on, which no other buffer covers, and every bit pattern is one;
        // a line of cache is aligned for every plain type.
        unsafe { std::slice::from_raw_parts(first, self.len) }
    }
}

impl<T: Plain> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let first = self.region.as_mut_ptr().wrapping_add(self.start).cast();
        // SAFETY: as above; the exclusive borrow covers these values.
        unsafe { std::slice::from_raw_parts_mut(first, self.len) }
    }
}

impl<T> std::fmt::Debug for Pages<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pages").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_an_arena_are_zeroed_aligned_and_apart() {
        let arena = Arena::default();
        let mut buffers: Vec<Pages<f32>> = [1, 15, 0, 4096, 17].map(|len| arena.zeroed(len)).into();
        let large: Pages<u8> = arena.zeroed(2 * REGION);
        for (n, buffer) in buffers.iter_mut().enumerate() {
            assert_eq!(buffer.as_ptr().addr() % LINE, 0);
            assert!(buffer.iter().all(|value| *value == 0.0), "{n}");
            buffer.fill(1.0);
        }
        let begin = |n: usize| buffers[n].as_ptr().addr();
        assert_eq!(begin(0) % HUGE, 0, "the first one begins a huge page");
        for n in 1..buffers.len() {
            assert!(begin(n) >= begin(n - 1) + buffers[n - 1].size_bytes() + SLACK, "side by side");
        }
        assert_eq!(large.as_ptr().addr() % HUGE, 0);
        drop(arena);
        assert!(large.iter().all(|value| *value == 0), "a buffer outlives its arena");
        assert!(Arc::ptr_eq(&buffers[0].region, &buffers[4].region));
        assert_eq!(Arc::strong_count(&buffers[0].region), buffers.len(), "the region ends with its last buffer");
    }
}
