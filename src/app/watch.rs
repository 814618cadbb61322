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
/// Who comes back this much later than planned was stopped, and everybody else with it: by `docker pause`, a debugger,
/// a machine that was moved. The clock went on, and nobody hangs for that.
const STOPPED: Duration = Duration::from_secs(1);

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
        let stalled = vec![None; engine.slots().len()];
        let mut watchdog = Watchdog { stalled, engine, stall_limit, alarm, pauses: Pauses::new(Instant::now()) };
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
    /// Which models were stalled the last time, and whether in their canary.
    stalled: Vec<Option<bool>>,
    pauses: Pauses,
}

/// When the whole process was stopped, as the times between looks tell.
#[derive(Debug)]
struct Pauses {
    looked: Instant,
    patient_until: Option<Instant>,
}

impl Pauses {
    const fn new(now: Instant) -> Self {
        Self { looked: now, patient_until: None }
    }

    /// Whether it was stopped so lately that device threads have not had `patience` since to go on.
    fn is_recent(&mut self, now: Instant, patience: Duration) -> bool {
        if now - self.looked > PERIOD + STOPPED {
            tracing::warn!(seconds = (now - self.looked).as_secs(), "the process was stopped for a while");
            self.patient_until = Some(now + patience);
        }
        self.looked = now;
        self.patient_until.is_some_and(|until| now < until)
    }
}

impl Watchdog {
    fn look(&mut self) {
        let is_patient = self.pauses.is_recent(Instant::now(), self.stall_limit);
        let slots = self.engine.slots().iter().zip(&mut self.stalled);
        for (slot, was_stalled) in slots {
            let SlotState::Ready(served) = slot.state() else {
                *was_stalled = None;
                continue;
            };
            let health = served.runner.health();
            let stalled = if let Health::Stalled { canary, .. } = health { Some(canary) } else { None };
            if let Some(canary) = stalled {
                let before = was_stalled.replace(canary);
                if before.is_none() {
                    stalls(&self.engine, slot);
                }
                // A thread may be late for its canary first, and then hang in it.
                if canary && before != Some(true) {
                    self.engine.metrics.model(&slot.spec.id).canary(CanaryResult::Timeout);
                }
            }
            let overdue = served.runner.devices().filter_map(|(_, health)| match health {
                Health::Stalled { overdue, .. } => Some(overdue),
                Health::Ready | Health::Dead | Health::Broken(_) => None,
            });
            // Also beside a device that is worse: nothing else frees one that hangs.
            if let Some(overdue) = overdue.max().filter(|overdue| *overdue > self.stall_limit && !is_patient) {
                let reason = format!("a forward pass is overdue by {:.1} s", overdue.as_secs_f64());
                self.alarm.raise(format!("{}: {reason}", on_device(slot, &served)));
            }
            if stalled.is_some() {
                continue;
            }
            if was_stalled.take().is_some() && health == Health::Ready {
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

fn stalls(engine: &Engine, slot: &Slot) {
    tracing::error!(model = slot.spec.id, "stalled: a forward pass takes much longer than it should; not ready");
    engine.metrics.model(&slot.spec.id).set_state(ModelState::Degraded);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_stop_everybody_has_time_to_go_on() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let (mut pauses, patience) = (Pauses::new(start), Duration::from_secs(30));
        for ms in [200, 400, 1_500] {
            assert!(!pauses.is_recent(at(ms), patience), "{ms}");
        }
        // Stopped for a minute.
        assert!(pauses.is_recent(at(61_500), patience));
        for second in 62..=91 {
            assert!(pauses.is_recent(at(second * 1000), patience), "{second}");
        }
        assert!(!pauses.is_recent(at(91_500), patience));
    }
}
