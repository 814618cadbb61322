//! Arbitrary histories of a backlog.
//!
//! The first two bytes are the budget, the others a program: push a request, plan a batch, abandon requests, sweep.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use embedserve::batch::plan::{Backlog, Budget, Planned};

use super::Verdict;

/// Longer programs find nothing that shorter ones do not.
const MAX_STEPS: usize = 512;

#[derive(Debug)]
struct Row {
    request: usize,
    index: usize,
    tokens: usize,
    /// Shared by the rows of a request, as its tickets are.
    gone: Rc<Cell<bool>>,
}

impl Planned for Row {
    fn n_tokens(&self) -> usize {
        self.tokens
    }

    fn is_wanted(&self) -> bool {
        !self.gone.get()
    }
}

/// What is known of a request from outside.
struct Request {
    gone: Rc<Cell<bool>>,
    /// Index and tokens of the rows that have not come back.
    waiting: VecDeque<usize>,
    tokens: Vec<usize>,
    /// The plan by which its next row must have been taken, if it is still wanted.
    due: usize,
}

struct Model {
    backlog: Backlog<Row>,
    budget: Budget,
    requests: BTreeMap<usize, Request>,
    plans: usize,
}

pub fn check(data: &[u8]) -> Verdict {
    let [rows, tokens, program @ ..] = data else { return Err("no budget".to_owned()) };
    let budget = Budget { rows: 1 + usize::from(*rows) % 8, tokens: 1 + usize::from(*tokens) % 64 };
    let mut model = Model { backlog: Backlog::default(), budget, requests: BTreeMap::new(), plans: 0 };
    let mut program = program.iter().copied().take(MAX_STEPS);
    let mut pushed = 0;
    while let Some(step) = program.next() {
        match step % 8 {
            0..=2 => {
                let lengths: Vec<usize> = program
                    .by_ref()
                    .take(usize::from(step / 8))
                    .map(|byte| 1 + usize::from(byte) % budget.tokens)
                    .collect();
                model.push(pushed, &lengths);
                pushed += 1;
            }
            3 => model.abandon(usize::from(step / 8)),
            4 => {
                model.abandon(usize::from(step / 8));
                let unwanted = model.backlog.sweep();
                model.came_back(unwanted, true);
                assert!(model.requests.values().all(|request| !request.gone.get()), "a sweep leaves nothing unwanted");
            }
            _ => model.plan(),
        }
        model.count();
    }
    while !model.backlog.is_empty() {
        model.plan();
        model.count();
    }
    assert!(model.requests.is_empty(), "{} requests never came back", model.requests.len());
    Ok(())
}

/// Plans until a waiting request is served again. Each plan serves whoever is owed most; lanes, callers and long rows
/// make that a multiple of the requests that wait, never more.
const fn patience(waiting: usize) -> usize {
    8 * (waiting + 2)
}

impl Model {
    fn push(&mut self, number: usize, lengths: &[usize]) {
        let gone = Rc::new(Cell::new(false));
        let row = |(index, &tokens)| Row { request: number, index, tokens, gone: Rc::clone(&gone) };
        self.backlog.push(lengths.iter().enumerate().map(row).collect());
        if !lengths.is_empty() {
            let (waiting, tokens) = ((0..lengths.len()).collect(), lengths.to_vec());
            let due = self.plans + patience(self.requests.len());
            self.requests.insert(number, Request { gone: Rc::clone(&gone), waiting, tokens, due });
        }
    }

    /// The client of one of the waiting requests leaves.
    fn abandon(&mut self, which: usize) {
        let n = self.requests.len().max(1);
        if let Some(request) = self.requests.values().nth(which % n) {
            request.gone.set(true);
        }
    }

    fn plan(&mut self) {
        let wanted = self.requests.values().any(|request| !request.gone.get());
        let plan = self.backlog.plan(self.budget);
        self.plans += 1;
        assert!(plan.batch.len() <= self.budget.rows, "{} rows", plan.batch.len());
        let tokens: usize = plan.batch.iter().map(|row| row.tokens).sum();
        assert!(tokens <= self.budget.tokens, "{tokens} tokens");
        assert!(!plan.batch.is_empty() || !wanted, "a plan that takes nothing loops for ever");
        self.came_back(plan.unwanted, true);
        self.came_back(plan.batch, false);
        for (number, request) in &self.requests {
            assert!(request.gone.get() || self.plans < request.due, "request {number} is passed over for ever");
        }
    }

    /// Every row comes back once, in the order of its request, and as what it is.
    fn came_back(&mut self, rows: Vec<Row>, unwanted: bool) {
        let mut served = Vec::new();
        for row in rows {
            assert_eq!(row.gone.get(), unwanted, "{row:?}");
            let request = self.requests.get_mut(&row.request).expect("a row comes back once");
            assert_eq!(request.waiting.pop_front(), Some(row.index), "{row:?} is out of order");
            assert_eq!(request.tokens.get(row.index), Some(&row.tokens), "{row:?}");
            served.push(row.request);
        }
        self.requests.retain(|_, request| !request.waiting.is_empty());
        let waiting = self.requests.len();
        for number in served {
            if let Some(request) = self.requests.get_mut(&number) {
                request.due = self.plans + patience(waiting);
            }
        }
    }

    fn count(&self) {
        let waiting =
            || self.requests.values().flat_map(|request| request.waiting.iter().map(|index| request.tokens[*index]));
        assert_eq!(self.backlog.rows(), waiting().count());
        assert_eq!(self.backlog.tokens(), waiting().sum::<usize>());
    }
}
