//! Which rows go next: a pure data structure without clock, channel or I/O.
//!
//! Three levels take turns, each by what it has been given so far. Two lanes, by the size of a request, share every
//! batch half and half: whoever sends one text is not held up by whoever sends 2,048. Within a lane the flows (the
//! callers) share by tokens, so that sending more requests does not buy a larger share. Within a flow, the requests go
//! round one row at a time. What one of them leaves, the others take.
//!
//! A row that does not fit what is left of a batch keeps its request's place; the first such row of a plan opens the
//! next one, so nothing starves. There is no padding, so the cost of a batch is exactly the sum of its tokens, and
//! mixing lengths costs nothing.

use std::collections::VecDeque;

use crate::request::Flow;

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

/// What waits in one lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    pub rows: usize,
    pub tokens: usize,
}

/// The waiting rows of one model, by lane, flow and request.
#[derive(Debug)]
pub struct Backlog<T> {
    /// Requests of several rows are interactive up to this many tokens.
    interactive_tokens: usize,
    lanes: [Lane<T>; 2],
    /// Whose front row found no room in the last plan: it opens the next one.
    overdue: Option<Turn>,
}

/// The outcome of one plan.
#[derive(Debug)]
pub struct Plan<T> {
    /// In the order they were taken.
    pub batch: Vec<T>,
    /// Rows nobody waits for any more; they cost nothing.
    pub unwanted: Vec<T>,
}

/// Requests of similar size.
#[derive(Debug)]
struct Lane<T> {
    flows: Vec<Queued<T>>,
    /// Tokens given to this lane so far; no less than the other lane had when this one was last empty.
    served: u64,
    /// What the flow that was chosen last had been given: a flow that comes back starts from here at least.
    now: u64,
    load: Load,
}

/// The requests of one flow, in turn order.
#[derive(Debug)]
struct Queued<T> {
    flow: Flow,
    served: u64,
    /// Tokens waiting.
    tokens: usize,
    requests: VecDeque<VecDeque<T>>,
    /// Requests whose next row did not fit, for the rest of the plan.
    aside: VecDeque<VecDeque<T>>,
}

/// What a new request would have before it if nobody else came, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// Computed before its first row starts.
    pub start: usize,
    /// Computed when its last row is done, its own included.
    pub finish: usize,
}

/// Who is next.
#[derive(Debug, Clone, Copy)]
struct Turn {
    lane: usize,
    flow: Flow,
}

/// What a turn gave.
enum Taken<T> {
    Row(T),
    DoesNotFit,
    Nothing,
}

const INTERACTIVE: usize = 0;
const BULK: usize = 1;

/// For the batches of a release, which hold 2,048 tokens.
impl<T> Default for Backlog<T> {
    fn default() -> Self {
        Self::new(Budget { rows: usize::MAX, tokens: 2048 })
    }
}

impl<T> Backlog<T> {
    /// An empty backlog for batches of this size. One row is interactive whatever its length; several rows are, up to
    /// a quarter of a batch together.
    pub fn new(batch: Budget) -> Self {
        let lane = || Lane { flows: Vec::new(), served: 0, now: 0, load: Load::default() };
        Self { interactive_tokens: batch.tokens / 4, lanes: [lane(), lane()], overdue: None }
    }

    /// Rows waiting.
    pub fn rows(&self) -> usize {
        self.lanes.iter().map(|lane| lane.load.rows).sum()
    }

    /// Tokens waiting.
    pub fn tokens(&self) -> usize {
        self.lanes.iter().map(|lane| lane.load.tokens).sum()
    }

    /// What waits in the interactive and in the bulk lane.
    pub fn loads(&self) -> [Load; 2] {
        [self.lanes[INTERACTIVE].load, self.lanes[BULK].load]
    }

    pub fn is_empty(&self) -> bool {
        self.rows() == 0
    }

    /// Whether such a request would be interactive.
    pub const fn is_interactive(&self, rows: usize, tokens: usize) -> bool {
        self.lane_of(rows, tokens).0 == INTERACTIVE
    }

    /// Whether bulk work waits.
    pub const fn has_bulk(&self) -> bool {
        self.lanes[BULK].load.rows > 0
    }

