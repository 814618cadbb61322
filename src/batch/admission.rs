//! Whether a queue takes a request: decided at once, for all of its rows, from what waits and from the measured pace.
//!
//! Asked twice. [`Queue::check`] knows only how many rows there will be and spares what would be refused the tokenising;
//! [`Queue::submit`] knows every row.

use std::time::{Duration, Instant};

use thiserror::Error;

use crate::batch::{Client, Queue, QueueLimits, Shared, State};
use crate::observe::metrics::Refusal;
use crate::request::TokenRow;

/// Why rows were not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SubmitError {
    #[error("the queue is full")]
    Full { retry_after: Duration },
    #[error("it would wait too long")]
    Late { retry_after: Duration },
    #[error("the device thread has ended")]
    Closed,
    /// More than the queue holds when it is empty: refusing it for now would be refusing it for ever.
    #[error("{tokens} tokens never fit a queue of {limit}")]
    NeverFits { tokens: usize, limit: usize },
    #[error("a queue of {limit} rows never has room for so many")]
    NeverFitsRows { limit: usize },
}

/// What a request asks of the queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Demand {
    pub(super) n_rows: usize,
    pub(super) n_tokens: usize,
    /// Of its longest row.
    longest: usize,
}

/// Of the time that a request may take, so much may be predicted: predictions err, and what is given up late has cost as
/// much as what is answered.
const MARGIN: f64 = 0.8;

impl Queue {
    /// Refuses what [`Self::submit`] would refuse whatever the rows hold. Nothing is reserved: `submit` may refuse still.
    ///
    /// # Errors
    /// As for [`Self::submit`].
    pub fn check(&self, n_rows: usize, client: Client) -> Result<(), SubmitError> {
        let (shared, mut state) = (&self.shared, self.shared.lock());
        shared.forget_abandoned(&mut state);
        // In which lane it will wait depends on its tokens, and only what both refuse is refused for sure.
        let [interactive, bulk] = [0, state.backlog.bulk_tokens()].map(|n_tokens| {
            let demand = Demand { n_rows, n_tokens, longest: 0 };
            state.verdict(demand, client, shared.limits)
        });
        if bulk.is_ok() { Ok(()) } else { shared.counted(interactive) }
    }
}

impl Demand {
    pub(super) fn of(rows: &[TokenRow]) -> Self {
        let lengths = || rows.iter().map(|row| row.ids.len());
        Self { n_rows: rows.len(), n_tokens: lengths().sum(), longest: lengths().max().unwrap_or(0) }
    }
}

impl Shared {
    /// Every verdict that a client hears of passes here once.
    pub(super) fn counted(&self, verdict: Result<(), SubmitError>) -> Result<(), SubmitError> {
        let refusal = match verdict {
            Err(SubmitError::Full { .. }) => Refusal::Full,
            Err(SubmitError::Late { .. }) => Refusal::Late,
            Err(SubmitError::Closed) => Refusal::Dead,
            // What never fits is the client's mistake.
            Ok(()) | Err(SubmitError::NeverFits { .. } | SubmitError::NeverFitsRows { .. }) => return verdict,
        };
        self.metrics.refused(refusal);
        verdict
    }
}

impl State {
    /// Whether the queue takes a request now.
    pub(super) fn verdict(&self, demand: Demand, client: Client, limits: QueueLimits) -> Result<(), SubmitError> {
        let Demand { n_rows, n_tokens, longest } = demand;
        if n_rows > limits.rows {
            return Err(SubmitError::NeverFitsRows { limit: limits.rows });
        }
        if n_tokens > limits.tokens {
            return Err(SubmitError::NeverFits { tokens: n_tokens, limit: limits.tokens });
        }
        if longest > limits.batch.tokens {
            return Err(SubmitError::NeverFits { tokens: longest, limit: limits.batch.tokens });
        }
        if self.closed {
            return Err(SubmitError::Closed);
        }
        if self.backlog.rows() + n_rows > limits.rows || self.backlog.tokens() + n_tokens > limits.tokens {
            return Err(SubmitError::Full { retry_after: self.expected_wait() });
        }
        self.too_late(client, demand, limits.timeout)
            .map_or(Ok(()), |retry_after| Err(SubmitError::Late { retry_after }))
    }

    /// How long a request would wait that would not be done in time. Never one that has nothing before it: what a device
    /// cannot do at all is not known before it was tried.
    fn too_late(&self, client: Client, demand: Demand, timeout: Duration) -> Option<Duration> {
        if self.backlog.is_empty() {
            return None;
        }
        let ahead = self.backlog.ahead(client.flow, demand.n_rows, demand.n_tokens);
        let start = self.time(ahead.start + self.running_tokens())?;
        let finish = self.time(ahead.finish + self.running_tokens())?;
        let left = client.deadline.saturating_duration_since(Instant::now());
        if start > timeout.mul_f64(MARGIN) {
            return Some(start);
        }
        (finish > left.mul_f64(MARGIN)).then_some(finish)
    }
}
