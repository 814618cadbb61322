//! Which rows go next: a pure data structure without clock, channel or I/O.
//!
//! Requests take turns. Each plan goes round the waiting requests, one row at a time, as long as rows and tokens fit:
//! a single row that arrives behind a request of 2,048 rows is in the next batch. A row that does not fit what is
//! left waits, keeps its request's place at the front, and is first in the following plan, so nothing starves. There
//! is no padding, so the cost of a batch is exactly the sum of its tokens, and mixing lengths costs nothing.

use std::collections::VecDeque;

/// What one batch may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    pub rows: usize,
    pub tokens: usize,
}

/// A row that can be planned.
pub trait Planned {
    /// Cost in real tokens.
    fn n_tokens(&self) -> usize;
    /// Whether somebody still waits for it. Asked when the row would be taken.
    fn is_wanted(&self) -> bool;
}

/// The waiting rows of one model, grouped by request, in turn order.
#[derive(Debug)]
pub struct Backlog<T> {
    requests: VecDeque<VecDeque<T>>,
    rows: usize,
    tokens: usize,
}

impl<T> Default for Backlog<T> {
    fn default() -> Self {
        Self { requests: VecDeque::new(), rows: 0, tokens: 0 }
    }
}

/// The outcome of one plan.
#[derive(Debug)]
pub struct Plan<T> {
    /// In the order they were taken.
    pub batch: Vec<T>,
    /// Rows nobody waits for any more; they cost nothing.
    pub unwanted: Vec<T>,
}

impl<T: Planned> Backlog<T> {
    /// Rows waiting.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Tokens waiting.
    pub const fn tokens(&self) -> usize {
        self.tokens
    }

    pub const fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Adds the rows of one request behind all others.
    pub fn push(&mut self, rows: VecDeque<T>) {
        if rows.is_empty() {
            return;
        }
        self.rows += rows.len();
        self.tokens += rows.iter().map(Planned::n_tokens).sum::<usize>();
        self.requests.push_back(rows);
    }

    /// Takes the next batch. Empty only when no wanted row waits or the first one exceeds the whole budget, which
    /// `submit` refuses.
    pub fn plan(&mut self, budget: Budget) -> Plan<T> {
        let mut plan = Plan { batch: Vec::new(), unwanted: Vec::new() };
        let mut left = budget;
        // Requests whose next row did not fit: they come first next time, in their old order.
        let mut passed_over = VecDeque::new();
        while left.rows > 0 {
            let Some(mut request) = self.requests.pop_front() else { break };
            self.drop_unwanted(&mut request, &mut plan.unwanted);
            match request.pop_front() {
                None => {}
                Some(row) if row.n_tokens() <= left.tokens => {
                    left.rows -= 1;
                    left.tokens -= row.n_tokens();
                    self.forget(&row);
                    plan.batch.push(row);
                    if !request.is_empty() {
                        self.requests.push_back(request);
                    }
                }
                Some(row) => {
                    request.push_front(row);
                    passed_over.push_back(request);
                }
            }
        }
        while let Some(request) = passed_over.pop_back() {
            self.requests.push_front(request);
        }
        plan
    }

    /// Removes every row, for shutdown.
    pub fn drain(&mut self) -> Vec<T> {
        (self.rows, self.tokens) = (0, 0);
        self.requests.drain(..).flatten().collect()
    }

    /// Removes rows nobody waits for from the whole backlog, so that they stop counting against its limits.
    pub fn sweep(&mut self) -> Vec<T> {
        let mut unwanted = Vec::new();
        for mut request in std::mem::take(&mut self.requests) {
            self.drop_unwanted_anywhere(&mut request, &mut unwanted);
            if !request.is_empty() {
                self.requests.push_back(request);
            }
        }
        unwanted
    }

    fn drop_unwanted(&mut self, request: &mut VecDeque<T>, unwanted: &mut Vec<T>) {
        while let Some(row) = request.pop_front_if(|row| !row.is_wanted()) {
            self.forget(&row);
            unwanted.push(row);
        }
    }

    fn drop_unwanted_anywhere(&mut self, request: &mut VecDeque<T>, unwanted: &mut Vec<T>) {
        for row in std::mem::take(request) {
            if row.is_wanted() {
                request.push_back(row);
            } else {
                self.forget(&row);
                unwanted.push(row);
            }
        }
    }

    fn forget(&mut self, row: &T) {
        self.rows -= 1;
        self.tokens -= row.n_tokens();
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
