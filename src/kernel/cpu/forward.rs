//! A forward pass over a packed batch: its sequences shared out in tiles, the tiles over the threads.
//!
//! Every thread takes whole sequences through all layers alone, without waiting for the others: hidden states and
//! weights in use stay in its caches. Where that leaves a thread idle, because there are few tokens or one sequence
//! outweighs the others, all threads compute a tile together (`team`).
//!
//! In which tile a sequence rides, and with how many threads, changes no bit of its result.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rayon::ThreadPool;

use super::Isa;
use super::processors::Processors;
use super::rows::Rows;
use super::team::{Barrier, BreakOnPanic, Team};
use super::team_size::TeamSize;
use super::tile::Registers;
use super::worker::{ROWS_WORTH_SHARING, Scratch, TileMemory, Tokens, Widths, Worker};

/// Tokens of one tile: more gain no speed, and cost memory.
const TILE_TOKENS: usize = 256;
/// Multiplications per layer for each thread, below which it does not pay to wake one and to wait for it: some ten
/// microseconds.
const TEAM_WORK: usize = 1 << 20;
/// The work of one token of its own, in units of attention to one other token: decides what is a fair share.
const TOKEN_COST: usize = 4096;

/// The memory of a model's forward passes, kept from batch to batch.
#[derive(Debug, Default)]
pub struct Memory {
    threads: Vec<Mutex<ThreadMemory>>,
    together: TileMemory,
    team_size: TeamSize,
}

#[derive(Debug, Default)]
struct ThreadMemory {
    tile: TileMemory,
    scratch: Scratch,
}

/// A batch: token ids and their rows in the position table, end to end, and the offsets of its sequences.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    pub ids: &'a [u32],
    pub positions: &'a [u32],
    pub offsets: &'a [usize],
}

/// What a forward pass computes on.
#[derive(Debug, Clone, Copy)]
pub struct Cores<'a> {
    pub isa: Isa,
    /// Whose threads compute beside the caller.
    pub pool: &'a ThreadPool,
}

/// Which sequences are computed together.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Tiles for the team together.
    together: Vec<Vec<usize>>,
    /// Tiles for one thread each.
    alone: Vec<Vec<usize>>,
}

/// A tile's tokens, gathered from the batch.
#[derive(Debug, Default)]
struct Gathered {
    ids: Vec<u32>,
    positions: Vec<u32>,
    offsets: Vec<usize>,
    /// Row of the batch of each row of the tile.
    places: Vec<usize>,
}

