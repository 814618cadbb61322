//! The time in which a device thread computes rows: its turn on the device, and the clock that tells a stall from work.

use crate::runner::pulse::{Pulse, Purpose, Work};
use crate::threads::{Turn, Turns};

/// What one device thread holds while it computes, and nothing in between.
#[derive(Debug)]
pub(super) struct Shift<'a> {
    pulse: &'a Pulse,
    turns: &'a Turns,
    held: Option<Held<'a>>,
}

/// Dropped in this order.
#[derive(Debug)]
struct Held<'a> {
    _turn: Turn<'a>,
    work: Work<'a>,
}

impl<'a> Shift<'a> {
    pub(super) const fn new(pulse: &'a Pulse, turns: &'a Turns) -> Self {
        Self { pulse, turns, held: None }
    }

    pub(super) const fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Waits for a turn behind everybody who waits already. Then a pass over so many tokens begins; waiting for the turn does
    /// not count as computing.
    pub(super) fn begin(&mut self, n_tokens: usize) {
        self.end();
        let work = self.pulse.begin();
        let turn = self.turns.take();
        work.compute(n_tokens, Purpose::Rows);
        self.held = Some(Held { _turn: turn, work });
    }

    /// What was computed is done, and a pass over so many tokens that was begun behind it is what the device computes now.
    pub(super) fn go_on(&mut self, n_tokens: usize) {
        match &self.held {
            Some(held) => held.work.compute(n_tokens, Purpose::Rows),
            // Given back in between, for passes that took turns of their own.
            None => self.begin(n_tokens),
        }
    }

    pub(super) fn end(&mut self) {
        self.held = None;
    }
}
