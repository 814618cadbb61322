//! The closed sets of label values.

/// Why a queue accepted nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    Full,
    /// It would have waited too long.
    Late,
    Loading,
    Dead,
}

/// Why a forward pass gave nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchFailure {
    Oom,
    Device,
    Panic,
}

/// Why a batch is tried again in halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    Oom,
    Isolate,
}

/// What came of a canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CanaryResult {
    Ok,
    Mismatch,
    Error,
    Timeout,
}

/// How a token array was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArrayReading {
    Cl100k,
    O200k,
    Model,
    Refused,
}

/// Where a panic was caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PanicThread {
    Http,
    Tokenizer,
    Runner,
}

/// A model's place in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelState {
    Loading,
    Ready,
    Degraded,
    Dead,
    /// Not in memory; a request loads it.
    Unloaded,
}

/// Why a model was unloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnloadReason {
    Idle,
    Room,
    /// Its device thread died.
    Died,
}

impl Refusal {
    pub(super) const ALL: [Self; 4] = [Self::Full, Self::Late, Self::Loading, Self::Dead];

    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Late => "late",
            Self::Loading => "loading",
            Self::Dead => "dead",
        }
    }
}

impl BatchFailure {
    pub(super) const ALL: [Self; 3] = [Self::Oom, Self::Device, Self::Panic];

    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Oom => "oom",
            Self::Device => "device",
            Self::Panic => "panic",
        }
    }
}

impl Split {
    pub(super) const ALL: [Self; 2] = [Self::Oom, Self::Isolate];

    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Oom => "oom",
            Self::Isolate => "isolate",
        }
    }
}

impl CanaryResult {
    pub(super) const ALL: [Self; 4] = [Self::Ok, Self::Mismatch, Self::Error, Self::Timeout];

    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Mismatch => "mismatch",
            Self::Error => "error",
            Self::Timeout => "timeout",
        }
    }
}

impl ArrayReading {
    pub(super) const ALL: [Self; 4] = [Self::Cl100k, Self::O200k, Self::Model, Self::Refused];

    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Cl100k => "cl100k",
            Self::O200k => "o200k",
            Self::Model => "model",
            Self::Refused => "refused",
        }
    }
}

impl PanicThread {
    pub(super) const ALL: [Self; 3] = [Self::Http, Self::Tokenizer, Self::Runner];

    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tokenizer => "tokenizer",
            Self::Runner => "runner",
        }
    }
}

impl ModelState {
    pub(super) const ALL: [Self; 5] = [Self::Loading, Self::Ready, Self::Degraded, Self::Dead, Self::Unloaded];

    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Dead => "dead",
            Self::Unloaded => "unloaded",
        }
    }
}

impl UnloadReason {
    pub(super) const ALL: [Self; 3] = [Self::Idle, Self::Room, Self::Died];

    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Room => "room",
            Self::Died => "died",
        }
    }
}
