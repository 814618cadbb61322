//! Which model is loaded or unloaded next, as a pure function of what is known of each.
//!
//! Models that requests wait for come first, in the order in which their first request came. Room is made by unloading
//! the least recently used model that nobody uses. If every loaded model is in use, the one that has been loaded for
//! longest is emptied once its turn and the patience of whoever waits are over: its new requests wait, those in flight
//! finish. So more busy models than places take turns instead of shutting each other out.

use std::time::{Duration, Instant};

/// What may be in memory, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Models in memory at most.
    pub max_models: Option<usize>,
    /// Bytes of weights in memory at most.
    pub max_bytes: Option<u64>,
    /// A model that nobody has used for this long is unloaded.
    pub idle_unload: Option<Duration>,
    /// How long a busy model keeps its place at least, and how long a request waits before a busy model has to leave.
    pub turn: Duration,
}

/// What is known of one model when it is decided which comes and which goes.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Weights: as measured, or as estimated before the first load.
    pub bytes: u64,
    pub life: Life,
}

/// Where a model is.
#[derive(Debug, Clone, Copy)]
pub enum Life {
    /// Neither loaded nor wanted, or it cannot be.
    Absent,
    /// To be loaded at start, if there is room without unloading another; its files have lain ready since then.
    WantedAtStart {
        since: Instant,
    },
    /// Requests have been waiting for it since then.
    Wanted {
        since: Instant,
    },
    Loaded(Stay),
}

/// A model's time in memory.
#[derive(Debug, Clone, Copy)]
pub struct Stay {
    pub since: Instant,
    /// When the last request ended.
    pub used: Instant,
    pub occupied: Occupied,
    /// It takes no new requests, because another model needs its place.
    pub leaving: bool,
}

/// Who needs a loaded model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupied {
    Free,
    /// Requests in flight; the end of the last one rings.
    Requests,
    /// Rows whose client has left are being computed; nobody rings when they are done.
    Remains,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Load(usize),
    /// Leave a model that was wanted at start to be loaded on demand.
    Shelve(usize),
    Unload(usize, Why),
    /// Let the requests in flight finish and send new ones to wait.
    Empty(usize),
    /// Let it take requests again: whoever needed its place is gone.
    Keep(usize),
    Wait(Waiting),
}

/// Why a model is unloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    Idle,
    Room,
}

/// How long there is nothing to do, and whether the end of a request changes that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    pub until: Option<Instant>,
    pub for_room: bool,
}

/// What remains of a cancelled request is looked at again after this long.
const REMAINS: Duration = Duration::from_millis(50);

/// What is to be done now.
pub fn next(models: &[Candidate], limits: &Limits, now: Instant) -> Step {
    let stays = || models.iter().enumerate().filter_map(|(index, model)| Some((index, model.stay()?)));
    let wanted = models.iter().enumerate().filter_map(|(index, model)| match model.life {
        Life::Wanted { since } => Some((since, index)),
        Life::Absent | Life::WantedAtStart { .. } | Life::Loaded(_) => None,
    });
    let Some((since, wanted)) = wanted.min() else {
        if let Some((index, _)) = stays().find(|(_, stay)| stay.leaving) {
            return Step::Keep(index);
        }
        return unasked(models, limits, now);
    };
    if fits(models, limits, models[wanted].bytes) {
        return Step::Load(wanted);
    }
    if let Some((index, _)) = least_recently_used(models, |_| true) {
        return Step::Unload(index, Why::Room);
    }
    let remains = stays().any(|(_, stay)| stay.occupied == Occupied::Remains).then(|| now + REMAINS);
    // One leaves at a time; each further one when its place turns out not to be enough.
    let longest = stays().min_by_key(|(_, stay)| stay.since).filter(|_| stays().all(|(_, stay)| !stay.leaving));
    let turn_over = longest.map(|(index, stay)| (index, (stay.since.max(since)) + limits.turn));
    match turn_over {
        Some((index, due)) if due <= now => Step::Empty(index),
        _ => {
            let due = turn_over.map(|(_, due)| due);
            Step::Wait(Waiting { until: due.into_iter().chain(remains).min(), for_room: true })
        }
    }
}

/// What is to be done while no request waits: start-up, and models that nobody uses.
fn unasked(models: &[Candidate], limits: &Limits, now: Instant) -> Step {
    let at_start = models.iter().enumerate().filter_map(|(index, model)| match model.life {
        Life::WantedAtStart { since } => Some((since, index)),
        Life::Absent | Life::Wanted { .. } | Life::Loaded(_) => None,
    });
    if let Some((_, index)) = at_start.min() {
        return if fits(models, limits, models[index].bytes) { Step::Load(index) } else { Step::Shelve(index) };
    }
    let loaded = models.iter().filter(|model| model.stay().is_some()).count();
    // Weights can turn out larger than their estimate.
    if loaded > 1
        && limits.max_bytes.is_some_and(|limit| loaded_bytes(models) > limit)
        && let Some((index, _)) = least_recently_used(models, |_| true)
    {
        return Step::Unload(index, Why::Room);
    }
    let Some(idle) = limits.idle_unload else { return Step::Wait(Waiting { until: None, for_room: false }) };
    if let Some((index, _)) = least_recently_used(models, |stay| stay.used + idle <= now) {
        return Step::Unload(index, Why::Idle);
    }
    // One that is in use now cannot be due before that long from now.
    let due = |stay: Stay| if stay.occupied == Occupied::Free { stay.used + idle } else { now + idle };
    let until = models.iter().filter_map(Candidate::stay).map(due).min();
    Step::Wait(Waiting { until, for_room: false })
}

/// Whether a model of `bytes` can be loaded beside those that are. One alone always can: whether it fits the limit by
/// itself is decided when its files are known.
fn fits(models: &[Candidate], limits: &Limits, bytes: u64) -> bool {
    let loaded = models.iter().filter(|model| model.stay().is_some()).count();
    loaded == 0
        || (limits.max_models.is_none_or(|limit| loaded < limit)
            && limits.max_bytes.is_none_or(|limit| loaded_bytes(models).saturating_add(bytes) <= limit))
}

fn loaded_bytes(models: &[Candidate]) -> u64 {
    models.iter().filter(|model| model.stay().is_some()).map(|model| model.bytes).sum()
}

fn least_recently_used(models: &[Candidate], eligible: impl Fn(&Stay) -> bool) -> Option<(usize, Stay)> {
    let stays = models.iter().enumerate().filter_map(|(index, model)| Some((index, model.stay()?)));
    stays.filter(|(_, stay)| stay.occupied == Occupied::Free && eligible(stay)).min_by_key(|(_, stay)| stay.used)
}

impl Candidate {
    /// The start is over before it came to this model.
    pub(super) const fn forget_start(&mut self) {
        if matches!(self.life, Life::WantedAtStart { .. }) {
            self.life = Life::Absent;
        }
    }

    const fn stay(&self) -> Option<Stay> {
        match self.life {
            Life::Loaded(stay) => Some(stay),
            Life::Absent | Life::WantedAtStart { .. } | Life::Wanted { .. } => None,
        }
    }
}

#[cfg(test)]
#[path = "residency_tests.rs"]
mod tests;
