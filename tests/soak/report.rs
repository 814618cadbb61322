//! The figures of a run, and what is wrong with them.

use std::fmt;
use std::time::Duration;

use crate::clients::Tally;
use crate::watch::{BEGIN, END, Samples};

pub struct Report {
    pub time: Duration,
    pub watch: Samples,
    pub tally: Tally,
    /// Resident after the rest, in bytes.
    pub resting: u64,
    /// The exit code after SIGTERM, and the time it took.
    pub exit: (Option<i32>, Duration),
}

/// How the fault of a leak begins.
pub const MEMORY: &str = "memory";
/// Largest growth of the resident memory after the warm-up.
const GROWTH: f64 = 0.01;
/// Largest growth of the 99th percentile of short requests.
const DRIFT: f64 = 0.10;
/// A run that is shorter has too few samples of latency.
const LATENCY_NEEDS: Duration = Duration::from_mins(30);
/// Resident memory after the rest, over what it was after the warm-up.
const RESTING: f64 = 1.2;
/// The time in which it has to end: the drain grace.
const ENDING: Duration = Duration::from_secs(22);

impl Report {
    fn resident(&self) -> (u64, u64) {
        (self.watch.median(BEGIN, |sample| sample.resident), self.watch.median(END, |sample| sample.resident))
    }

    fn growth(&self) -> f64 {
        let (begin, end) = self.resident();
        end as f64 / begin as f64 - 1.0
    }

    fn p99(&self) -> (f64, f64) {
        (self.tally.latency(99, BEGIN.0, BEGIN.1), self.tally.latency(99, END.0, END.1))
    }

    /// In words; empty = all is well.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let growth = self.growth();
        if growth > GROWTH {
            faults.push(format!("{MEMORY} grew by {:.2} % after the warm-up", 100.0 * growth));
        }
        let resting = self.resting as f64 / self.resident().0 as f64;
        if resting > RESTING {
            faults.push(format!("at rest, {resting:.2} times the memory from after the warm-up is resident"));
        }
        for (what, begin, end) in [
            (
                "descriptors",
                self.watch.median(BEGIN, |it| it.descriptors as u64),
                self.watch.median(END, |it| it.descriptors as u64),
            ),
            (
                "threads",
                self.watch.median(BEGIN, |it| it.threads as u64),
                self.watch.median(END, |it| it.threads as u64),
            ),
        ] {
            // As many clients, give or take, have a connection at any time.
            if end > begin + begin / 4 + 4 {
                faults.push(format!("{what} grew from {begin} to {end}"));
            }
        }
        let (begin, end) = self.p99();
        if self.time >= LATENCY_NEEDS && end > (1.0 + DRIFT) * begin {
            faults.push(format!("the 99th percentile rose from {:.1} to {:.1} ms", 1e3 * begin, 1e3 * end));
        }
        if self.watch.not_ready() > 0 {
            faults.push(format!("not ready {} times", self.watch.not_ready()));
        }
        if self.tally.n_faults > 0 {
            faults.push(format!("{} wrong outcomes, such as: {}", self.tally.n_faults, self.tally.faults.join("; ")));
        }
        if self.exit.0 != Some(0) || self.exit.1 > ENDING {
            faults.push(format!(
                "after SIGTERM it ended with {:?}, {:.1} s later",
                self.exit.0,
                self.exit.1.as_secs_f64()
            ));
        }
        faults
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (watch, tally) = (&self.watch, &self.tally);
        writeln!(f, "Soak: {:.1} minutes of traffic\n", self.time.as_secs_f64() / 60.0)?;
        let requests: u64 = tally.kinds.values().sum();
        writeln!(f, "| kind | requests |\n|---|---|")?;
        for (kind, n) in &tally.kinds {
            writeln!(f, "| {kind} | {n} |")?;
        }
        writeln!(f, "| all | {requests} |\n")?;
        let (begin, end) = self.resident();
        writeln!(f, "| | |\n|---|---|")?;
        writeln!(f, "| vectors compared | {} |", tally.vectors)?;
        writeln!(f, "| wrong outcomes | {} |", tally.n_faults)?;
        writeln!(f, "| refused with a delay | {} |", tally.refused)?;
        writeln!(f, "| resident before | {:.1} MiB |", mib(watch.before))?;
        writeln!(
            f,
            "| after the warm-up, at the end | {:.1}, {:.1} MiB ({:+.2} %) |",
            mib(begin),
            mib(end),
            100.0 * self.growth()
        )?;
        writeln!(f, "| slope | {:+.2} MiB/h |", watch.slope() / f64::from(1 << 20))?;
        writeln!(f, "| at most | {:.1} MiB |", mib(watch.most(|sample| sample.resident)))?;
        writeln!(f, "| at rest | {:.1} MiB |", mib(self.resting))?;
        let counts = |value: fn(&crate::watch::Sample) -> u64| (watch.median(BEGIN, value), watch.median(END, value));
        let (descriptors, threads) = (counts(|it| it.descriptors as u64), counts(|it| it.threads as u64));
        writeln!(f, "| descriptors | {}, {} |", descriptors.0, descriptors.1)?;
        writeln!(f, "| threads | {}, {} |", threads.0, threads.1)?;
        let (p99_begin, p99_end) = self.p99();
        writeln!(f, "| p99 of one short text | {:.1}, {:.1} ms |", 1e3 * p99_begin, 1e3 * p99_end)?;
        writeln!(f, "| not ready | {} times |", watch.not_ready())?;
        write!(f, "| SIGTERM under load | exit code {:?}, {:.1} s |", self.exit.0, self.exit.1.as_secs_f64())
    }
}
