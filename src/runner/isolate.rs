//! When a batch fails, find the rows to blame: halves are tried again until only the poisoned rows fail.
//!
//! One poisoned row among n costs at most 2·⌈log₂(n)⌉ further forward passes. A row that fails only in company
//! succeeds alone. Non-finite rows need none of this: the finite check fails them one by one.
//!
//! Somebody who sends poison all the time must not turn every batch into dozens. A row that failed alone is remembered
//! for a minute and fails at once when it comes again, without costing its neighbours anything. Poison that is new each
//! time is looked for as long as a budget of passes per second lasts; beyond it, a failing batch fails as a whole.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use crate::batch::RowFailure;
use crate::pool::FiniteRow;
use crate::request::RowShape;
use crate::runner::computation::{BatchError, Vectors};

/// How long a row that failed alone is refused without being computed. Its failure repeats: clients are told so too.
const QUARANTINE: Duration = Duration::from_mins(1);
/// Rows that are remembered at most; one word each.
const QUARANTINED_ROWS: usize = 256;
/// Seconds of budget that may be saved up: a rare poisoned batch is always taken apart, however many rows it has.
const SAVED_SECONDS: f64 = 10.0;

/// Blames rows, within a budget.
#[derive(Debug)]
pub struct Isolation {
    budget: PassBudget,
    quarantine: Quarantine,
}

/// One batch, computed.
#[derive(Debug)]
pub struct Isolated {
    /// One result per row, in order.
    pub rows: Vec<Result<FiniteRow, RowFailure>>,
    /// Some rows failed although they may be innocent.
    pub refused: bool,
    /// Rows that failed without being computed.
    pub quarantined: usize,
}

/// Passes that may be spent now.
#[derive(Debug)]
struct PassBudget {
    per_second: f64,
    left: f64,
    since: Instant,
}

/// Rows that failed alone, by the hash of their ids.
#[derive(Debug, Default)]
struct Quarantine {
    hasher: RandomState,
    rows: VecDeque<(u64, RowFailure, Instant)>,
}

impl Isolation {
    pub fn new(passes_per_second: u32) -> Self {
        let per_second = f64::from(passes_per_second);
        let budget = PassBudget { per_second, left: per_second * SAVED_SECONDS, since: Instant::now() };
        Self { budget, quarantine: Quarantine::default() }
    }

    /// The failures of those rows that failed alone lately: they are not to be computed.
    pub fn known(&mut self, rows: &[&[u32]]) -> Vec<Option<RowFailure>> {
        self.quarantine.forget_old();
        rows.iter().map(|row| self.quarantine.find(row)).collect()
    }

    /// `forward` computes any subset of the rows of which nothing is `known`; at first, all of them.
    pub fn run(
        &mut self,
        rows: &[&[u32]],
        shapes: &[RowShape],
        known: Vec<Option<RowFailure>>,
        mut forward: impl FnMut(&[&[u32]], &[RowShape]) -> Result<Vectors, BatchError>,
    ) -> Isolated {
        let quarantined = known.iter().flatten().count();
        let (healthy_rows, healthy_shapes) = healthy(rows, shapes, &known);
        let mut search = Search { isolation: self, forward: &mut forward, results: Vec::new(), refused: false };
        if !healthy_rows.is_empty() {
            search.bisect(&healthy_rows, &healthy_shapes);
        }
        let (results, refused) = (search.results, search.refused);
        let mut computed = results.into_iter();
        let rows = known.into_iter().map(|known| match known {
            Some(failure) => Err(failure),
            // The search gives one result for each row that it was given.
            None => computed.next().unwrap_or(Err(RowFailure::Failed)),
        });
        Isolated { rows: rows.collect(), refused, quarantined }
    }
}

/// The rows of which nothing is known.
pub fn healthy<'a>(
    rows: &[&'a [u32]],
    shapes: &[RowShape],
    known: &[Option<RowFailure>],
) -> (Vec<&'a [u32]>, Vec<RowShape>) {
    let is_healthy = |index: &usize| known.get(*index).is_none_or(Option::is_none);
    (0..rows.len()).filter(is_healthy).map(|index| (rows[index], shapes[index])).unzip()
}

/// One batch being taken apart.
struct Search<'a, F> {
    isolation: &'a mut Isolation,
    forward: &'a mut F,
    results: Vec<Result<FiniteRow, RowFailure>>,
    refused: bool,
}

impl<F: FnMut(&[&[u32]], &[RowShape]) -> Result<Vectors, BatchError>> Search<'_, F> {
    fn bisect(&mut self, rows: &[&[u32]], shapes: &[RowShape]) {
        let error = match (self.forward)(rows, shapes) {
            Ok(vectors) if vectors.len() == rows.len() => {
                self.results.extend(vectors.into_iter().map(|vector| vector.map_err(|_| RowFailure::NonFinite)));
                return;
            }
            // A device that returns too few rows cannot say which ones are missing.
            Ok(_) => return self.fail(rows, RowFailure::Failed),
            Err(error) => error,
        };
        let failure = match error {
            // Nothing more is computed on it.
            BatchError::Lost(_) => return self.fail(rows, RowFailure::Dropped),
            BatchError::OutOfMemory => RowFailure::OutOfMemory,
            BatchError::Failed(_) => RowFailure::Failed,
            BatchError::Panicked(_) => RowFailure::Panicked,
        };
        let is_poison = failure != RowFailure::OutOfMemory;
        if let [row] = rows {
            if is_poison {
                self.isolation.quarantine.add(row, failure);
            }
            self.fail(rows, failure);
        } else if is_poison && !self.isolation.budget.take(2.0) {
            self.refused = true;
            self.fail(rows, failure);
        } else {
            let half = rows.len() / 2;
            self.bisect(&rows[..half], &shapes[..half]);
            self.bisect(&rows[half..], &shapes[half..]);
        }
    }

    fn fail(&mut self, rows: &[&[u32]], failure: RowFailure) {
        self.results.extend(rows.iter().map(|_| Err(failure)));
    }
}

impl PassBudget {
    fn take(&mut self, passes: f64) -> bool {
        let earned = self.since.elapsed().as_secs_f64() * self.per_second;
        self.since = Instant::now();
        self.left = (self.left + earned).min(self.per_second * SAVED_SECONDS);
        let enough = self.left >= passes;
        if enough {
            self.left -= passes;
        }
        enough
    }
}

impl Quarantine {
    fn add(&mut self, row: &[u32], failure: RowFailure) {
        if self.rows.len() == QUARANTINED_ROWS {
            self.rows.pop_front();
        }
        self.rows.push_back((self.hasher.hash_one(row), failure, Instant::now()));
    }

    fn find(&self, row: &[u32]) -> Option<RowFailure> {
        if self.rows.is_empty() {
            return None;
        }
        let wanted = self.hasher.hash_one(row);
        self.rows.iter().find(|(hash, ..)| *hash == wanted).map(|(_, failure, _)| *failure)
    }

    fn forget_old(&mut self) {
        while self.rows.pop_front_if(|(_, _, since)| since.elapsed() >= QUARANTINE).is_some() {}
    }
}
