//! The standard `process_*` metrics, read from `/proc` when somebody asks, and the count of lost log lines. Where there is no `/proc`, they are absent.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::observe::log::dropped_lines;

/// The unit of times in `/proc/*/stat`: the kernel's `USER_HZ`, 100 on every architecture we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads this process's numbers at every scrape.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for gauge in GAUGES {
            let Some(value) = (gauge.read)() else { continue };
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(gauge.name, gauge.help, None, metric.metric_type())?)?;
        }
        let (name, help) = ("embedserve_log_lines_dropped", "Log lines that nobody took in time.");
        let metric = ConstCounter::new(dropped_lines());
        metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        if let Some(seconds) = cpu_seconds() {
            let (name, help) = ("process_cpu_seconds", "User and system CPU time.");
            let metric = ConstCounter::new(seconds);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        Ok(())
    }
}

struct ProcessGauge {
    name: &'static str,
    help: &'static str,
    read: fn() -> Option<f64>,
}

const GAUGES: [ProcessGauge; 5] = [
    ProcessGauge {
        name: "process_resident_memory_bytes",
        help: "Resident memory.",
        read: || Some(resident_bytes()? as f64),
    },
    ProcessGauge { name: "process_threads", help: "Threads of the process.", read: || status("Threads:") },
    ProcessGauge { name: "process_open_fds", help: "Open file descriptors.", read: open_descriptors },
    ProcessGauge { name: "process_max_fds", help: "Limit of open file descriptors.", read: max_descriptors },
    ProcessGauge {
        name: "process_start_time_seconds",
        help: "Start of the process, in seconds since the Unix epoch.",
        read: start_time,
    },
];

/// Memory of this process that is in use now.
pub fn resident_bytes() -> Option<u64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of KiB")]
    status("VmRSS:").map(|kib| (kib as u64).saturating_mul(1024))
}

/// A number from `/proc/self/status`.
fn status(field: &str) -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    text.lines().find_map(|line| line.strip_prefix(field))?.split_whitespace().next()?.parse().ok()
}

/// A field of `/proc/self/stat`, counted from 1 as its manual does. The second field is the program's name in
/// parentheses and may hold anything, so counting starts behind the last one.
fn stat(field: usize) -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_whitespace().nth(field.checked_sub(3)?)?.parse().ok()
}

fn cpu_seconds() -> Option<f64> {
    Some((stat(14)? + stat(15)?) / TICKS_PER_SECOND)
}

fn start_time() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let booted: f64 = text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(booted + stat(22)? / TICKS_PER_SECOND)
}

fn open_descriptors() -> Option<f64> {
    // Listing the directory opens one more.
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

fn max_descriptors() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}
