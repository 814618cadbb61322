//! Wakes a thread that waits for something to do. Rings are remembered, so that none between two waits is lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// One thread waits, any thread rings.
#[derive(Debug, Default)]
pub struct Doorbell {
    rung: Mutex<bool>,
    changed: Condvar,
    stopped: AtomicBool,
    room_needed: AtomicBool,
}

impl Doorbell {
    pub fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_one();
    }

    /// Rings, and tells whoever waits that it shall end.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.ring();
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Sleeps until somebody rings or `until` has come; `None` = as long as it takes.
    pub fn wait(&self, until: Option<Instant>) {
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        while !*rung {
            let Some(until) = until else {
                rung = self.changed.wait(rung).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            rung = self.changed.wait_timeout(rung, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *rung = false;
    }

    /// From now on, or no longer, the end of a request is worth a ring: a model waits for room.
    pub(super) fn need_room(&self, needed: bool) {
        self.room_needed.store(needed, Ordering::SeqCst);
    }

    /// Rings if a model waits for room; otherwise the many requests of a busy server cost no wake-up.
    pub(super) fn ring_for_room(&self) {
        if self.room_needed.load(Ordering::SeqCst) {
            self.ring();
        }
    }
}
