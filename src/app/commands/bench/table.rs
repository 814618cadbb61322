//! The report for people: sections with what each means, aligned columns, one line of advice.

use std::time::Duration;

use serde_json::Value;

use crate::app::commands::bench::report::{Kind, Report};
use crate::app::commands::bench::samples::Percentiles;

/// Lines for a terminal of 120 columns.
pub(super) fn render(report: &Report, took: Duration) -> String {
    let mut lines = vec![title(report, took), String::new()];
    machine(report, &mut lines);
    alone(report, &mut lines);
    waiting(report, &mut lines);
    by_the_clock(report, &mut lines);
    lines.extend(report.warnings().iter().map(|warning| format!("Warning: {warning}.")));
    lines.push(format!("Advice: {}.", report.advice()));
    lines.join("\n")
}

fn title(report: &Report, took: Duration) -> String {
    let fact = |name: &str| report.facts.get(name).filter(|fact| !fact.is_null());
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut parts: Vec<String> = ["model", "url", "dtype", "kernels"].into_iter().filter_map(fact).map(text).collect();
    parts.extend(fact("threads").map(|threads| format!("{threads} threads")));
    parts.extend(fact("max_tokens").map(|tokens| format!("{tokens} tokens at most")));
    format!("embedserve {}: {}; {:.0} s", env!("CARGO_PKG_VERSION"), parts.join(", "), took.as_secs_f64())
}

fn machine(report: &Report, lines: &mut Vec<String>) {
    let machine = &report.machine;
    let (one, all) = (machine.peak_one / 1e9, machine.peak_all / 1e9);
    lines.push(format!(
        "This machine: {} processors, {}; f32 multiply-add peak {one:.0} GFLOP/s on one, {all:.0} on all",
        machine.cores, machine.isa
    ));
    let ratio = machine.two_over_one.map(|ratio| format!("two cores do {ratio:.2} times the work of one"));
    let others = report.figures.others.map(|others| format!("others used {:.1} % meanwhile", 100.0 * others));
    let quiet: Vec<String> = ratio.into_iter().chain(others).collect();
    if !quiet.is_empty() {
        lines.push(format!("  quiet: {}", quiet.join("; ")));
    }
    let mut process = Vec::new();
    let mib = |bytes: f64| format!("{:.0} MiB", bytes / f64::from(1 << 20));
    if let Some(start) = &report.start {
        process.push(format!("ready {:.0} ms after its start, files at hand", 1e3 * start.ready.as_secs_f64()));
        process.extend(start.resident.map(|bytes| format!("{} resident then", mib(bytes))));
    }
    let memory = report.figures.memory;
    process.extend(memory.resident.map(|bytes| format!("{} at the end", mib(bytes))));
    process.extend(memory.peak.map(|bytes| format!("{} at most", mib(bytes))));
    if !process.is_empty() {
        let whose = if report.start.is_some() { "Server and client in one process" } else { "Server" };
        lines.push(format!("{whose}: {}", process.join(", ")));
    }
    lines.push(String::new());
}

fn alone(report: &Report, lines: &mut Vec<String>) {
    lines.push("One request alone: one text, nobody else asks; from sending to the whole answer".to_owned());
    let mut table = Columns::new(&["tokens", "requests", "p50 ms", "p95 ms", "p99 ms", "% of f32 peak"]);
    for alone in &report.figures.alone {
        let latency = &alone.closed.latency;
        let mut row = vec![alone.length.to_string(), latency.n.to_string()];
        row.extend(percentiles(Some(latency)));
        row.push(number(report.percent_of_peak(&alone.closed), 0));
        table.push(row);
    }
    table.write(lines);
}

fn waiting(report: &Report, lines: &mut Vec<String>) {
    lines.push(
        "Clients that wait: each sends its next request when it has its answer. `around` is the part of the server's \
         processor time that is no forward pass"
            .to_owned(),
    );
    let mut table = Columns::new(&[
        "texts",
        "clients",
        "texts each",
        "requests/s",
        "texts/s",
        "tokens/s",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "% of f32 peak",
        "cpu %",
        "around %",
    ]);
    for waiting in &report.figures.waiting {
        let closed = &waiting.closed;
        let rate = |n: usize| number(Some(n as f64 / closed.seconds), 0);
        let kind = match waiting.kind {
            Kind::Mixed => "mixed".to_owned(),
            Kind::Tokens(length) => format!("{length} tokens"),
        };
        let mut row = vec![kind, closed.clients.to_string(), waiting.n_texts.to_string()];
        row.extend([number(Some(closed.requests_per_second()), 1), rate(closed.texts), rate(closed.tokens)]);
        row.extend(percentiles(Some(&closed.latency)));
        let usage = closed.usage.as_ref();
        row.push(number(report.percent_of_peak(closed), 0));
        row.push(number(report.cpu_percent(usage), 0));
        row.push(number(usage.and_then(|usage| usage.around).map(|around| 100.0 * around), 1));
        table.push(row);
    }
    table.write(lines);
}

fn by_the_clock(report: &Report, lines: &mut Vec<String>) {
    lines.push(
        "Requests by the clock: Poisson arrivals at a share of what waiting clients reach; latency from the moment a \
         request was due. Above 1 x it grows until the server refuses what would wait too long (--queue-timeout), or \
         until all connections wait and further requests are held back. The client takes its own part of the processors"
            .to_owned(),
    );
    let mut table = Columns::new(&[
        "tokens",
        "load",
        "offered/s",
        "sent",
        "held back",
        "goodput/s",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "429",
        "503",
        "refused p50 ms",
        "p99 ms",
        "failed",
        "cpu %",
    ]);
    for (length, factor, open) in &report.figures.by_the_clock {
        let mut row =
            vec![length.to_string(), format!("{factor} x"), number(Some(open.offered), 1), open.sent.to_string()];
        row.push(open.held_back.to_string());
        row.push(number(Some(open.goodput), 1));
        row.extend(percentiles(open.good.as_ref()));
        row.extend([open.refused_429.to_string(), open.refused_503.to_string()]);
        let refused = |of: fn(Percentiles) -> f64| number(open.refused.map(|refused| 1e3 * of(refused)), 1);
        row.extend([refused(|percentiles| percentiles.p50), refused(|percentiles| percentiles.p99)]);
        row.push((open.failed + open.unanswered).to_string());
        row.push(number(report.cpu_percent(open.usage.as_ref()), 0));
        table.push(row);
    }
    table.write(lines);
}

fn percentiles(latency: Option<&Percentiles>) -> [String; 3] {
    let ms = |seconds: Option<f64>| {
        let ms = seconds.map(|seconds| 1e3 * seconds);
        number(ms, if ms.is_some_and(|ms| ms < 10.0) { 2 } else { 1 })
    };
    [ms(latency.map(|it| it.p50)), ms(latency.map(|it| it.p95)), ms(latency.map(|it| it.p99))]
}

fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

/// A table whose columns are as wide as their widest cell.
struct Columns(Vec<Vec<String>>);

impl Columns {
    fn new(heads: &[&str]) -> Self {
        Self(vec![heads.iter().map(|head| (*head).to_owned()).collect()])
    }

    fn push(&mut self, row: Vec<String>) {
        self.0.push(row);
    }

    /// Indented, to the right, and with an empty line after it.
    fn write(self, lines: &mut Vec<String>) {
        let width = |column: usize| self.0.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.0.first().map_or(0, Vec::len)).map(width).collect();
        for row in &self.0 {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect();
            lines.push(format!("  {}", cells.join("  ")));
        }
        lines.push(String::new());
    }
}
