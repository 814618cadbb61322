//! Signals while a command works that is no server: what it has started ends with it.
//!
//! pip runs in a process group of its own, where a terminal's Ctrl-C does not reach it, and half-written files are the
//! command's to remove. So SIGINT and SIGTERM ask the command to stop, and end the process when it has, or when it takes
//! too long. What arrived whole is kept for the next call.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

/// Until then a command that heard the wish has killed its children; one that computes never hears it.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// What shells add to the number of the signal that ended a program.
const ENDED_BY_SIGNAL: u8 = 128;

/// Runs `command` on a thread of its own with the flag that SIGINT and SIGTERM set. Its own outcome does not count after
/// a signal: the exit code is the one of a program that the signal ended.
///
/// # Errors
/// The command's own, and those of the operating system that refuses a thread or a handler.
pub(super) fn run(
    command: impl FnOnce(&AtomicBool) -> anyhow::Result<ExitCode> + Send + 'static,
) -> anyhow::Result<ExitCode> {
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (ended, end) = tokio::sync::oneshot::channel();
    let (mut end, told) = (std::pin::pin!(end), Arc::clone(&stop));
    // The handlers come first: from here on no signal ends the process behind the command's back.
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    let thread = std::thread::Builder::new().name("command".to_owned()).spawn(move || {
        // Nobody listens any more when it took too long.
        let _ = ended.send(command(&told));
    })?;
    runtime.block_on(async {
        let (number, name) = tokio::select! {
            outcome = &mut end => return match (outcome, thread.join()) {
                (Ok(outcome), _) => outcome,
                (Err(_), Err(panic)) => std::panic::resume_unwind(panic),
                (Err(_), Ok(())) => Err(anyhow::anyhow!("the command ended without an outcome")),
            },
            _ = terminate.recv() => (15, "SIGTERM"),
            _ = interrupt.recv() => (2, "SIGINT"),
        };
        stop.store(true, Ordering::Relaxed);
        // Whether it ended or not, and how, the signal has the last word.
        let _: Result<_, _> = tokio::time::timeout(STOP_WITHIN, end).await;
        tracing::info!(signal = name, "stopped; what arrived whole is kept for the next time");
        Ok(ExitCode::from(ENDED_BY_SIGNAL + number))
    })
}
