//! Several files at once, but never more than a bound: one slow file does not hold up the others.
//!
//! The first failure halts the rest, and so does `stop`; what was received by then stays for the next run to resume.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};

use crate::source::cache::STOP_POLL;
use crate::source::error::Cause;

/// Runs `work` for every item on at most `n_threads` threads; `work` is told to stop through the flag it is handed.
///
/// # Errors
/// The failure that came first.
pub(super) fn each<T: Sync>(
    items: &[T],
    n_threads: usize,
    stop: &AtomicBool,
    work: impl Fn(&T, &AtomicBool) -> Result<(), Cause> + Sync,
) -> Result<(), Cause> {
    let n_threads = n_threads.min(items.len());
    if n_threads <= 1 {
        return items.iter().try_for_each(|item| work(item, stop));
    }
    let (halt, next) = (AtomicBool::new(false), AtomicUsize::new(0));
    let rest = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(item, &halt)?;
        }
        Ok(())
    };
    let (tx, rx) = sync_channel(n_threads);
    std::thread::scope(|scope| {
        for index in 0..n_threads {
            let (tx, rest) = (tx.clone(), &rest);
            let thread = std::thread::Builder::new().name(format!("files-{index}"));
            // The receiver is there until every sender has gone.
            let started = thread.spawn_scoped(scope, move || tx.send(rest()).is_ok());
            if let Err(error) = started {
                tracing::warn!(%error, "cannot start a thread, fewer files are fetched at once");
                break;
            }
        }
        drop(tx);
        let mut failure: Option<Cause> = None;
        loop {
            if stop.load(Ordering::Relaxed) {
                halt.store(true, Ordering::Relaxed);
            }
            match rx.recv_timeout(STOP_POLL) {
                Ok(Ok(())) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Err(cause)) => {
                    halt.store(true, Ordering::Relaxed);
                    failure.get_or_insert(cause);
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        failure.map_or(Ok(()), Err)
    })?;
    // Only what no thread could be started for.
    items.iter().skip(next.load(Ordering::Relaxed)).try_for_each(|item| work(item, stop))
}

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, Mutex};

    use super::*;

    fn no_stop() -> AtomicBool {
        AtomicBool::new(false)
    }

    #[test]
    fn every_item_is_worked_on_once_by_at_most_so_many_threads() {
        let (running, most, seen) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(Vec::new()));
        let items: Vec<usize> = (0..100).collect();
        let work = |item: &usize, _: &AtomicBool| {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            seen.lock().unwrap().push(*item);
            running.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        };
        each(&items, 4, &no_stop(), work).unwrap();
        let mut seen = seen.into_inner().unwrap();
        seen.sort_unstable();
        assert_eq!(seen, items);
        assert!(most.into_inner() <= 4);
    }

    #[test]
    fn items_are_under_way_at_the_same_time() {
        // Each waits for the two others: one after the other would never end.
        let barrier = Barrier::new(3);
        let work = |_: &u8, _: &AtomicBool| {
            barrier.wait();
            Ok(())
        };
        each(&[1, 2, 3], 3, &no_stop(), work).unwrap();
    }

    #[test]
    fn the_first_failure_halts_the_others_and_is_the_answer() {
        let barrier = Barrier::new(2);
        let work = |item: &usize, halt: &AtomicBool| {
            if *item > 1 {
                return Err(Cause::Missing { files: vec!["begun after the failure".to_owned()] });
            }
            barrier.wait();
            if *item == 1 {
                return Err(Cause::Escape { file: "x".to_owned() });
            }
            while !halt.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            Err(Cause::Stopped)
        };
        assert!(matches!(each(&[0, 1, 2, 3], 2, &no_stop(), work), Err(Cause::Escape { .. })));
    }

    #[test]
    fn stop_reaches_every_item() {
        let (stop, begun) = (no_stop(), Barrier::new(2));
        let work = |_: &u8, halt: &AtomicBool| {
            if begun.wait().is_leader() {
                stop.store(true, Ordering::Relaxed);
            }
            while !halt.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            Err(Cause::Stopped)
        };
        assert!(matches!(each(&[1, 2], 2, &stop, work), Err(Cause::Stopped)));
    }
}
