//! Batches that a device thread takes while it has one under way, for devices that compute beside their thread: the next one
//! lies ready when the one before is done.
//!
//! Nobody pays for it with a worse batch or a longer wait than at most one batch: see [`Queue::next_ahead`].

use crate::batch::plan::Budget;
use crate::batch::{Job, Queue, Side, State};

impl Queue {
    /// The next batch of a device thread whose present one is not done, or `None` at once.
    ///
    /// Only where as much waits as a batch holds: what comes meanwhile could not have joined it. Not while another device
    /// has nothing to do, which would begin it sooner; and not while batches are cut short for interactive requests, which
    /// would wait for one batch more.
    pub fn next_ahead(&self) -> Option<Vec<Job>> {
        let mut state = self.shared.lock();
        self.shared.forget_abandoned(&mut state);
        let mut others = state.devices.iter().enumerate().filter(|(number, _)| *number != self.device);
        let someone_is_idle = others.any(|(_, side)| side.running.is_none());
        let limits = self.shared.limits.batch;
        let budget = Budget { tokens: state.devices[self.device].tokens(limits.tokens), ..limits };
        if someone_is_idle || state.enough() < budget.tokens || !state.fills(budget) {
            return None;
        }
        let batch = self.plan(&mut state, budget, usize::MAX);
        drop(state);
        batch.iter().for_each(Job::start);
        (!batch.is_empty()).then_some(batch)
    }
}

impl State {
    /// Whether as much waits as a batch may hold.
    fn fills(&self, budget: Budget) -> bool {
        self.backlog.rows() >= budget.rows || self.backlog.tokens() >= budget.tokens
    }
}

impl Side {
    /// The present batch is done, and the one behind it is the present one. Without any behind it stays what it was: its rows
    /// have still to be answered.
    pub(super) fn move_on(&mut self) {
        if let Some(ahead) = self.ahead.take() {
            self.running = Some(ahead);
        }
    }
}