/// Runs `program` on every tile of the batch and collects the hidden states, `[n_tokens, hidden]` in the batch's order.
///
/// The calling thread computes, with as many threads of the pool beside it as make the pool's number: nobody is woken to
/// do what the caller would otherwise wait for.
///
/// # Panics
/// When the program panics on any thread.
pub fn forward(
    Cores { isa, pool }: Cores<'_>,
    widths: Widths,
    memory: &mut Memory,
    batch: Batch<'_>,
    program: impl Fn(&mut Worker<'_>) + Sync,
) -> Vec<f32> {
    let n_threads = pool.current_num_threads();
    let lengths: Vec<usize> = batch.offsets.windows(2).map(|span| span[1] - span[0]).collect();
    // A batch too small for two threads needs none but this one, and a query on a machine of many cores not all of them.
    let work = batch.ids.len() * widths.hidden * (4 * widths.inner + 2 * widths.middle);
    let n_threads = n_threads.min((work / TEAM_WORK).max(1));
    // With more tokens there is more between two waits, and a crowd costs less than a thread is worth.
    let is_small = batch.ids.len() < ROWS_WORTH_SHARING * n_threads;
    let n_team = if is_small { memory.team_size.at(Instant::now(), n_threads) } else { n_threads };
    // Sequences that threads take alone keep them busy without waiting, whoever else computes.
    let n_threads = (batch.ids.len() / ROWS_WORTH_SHARING).clamp(n_team, n_threads);
    let plan = plan(&lengths, n_threads, n_team);
    let mut out = vec![0.0; batch.ids.len() * widths.hidden];
    let place = Rows::new(&mut out, widths.hidden);
    let gather = |tiles: &[Vec<usize>]| -> Vec<Gathered> { tiles.iter().map(|tile| gathered(batch, tile)).collect() };
    let (together, alone) = (gather(&plan.together), gather(&plan.alone));
    memory.threads.resize_with(n_threads.max(memory.threads.len()), Mutex::default);
    let longest = together.iter().map(|tile| tile.ids.len()).max();
    let shared = longest.map(|n_rows| memory.together.rows(isa, widths, n_rows, n_team));
    let (barrier, alone_barrier, next) = (Barrier::default(), Barrier::default(), AtomicUsize::new(0));
    let (threads, processors) = (&memory.threads, Processors::default());
    let run = |mut worker: Worker<'_>, tile: &Gathered| {
        program(&mut worker);
        worker.copy_rows(widths.hidden, |row| place.at(tile.places[row], 0));
    };
    let member = |index: usize| {
        if n_threads > 1 {
            processors.take_own();
        }
        let mut own = threads[index].lock().unwrap_or_else(PoisonError::into_inner);
        let ThreadMemory { tile: own_tile, scratch } = &mut *own;
        let _registers = Registers::of(isa);
        if let Some(rows) = shared.filter(|_| index < n_team) {
            let _guard = BreakOnPanic(&barrier);
            let team = Team::new(index, n_team, &barrier);
            for tile in &together {
                run(Worker::new(isa, team.clone(), tile.tokens(), rows, scratch), tile);
                team.wait();
            }
        }
        while let Some(tile) = alone.get(next.fetch_add(1, Ordering::Relaxed)) {
            let rows = own_tile.rows(isa, widths, tile.ids.len(), 1);
            run(Worker::new(isa, Team::new(0, 1, &alone_barrier), tile.tokens(), rows, scratch), tile);
        }
    };
    if n_threads == 1 {
        member(0);
    } else {
        let member = &member;
        pool.in_place_scope(|scope| {
            for index in 1..n_threads {
                scope.spawn(move |_| member(index));
            }
            member(0);
        });
    }
    if is_small && shared.is_some() {
        memory.team_size.learn(Instant::now(), barrier.was_late());
    }
    out
}

/// Shares sequences of these lengths out over threads, of which `n_team` may compute tiles together.
fn plan(lengths: &[usize], n_threads: usize, n_team: usize) -> Plan {
    let cost = |length: usize| length * (TOKEN_COST + length);
    let n_tokens: usize = lengths.iter().sum();
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    // Longest first, so that the last ones level out what is left.
    order.sort_by_key(|index| std::cmp::Reverse(lengths[*index]));
    if n_team > 1 && n_tokens < ROWS_WORTH_SHARING * n_threads {
        return Plan { together: vec![order], alone: Vec::new() };
    }
    let total: usize = lengths.iter().map(|length| cost(*length)).sum();
    let mut plan = Plan::default();
    let mut left = total;
    let mut rest = order.as_slice();
    // A sequence that is more than a fair share of what is left would be finished long after the others.
    while let Some((first, others)) = rest.split_first()
        && n_team > 1
        && cost(lengths[*first]) * n_threads > left
    {
        plan.together.push(vec![*first]);
        left -= cost(lengths[*first]);
        rest = others;
    }
    let rest_tokens: usize = rest.iter().map(|index| lengths[*index]).sum();
    if rest_tokens == 0 {
        return plan;
    }
    // As many tiles for every thread, all of about the same work.
    let n_tiles = rest_tokens.div_ceil(TILE_TOKENS).next_multiple_of(n_threads);
    let mut tiles = vec![(0, Vec::new()); n_tiles];
    for index in rest {
        if let Some((work, tile)) = tiles.iter_mut().min_by_key(|(work, _)| *work) {
            *work += cost(lengths[*index]);
            tile.push(*index);
        }
    }
    tiles.sort_by_key(|(work, _)| std::cmp::Reverse(*work));
    plan.alone = tiles.into_iter().map(|(_, tile)| tile).filter(|tile| !tile.is_empty()).collect();
    plan
}

