//! A forward pass allocates once per batch, never per layer or operation: buffers are kept from pass to pass.
//!
//! Counted by this binary's allocator, thread by thread, so that tests beside this one do not disturb it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use embedserve::kernel::{
    Activation, Attention, Batch, Cores, Embed, FeedForward, Isa, Linear, Memory, Norm, Norms, PackedMatrix, Precision,
    SelfAttention, Widths, forward,
};

use crate::support::random::Random;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator; the counter is plain thread-local memory.
#[expect(unsafe_code, reason = "an allocator that counts")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: passed on from the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on from the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const HIDDEN: usize = 64;

struct Layer {
    attention: SelfAttention,
    feed_forward: FeedForward,
    norm: Norm,
}

impl Layer {
    fn new(random: &mut Random, precision: Precision) -> Self {
        let mut linear = |n: usize, k: usize, activation| {
            let weight = PackedMatrix::pack_as(precision, n, k, &random.floats(n * k, 0.1), None);
            Linear { weight: Arc::new(weight), activation, isa: Isa::detect() }
        };
        Self {
            attention: SelfAttention {
                qkv: vec![linear(3 * HIDDEN, HIDDEN, Activation::None)],
                attention: Attention {
                    n_heads: 2,
                    scale: 0.2,
                    bias: None,
                    rotary: None,
                    window: None,
                    precision: precision.where_delicate(),
                },
                output: linear(HIDDEN, HIDDEN, Activation::None),
            },
            feed_forward: FeedForward {
                up: linear(4 * HIDDEN, HIDDEN, Activation::Gelu),
                gate: None,
                down: linear(HIDDEN, 4 * HIDDEN, Activation::None),
            },
            norm: Norm::layer(vec![1.0; HIDDEN], None, 1e-5),
        }
    }
}

/// Allocations of one pass on all threads of the pool, once buffers have grown.
fn allocations(n_layers: usize, precision: Precision, lengths: &[usize]) -> usize {
    let mut random = Random::new(31);
    let layers: Vec<Layer> = (0..n_layers).map(|_| Layer::new(&mut random, precision)).collect();
    let word = random.floats(100 * HIDDEN, 1.0);
    let embed = Embed { width: HIDDEN, word, position: None, token_type: None, norm: None };
    let n_tokens = lengths.iter().sum();
    let ids = vec![7; n_tokens];
    let mut offsets = vec![0];
    for length in lengths {
        offsets.push(offsets.last().unwrap() + length);
    }
    let batch = Batch { ids: &ids, positions: &ids, offsets: &offsets };
    let widths = Widths { hidden: HIDDEN, inner: HIDDEN, middle: 4 * HIDDEN };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let mut memory = Memory::default();
    let mut pass = || {
        forward(Cores { isa: Isa::detect(), pool: &pool }, widths, &mut memory, batch, |worker| {
            worker.embed(&embed.tables(), None);
            for layer in &layers {
                let norms = Norms { before: None, after: Some(&layer.norm) };
                worker.attend(&layer.attention, norms);
                worker.feed_forward(&layer.feed_forward, norms);
            }
        });
    };
    // Which thread takes which tile is decided anew each time: all have seen every size after a few.
    (0..8).for_each(|_| pass());
    let count = || COUNT.get() + pool.broadcast(|_| COUNT.get()).into_iter().sum::<usize>();
    let before = count();
    let counting = count() - before;
    let mut once = || {
        let start = count();
        pass();
        count() - start - counting
    };
    // On a crowded machine a thread may still meet a tile of a size that is new to it.
    (0..4).map(|_| once()).min().unwrap()
}

#[test]
fn a_pass_allocates_as_often_with_sixteen_layers_as_with_one() {
    let precisions = Precision::ON_CPUS
        .into_iter()
        .filter(|precision| embedserve::kernel::Compute { isa: Isa::detect(), precision: *precision }.check().is_ok());
    for precision in precisions {
        // Tiles for single threads, one for both, and rows so few that columns are shared out.
        for lengths in [&[40; 20][..], &[300], &[50]] {
            let (one, sixteen) = (allocations(1, precision, lengths), allocations(16, precision, lengths));
            assert!(sixteen <= one + 2, "{precision}: {one} allocations with one layer, {sixteen} with sixteen");
            assert!(sixteen < 80, "{precision}: {sixteen} allocations in a pass");
        }
    }
}
