//! Progress of one transfer, for every audience at once: `/readyz`, a bar on a terminal, or a few log lines.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::observe::progress::LoadProgress;

/// One file on its way.
#[derive(Debug)]
pub(super) struct Meter<'p> {
    progress: &'p LoadProgress,
    bar: Option<ProgressBar>,
    name: String,
    total: u64,
    /// Bytes that `progress` knows of.
    told: u64,
    /// Quarters of the way that have been logged.
    logged: u64,
}

// === impl Meter ===

impl<'p> Meter<'p> {
    /// Begins; a bar is drawn among `bars` where standard error is a terminal.
    pub(super) fn start(progress: &'p LoadProgress, name: &str, total: u64, bars: Option<&MultiProgress>) -> Self {
        progress.enter_file(name, total);
        let large = total >= WORTH_SHOWING_BYTES;
        let bars = bars.filter(|_| large && std::io::stderr().is_terminal());
        let bar = bars.map(|bars| bar(bars, name, total));
        let mut meter = Self { progress, bar, name: name.to_owned(), total, told: 0, logged: 0 };
        if large && meter.bar.is_none() {
            tracing::info!(file = name, bytes = total, "download starts");
        } else if !large {
            // Small files say nothing.
            meter.logged = QUARTERS;
        }
        meter
    }

    /// Bytes that are there now.
    pub(super) fn at(&mut self, done: u64) {
        self.progress.file_moved(self.told, done);
        self.told = done;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            return;
        }
        let quarter = done.saturating_mul(QUARTERS).checked_div(self.total).unwrap_or(QUARTERS);
        if quarter > self.logged {
            self.logged = quarter;
            tracing::info!(file = self.name, percent = quarter * 25, "download");
        }
    }
}

impl Drop for Meter<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(bars: &MultiProgress, name: &str, total: u64) -> ProgressBar {
    let bar = bars.add(ProgressBar::new(total));
    // The template is a constant; if it were wrong, the default style would show.
    if let Ok(style) = ProgressStyle::with_template("{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}") {
        bar.set_style(style);
    }
    bar.set_message(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// Below this a transfer is over before anyone could read about it.
const WORTH_SHOWING_BYTES: u64 = 4 << 20;
const QUARTERS: u64 = 4;
