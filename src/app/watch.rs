//! The watchdog: a thread of its own that asks every device thread how it is, a few times per second.
//!
//! It tells the log and the metrics when a model stalls, wakes the loading thread when a device thread died, and raises
//! the [`Alarm`] when only a new process helps. It touches no queue and no device, so nothing that hangs can hold it up.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::engine::{Doorbell, Engine, Served, Slot, SlotState};
use crate::observe::metrics::{CanaryResult, ModelState};
use crate::runner::Health;

/// How often it looks: a lost device ends the process within a second, and looking costs microseconds.
const PERIOD: Duration = Duration::from_millis(200);

/// Why the process has to end, as soon as there is a reason. The first one counts.
#[derive(Debug)]
pub struct Alarm(watch::Sender<Option<String>>);

impl Default for Alarm {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Alarm {
    pub(super) fn raise(&self, reason: String) {
        self.0.send_if_modified(|now| {
            let first = now.is_none();
            if first {
                *now = Some(reason);
            }
            first
        });
    }

    /// Waits for a reason; for ever while all is well.
    pub async fn raised(&self) -> String {
        let mut reason = self.0.subscribe();
        let raised = reason.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match raised {
            Some(reason) => reason,
            // The sender is ours: it does not go away.
            None => std::future::pending().await,
        }
    }
}

/// The running watchdog; it ends when this is dropped.
#[derive(Debug)]
pub struct Watch {
    bell: Arc<Doorbell>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches every model of `engine`. A forward pass that is overdue by `stall_limit` is a reason to end.
    ///
    /// # Errors
    /// The operating system refused the thread.
    pub fn start(engine: &Arc<Engine>, stall_limit: Duration, alarm: &Arc<Alarm>) -> std::io::Result<Self> {
        let bell = Arc::new(Doorbell::default());
        let (engine, alarm, stop) = (Arc::clone(engine), Arc::clone(alarm), Arc::clone(&bell));
        let mut watchdog = Watchdog { stalled: vec![false; engine.slots().len()], engine, stall_limit, alarm };
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(move || {
            while !stop.is_stopped() {
                watchdog.look();
                stop.wait(Some(Instant::now() + PERIOD));
            }
        })?;
        Ok(Self { bell, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.bell.stop();
        if let Some(thread) = self.thread.take() {
            // It never waits for long. If it panicked, it has said so already.
            let _ = thread.join();
        }
    }
}

struct Watchdog {
    engine: Arc<Engine>,
    stall_limit: Duration,
    alarm: Arc<Alarm>,
    /// Which models were stalled the last time.
    stalled: Vec<bool>,
}

impl Watchdog {
    fn look(&mut self) {
        let slots = self.engine.slots().iter().zip(&mut self.stalled);
        for (slot, was_stalled) in slots {
            let SlotState::Ready(served) = slot.state() else {
                *was_stalled = false;
                continue;
            };
            let health = served.runner.health();
            let stalled = if let Health::Stalled { canary, .. } = health { Some(canary) } else { None };
            if let Some(canary) = stalled
                && !std::mem::replace(was_stalled, true)
            {
                stalls(&self.engine, slot, canary);
            }
            let overdue = served.runner.devices().filter_map(|(_, health)| match health {
                Health::Stalled { overdue, .. } => Some(overdue),
                Health::Ready | Health::Dead | Health::Broken(_) => None,
            });
            // Also beside a device that is worse: nothing else frees one that hangs.
            if let Some(overdue) = overdue.max().filter(|overdue| *overdue > self.stall_limit) {
                let reason = format!("a forward pass is overdue by {:.1} s", overdue.as_secs_f64());
                self.alarm.raise(format!("{}: {reason}", on_device(slot, &served)));
            }
            if stalled.is_some() {
                continue;
            }
            if std::mem::replace(was_stalled, false) && health == Health::Ready {
                tracing::info!(model = slot.spec.id, "the forward pass has ended: no stall any more");
                self.engine.metrics.model(&slot.spec.id).set_state(ModelState::Ready);
            }
            match health {
                Health::Broken(breakage) => {
                    self.alarm.raise(format!("{}: {}", on_device(slot, &served), breakage.describe()));
                }
                // The loading thread knows what to do about it.
                Health::Dead => self.engine.bell().ring(),
                Health::Ready | Health::Stalled { .. } => {}
            }
        }
    }
}

/// The model, and the device that is meant, where it has several.
fn on_device(slot: &Slot, served: &Served) -> String {
    let id = &slot.spec.id;
    if served.runner.devices().nth(1).is_none() { id.clone() } else { format!("{id} on {}", served.runner.worst()) }
}

fn stalls(engine: &Engine, slot: &Slot, canary: bool) {
    tracing::error!(model = slot.spec.id, "stalled: a forward pass takes much longer than it should; not ready");
    let metrics = engine.metrics.model(&slot.spec.id);
    metrics.set_state(ModelState::Degraded);
    if canary {
        metrics.canary(CanaryResult::Timeout);
    }
}