    /// What a request of this many rows and tokens would have before it. Whoever shares with it, flow or lane, is given
    /// as much as it is, or all that it has. In the bulk lane the requests of a flow take turns: before the first row of a
    /// new one there is one row of each.
    pub fn ahead(&self, flow: Flow, rows: usize, tokens: usize) -> Ahead {
        let (index, other) = self.lane_of(rows, tokens);
        let lane = &self.lanes[index];
        let (own, requests) = lane.flow(flow).map_or((0, 0), |queued| (queued.tokens, queued.requests.len()));
        let first_turns =
            if index == INTERACTIVE { own } else { requests * (lane.load.tokens / lane.load.rows.max(1)) };
        let until = |own: usize| {
            let others = lane.flows.iter().filter(|queued| queued.flow != flow);
            let here = own + others.map(|queued| queued.tokens.min(own)).sum::<usize>();
            here + self.lanes[other].load.tokens.min(here)
        };
        Ahead { start: until(first_turns), finish: until(own + tokens) }
    }

    /// A request of so many tokens in several rows is bulk.
    pub const fn bulk_tokens(&self) -> usize {
        self.interactive_tokens + 1
    }

    /// The lane of such a request, and the other one.
    const fn lane_of(&self, rows: usize, tokens: usize) -> (usize, usize) {
        if rows == 1 || tokens <= self.interactive_tokens { (INTERACTIVE, BULK) } else { (BULK, INTERACTIVE) }
    }
}

impl<T> Lane<T> {
    fn flow(&self, flow: Flow) -> Option<&Queued<T>> {
        self.flows.iter().find(|queued| queued.flow == flow)
    }
}

impl<T: Planned> Backlog<T> {
    /// Adds the rows of one request of nobody in particular.
    pub fn push(&mut self, rows: VecDeque<T>) {
        self.push_for(Flow::default(), rows);
    }

    /// Adds the rows of one request behind all others of its flow and lane.
    pub fn push_for(&mut self, flow: Flow, rows: VecDeque<T>) {
        if rows.is_empty() {
            return;
        }
        let tokens = rows.iter().map(Planned::n_tokens).sum::<usize>();
        let (lane, other) = self.lane_of(rows.len(), tokens);
        let other_served = self.lanes[other].served;
        let lane = &mut self.lanes[lane];
        if lane.load.rows == 0 {
            // Time in which it wanted nothing is no credit.
            lane.served = lane.served.max(other_served);
        }
        lane.load.rows += rows.len();
        lane.load.tokens += tokens;
        lane.push(flow, rows, tokens);
    }

    /// Takes the next batch. Empty only when no wanted row waits or the first one exceeds the whole budget, which
    /// `submit` refuses.
    pub fn plan(&mut self, budget: Budget) -> Plan<T> {
        self.plan_enough(budget, usize::MAX)
    }

    /// The same, but the row with which a batch reaches `enough` tokens is its last one.
    pub fn plan_enough(&mut self, budget: Budget, enough: usize) -> Plan<T> {
        let mut plan = Plan { batch: Vec::new(), unwanted: Vec::new() };
        let mut left = budget;
        let mut overdue = self.overdue.take();
        while left.rows > 0 && left.tokens > 0 && budget.tokens - left.tokens < enough {
            let Some((lane, index)) = self.next(overdue.take()) else { break };
            let flow = self.lanes[lane].flows[index].flow;
            match self.lanes[lane].take(index, left.tokens, &mut plan.unwanted) {
                Taken::Row(row) => {
                    left.rows -= 1;
                    left.tokens -= row.n_tokens();
                    plan.batch.push(row);
                }
                Taken::DoesNotFit => {
                    self.overdue.get_or_insert(Turn { lane, flow });
                }
                Taken::Nothing => {}
            }
        }
        self.lanes.iter_mut().for_each(Lane::tidy);
        plan
    }

    /// Removes every row, for shutdown.
    pub fn drain(&mut self) -> Vec<T> {
        self.overdue = None;
        self.lanes.iter_mut().flat_map(Lane::drain).collect()
    }

