//! How much processor time went where, and how much memory the server holds.
//!
//! A server of our own is in this process: its threads are told apart from the client's by their names. A server
//! elsewhere is asked for its metrics; where it has none that we know, nothing is said.

use std::time::Instant;

use crate::app::commands::bench::client::{Connection, Target};

/// Threads of the client: the requests, and the clock that says when they go.
pub(super) const CLIENT_THREAD: &str = "bench";
pub(super) const CLOCK_THREAD: &str = "bench-clock";

/// How the server is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meter {
    OwnProcess,
    Metrics,
}

/// Processor time so far, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Cpu {
    /// The whole server.
    pub(super) server: f64,
    /// Of these, forward passes and pooling. Known of our own process alone, as is the next one.
    pub(super) compute: Option<f64>,
    /// The client, which is no part of the server.
    pub(super) client: Option<f64>,
}

/// One look at the server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) at: Instant,
    pub(super) cpu: Option<Cpu>,
}

/// What was used between two readings.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    /// The server's processor time, in cores.
    pub(super) server_cores: f64,
    /// Of the server's time, what was not forward passes: HTTP, JSON, tokenising, queueing.
    pub(super) around: Option<f64>,
    pub(super) client_cores: Option<f64>,
}

/// Memory of the server, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Memory {
    pub(super) resident: Option<f64>,
    /// The most it ever was.
    pub(super) peak: Option<f64>,
}

// === impl Meter ===

impl Meter {
    pub(super) async fn read(self, target: &Target) -> Reading {
        let cpu = match self {
            Self::OwnProcess => own_threads(),
            Self::Metrics => {
                metric(target, "process_cpu_seconds_total").await.map(|server| Cpu { server, ..Cpu::default() })
            }
        };
        Reading { at: Instant::now(), cpu }
    }

    pub(super) async fn memory(self, target: &Target) -> Memory {
        match self {
            Self::OwnProcess => Memory { resident: own_memory("VmRSS:"), peak: own_memory("VmHWM:") },
            Self::Metrics => Memory { resident: metric(target, "process_resident_memory_bytes").await, peak: None },
        }
    }
}

impl Reading {
    /// What was used since `earlier`; nothing is known without both.
    pub(super) fn since(&self, earlier: &Self) -> Option<Usage> {
        let (now, then) = (self.cpu?, earlier.cpu?);
        let seconds = self.at.saturating_duration_since(earlier.at).as_secs_f64().max(1e-9);
        let server = now.server - then.server;
        let between = |now: Option<f64>, then: Option<f64>| Some(now? - then?);
        let share = |compute: f64| if server > 0.0 { (1.0 - compute / server).clamp(0.0, 1.0) } else { 0.0 };
        Some(Usage {
            server_cores: server / seconds,
            around: between(now.compute, then.compute).map(share),
            client_cores: between(now.client, then.client).map(|client| client / seconds),
        })
    }
}

/// The threads of this process by their names; nanoseconds on a processor are the first field of `schedstat`.
fn own_threads() -> Option<Cpu> {
    let (mut server, mut compute, mut client) = (0.0, 0.0, 0.0);
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let folder = task.ok()?.path();
        let read = |file: &str| std::fs::read_to_string(folder.join(file)).ok();
        // A thread may end while we look.
        let (Some(name), Some(times)) = (read("comm"), read("schedstat")) else { continue };
        let seconds = times.split_whitespace().next()?.parse::<f64>().ok()? / 1e9;
        match name.trim() {
            CLIENT_THREAD | CLOCK_THREAD => client += seconds,
            name => {
                server += seconds;
                if name.starts_with("compute") || name == "device" {
                    compute += seconds;
                }
            }
        }
    }
    Some(Cpu { server, compute: Some(compute), client: Some(client) })
}

/// A size of this process, as the system knows it.
pub(super) fn own_memory(field: &str) -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix(field))?.split_whitespace().next()?;
    kib.parse::<f64>().ok().map(|kib| kib * 1024.0)
}

/// One metric of a server, if it tells us.
async fn metric(target: &Target, name: &str) -> Option<f64> {
    let body = Connection::new(target).expect("/metrics", None).await.ok()?;
    sample(std::str::from_utf8(&body).ok()?, name)
}

fn sample(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.split(' ').next()?.parse().ok())
}

/// Processor time of the whole machine and of this process, in the kernel's ticks: what others used is the difference.
#[derive(Debug, Clone, Copy)]
pub(super) struct Everybody {
    total: f64,
    busy: f64,
    own: f64,
}

impl Everybody {
    pub(super) fn read() -> Option<Self> {
        let text = std::fs::read_to_string("/proc/stat").ok()?;
        let fields = text.lines().next()?.split_whitespace().skip(1).take(8);
        // user, nice, system, idle, iowait, irq, softirq, steal
        let ticks: Vec<f64> = fields.map(|field| field.parse().ok()).collect::<Option<_>>()?;
        let (total, idle) = (ticks.iter().sum::<f64>(), ticks.get(3)? + ticks.get(4)?);
        let own = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The name of the program is in parentheses and may hold anything.
        let (_, own) = own.rsplit_once(')')?;
        let mut own = own.split_whitespace().skip(11).map_while(|field| field.parse::<f64>().ok());
        let own = own.next()? + own.next()?;
        Some(Self { total, busy: total - idle, own })
    }

    /// The share of all processors that other programs used since `earlier`.
    pub(super) fn others_since(&self, earlier: &Self) -> Option<f64> {
        let total = self.total - earlier.total;
        let others = (self.busy - earlier.busy) - (self.own - earlier.own);
        (total > 0.0).then(|| (others / total).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn usage_is_what_came_on_top() {
        let start = Instant::now();
        let cpu = |server, compute, client| Some(Cpu { server, compute: Some(compute), client: Some(client) });
        let before = Reading { at: start, cpu: cpu(1.0, 0.5, 0.1) };
        let after = Reading { at: start + Duration::from_secs(2), cpu: cpu(4.0, 2.9, 0.3) };
        let usage = after.since(&before).unwrap();
        assert!((usage.server_cores - 1.5).abs() < 1e-9 && (usage.around.unwrap() - 0.2).abs() < 1e-9, "{usage:?}");
        assert!((usage.client_cores.unwrap() - 0.1).abs() < 1e-9, "{usage:?}");
        assert!(after.since(&Reading { cpu: None, ..before }).is_none());
        // Others: busy 600 of 1000 ticks, 500 of them ours.
        let (then, now) =
            (Everybody { total: 1000.0, busy: 100.0, own: 10.0 }, Everybody { total: 2000.0, busy: 700.0, own: 510.0 });
        assert_eq!(now.others_since(&then), Some(0.1));
    }

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let text = "# TYPE a gauge\na_more 1\na{model=\"m\"} 3\na 2.5 1700000000\n";
        assert_eq!((sample(text, "a"), sample(text, "b")), (Some(2.5), None));
    }
}