fn gathered(batch: Batch<'_>, sequences: &[usize]) -> Gathered {
    let mut tile = Gathered { offsets: vec![0], ..Gathered::default() };
    for sequence in sequences {
        let span = batch.offsets[*sequence]..batch.offsets[sequence + 1];
        tile.ids.extend_from_slice(&batch.ids[span.clone()]);
        tile.positions.extend_from_slice(&batch.positions[span.clone()]);
        tile.places.extend(span);
        tile.offsets.push(tile.ids.len());
    }
    tile
}

impl Gathered {
    fn tokens(&self) -> Tokens<'_> {
        Tokens { ids: &self.ids, positions: &self.positions, offsets: &self.offsets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::cpu::embed::Tables;
    use crate::kernel::cpu::norm::Norm;

    fn all(plan: &Plan) -> Vec<usize> {
        let mut all: Vec<usize> = plan.together.iter().chain(&plan.alone).flatten().copied().collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn every_sequence_is_computed_once() {
        for (n_threads, n_team) in [(1, 1), (2, 1), (2, 2), (3, 3), (16, 4), (16, 16)] {
            for lengths in [&[][..], &[1], &[5, 3, 512, 7], &[8192, 1, 1, 1], &[40; 300], &[600, 500, 400, 3, 2, 1]] {
                assert_eq!(all(&plan(lengths, n_threads, n_team)), (0..lengths.len()).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_smaller_team_computes_the_same() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(16).build().unwrap();
        let widths = Widths { hidden: 64, inner: 64, middle: 128 };
        let word: Vec<f32> = (0..100 * 64_u16).map(|i| f32::from(i % 1009 * 37 % 1009)).collect();
        let tables = Tables { width: 64, word: &word, position: None, token_type: None, norm: None };
        let norm = Norm::layer(vec![1.0; 64], None, 1e-12);
        let offsets = [0, 512, 552, 592, 599];
        let ids: Vec<u32> = (0..599).map(|i| i * 31 % 100).collect();
        let batch = Batch { ids: &ids, positions: &ids, offsets: &offsets };
        let run = |memory: &mut Memory| {
            forward(Cores { isa: Isa::detect(), pool: &pool }, widths, memory, batch, |worker| {
                worker.embed(&tables, None);
                worker.normalise(&norm);
            })
        };
        let expected = run(&mut Memory::default());
        assert!(expected.iter().all(|x| x.is_finite()) && expected.iter().any(|x| *x != 0.0));
        for n_late in [1, 2] {
            let (mut memory, now) = (Memory::default(), Instant::now());
            // The first two may be accidents.
            for _ in 0..2 + n_late {
                memory.team_size.learn(now, true);
            }
            assert_eq!(memory.team_size.at(now, 16), 16 >> n_late);
            assert_eq!(run(&mut memory), expected);
        }
    }

    #[test]
    fn few_tokens_and_outsized_sequences_are_shared_many_small_ones_are_not() {
        let short = plan(&[16], 2, 2);
        assert_eq!((short.together.len(), short.alone.len()), (1, 0));
        let outsized = plan(&[512, 60, 60, 60, 60], 2, 2);
        assert_eq!((outsized.together, outsized.alone.len()), (vec![vec![0]], 2));
        let many = plan(&[40; 256], 2, 2);
        assert_eq!((many.together.len(), many.alone.len()), (0, 40));
        assert!(plan(&[512], 1, 1).together.is_empty());
        let crowded = plan(&[512, 60, 60, 60, 60], 2, 1);
        assert_eq!((crowded.together.len(), crowded.alone.len()), (0, 4));
    }

    #[test]
    fn tiles_have_the_same_work() {
        let lengths: Vec<usize> = (0..256).map(|i| 4 + i * 37 % 200).collect();
        let plan = plan(&lengths, 2, 2);
        let work = |tile: &Vec<usize>| tile.iter().map(|i| lengths[*i]).sum::<usize>();
        let (most, least) = (plan.alone.iter().map(work).max(), plan.alone.iter().map(work).min());
        assert!(most.unwrap() * 4 < least.unwrap() * 5, "{most:?} {least:?}");
    }
}