    /// Removes rows nobody waits for from the whole backlog, so that they stop counting against its limits.
    pub fn sweep(&mut self) -> Vec<T> {
        let mut unwanted = Vec::new();
        for lane in &mut self.lanes {
            lane.sweep(&mut unwanted);
        }
        unwanted
    }

    /// The lane and the flow whose turn it is; `overdue` goes before all others.
    fn next(&self, overdue: Option<Turn>) -> Option<(usize, usize)> {
        if let Some(Turn { lane, flow }) = overdue
            && let Some(index) = self.lanes[lane].flows.iter().position(|queued| queued.flow == flow)
        {
            return Some((lane, index));
        }
        let bulk_first = self.lanes[BULK].served < self.lanes[INTERACTIVE].served;
        let order = if bulk_first { [BULK, INTERACTIVE] } else { [INTERACTIVE, BULK] };
        order.into_iter().find_map(|lane| Some((lane, self.lanes[lane].next()?)))
    }
}

impl<T: Planned> Lane<T> {
    fn push(&mut self, flow: Flow, rows: VecDeque<T>, tokens: usize) {
        if let Some(queued) = self.flows.iter_mut().find(|queued| queued.flow == flow) {
            if queued.requests.is_empty() {
                queued.served = queued.served.max(self.now);
            }
            queued.tokens += tokens;
            queued.requests.push_back(rows);
        } else {
            let requests = VecDeque::from([rows]);
            self.flows.push(Queued { flow, served: self.now, tokens, requests, aside: VecDeque::new() });
        }
    }

    /// The flow that has been given least.
    fn next(&self) -> Option<usize> {
        let waiting = self.flows.iter().enumerate().filter(|(_, queued)| !queued.requests.is_empty());
        waiting.min_by_key(|(_, queued)| queued.served).map(|(index, _)| index)
    }

    /// The next row of a flow if it has at most `room` tokens.
    fn take(&mut self, index: usize, room: usize, unwanted: &mut Vec<T>) -> Taken<T> {
        let queued = &mut self.flows[index];
        let Some(mut request) = queued.requests.pop_front() else { return Taken::Nothing };
        while let Some(row) = request.pop_front_if(|row| !row.is_wanted()) {
            self.load.forget(&row);
            queued.tokens -= row.n_tokens();
            unwanted.push(row);
        }
        match request.pop_front() {
            None => Taken::Nothing,
            Some(row) if row.n_tokens() <= room => {
                if !request.is_empty() {
                    queued.requests.push_back(request);
                }
                self.load.forget(&row);
                queued.tokens -= row.n_tokens();
                // An empty row is no free one: turns must end.
                let cost = row.n_tokens().max(1) as u64;
                self.now = queued.served;
                queued.served += cost;
                self.served += cost;
                Taken::Row(row)
            }
            Some(row) => {
                request.push_front(row);
                queued.aside.push_back(request);
                Taken::DoesNotFit
            }
        }
    }

    /// Ends a plan: what was set aside comes back to its place. A flow without rows is forgotten once the others have
    /// been given as much: a caller that sends its next row whenever it has none waiting must not start anew each time.
    fn tidy(&mut self) {
        for queued in &mut self.flows {
            while let Some(request) = queued.aside.pop_back() {
                queued.requests.push_front(request);
            }
        }
        let now = self.now;
        self.flows.retain(|queued| !queued.requests.is_empty() || queued.served > now);
    }

    fn sweep(&mut self, unwanted: &mut Vec<T>) {
        for queued in &mut self.flows {
            for request in std::mem::take(&mut queued.requests) {
                let (wanted, gone): (VecDeque<T>, VecDeque<T>) = request.into_iter().partition(Planned::is_wanted);
                for row in &gone {
                    self.load.forget(row);
                    queued.tokens -= row.n_tokens();
                }
                unwanted.extend(gone);
                if !wanted.is_empty() {
                    queued.requests.push_back(wanted);
                }
            }
        }
        self.tidy();
    }

    fn drain(&mut self) -> Vec<T> {
        self.load = Load::default();
        let flows = std::mem::take(&mut self.flows);
        flows.into_iter().flat_map(|queued| queued.requests).flatten().collect()
    }
}

impl Load {
    fn forget(&mut self, row: &impl Planned) {
        self.rows -= 1;
        self.tokens -= row.n_tokens();
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
