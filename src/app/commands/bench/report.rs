//! What was measured, as values and as JSON.

use std::time::Duration;

use serde_json::{Value, json};

use crate::app::commands::bench::closed::Closed;
use crate::app::commands::bench::machine::Machine;
use crate::app::commands::bench::meter::{Memory, Usage};
use crate::app::commands::bench::open::Open;
use crate::app::commands::bench::samples::Percentiles;

/// Everything.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) machine: Machine,
    /// Processors of the server; unknown where it runs elsewhere.
    pub(super) server_cores: Option<usize>,
    /// What was measured: model, format, kernels, or the URL.
    pub(super) facts: Value,
    /// Of a server of our own.
    pub(super) start: Option<Start>,
    pub(super) figures: Figures,
}

#[derive(Debug)]
pub(super) struct Start {
    /// From nothing to the first moment at which it would answer, with the files on this machine.
    pub(super) ready: Duration,
    /// Bytes of memory at that moment.
    pub(super) resident: Option<f64>,
}

#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) alone: Vec<Alone>,
    pub(super) waiting: Vec<Waiting>,
    /// Tokens of each text, load over what the server carries, and what came of it.
    pub(super) by_the_clock: Vec<(usize, f64, Open)>,
    pub(super) memory: Memory,
    /// Share of the processors that other programs used meanwhile.
    pub(super) others: Option<f64>,
}

/// One client with one text of `length` tokens at a time.
#[derive(Debug)]
pub(super) struct Alone {
    pub(super) length: usize,
    pub(super) closed: Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Mixed,
    Tokens(usize),
}

/// Clients that wait for their answers.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) kind: Kind,
    pub(super) n_texts: usize,
    pub(super) closed: Closed,
}

/// Above this share, other programs disturb what is measured.
const FOREIGN_LOAD: f64 = 0.02;

// === impl Report ===

impl Report {
    /// Percent of the multiply-add peak that `closed` reached; known of a server of our own.
    pub(super) fn percent_of_peak(&self, closed: &Closed) -> Option<f64> {
        closed.flops.map(|flops| 100.0 * flops / closed.seconds / self.machine.peak_all)
    }

    /// The share of its processors that the server used, in percent.
    pub(super) fn cpu_percent(&self, usage: Option<&Usage>) -> Option<f64> {
        Some(100.0 * usage?.server_cores / self.server_cores? as f64)
    }

    /// What a reader has to know before the figures are believed.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(ratio) = self.machine.two_over_one.filter(|_| !self.machine.is_quiet()) {
            warnings.push(format!(
                "two cores did only {ratio:.2} times the work of one: the machine was busy, or its cores share their \
                 units; the percentages of the peak are too high or too low"
            ));
        }
        if let Some(others) = self.figures.others.filter(|others| *others > FOREIGN_LOAD) {
            warnings.push(format!("other programs used {:.0} % of the processors meanwhile", 100.0 * others));
        }
        for (length, factor, open) in &self.figures.by_the_clock {
            if open.failed > 0 {
                let reason = open.first_failure.as_deref().unwrap_or_default();
                let failed = open.failed;
                warnings.push(format!("{failed} requests of {length} tokens failed at {factor} of the load: {reason}"));
            }
        }
        warnings
    }

    /// One sentence to act on.
    pub(super) fn advice(&self) -> String {
        if !self.machine.is_quiet() || self.figures.others.is_some_and(|others| others > FOREIGN_LOAD) {
            return "something else was running: stop it and measure again before you compare figures".to_owned();
        }
        let mut advice = Vec::new();
        if let Some((length, _, open)) = self.figures.by_the_clock.iter().find(|(_, factor, _)| is(*factor, 0.8)) {
            let (rate, p99) = (open.offered, open.good.map_or(f64::NAN, |good| 1e3 * good.p99));
            advice.push(format!("plan for {rate:.0} requests/s of {length} tokens on this machine (p99 {p99:.0} ms)"));
        }
        let mixed = |clients, n_texts| {
            let mut waiting = self.figures.waiting.iter();
            let found = waiting.find(|waiting| {
                waiting.kind == Kind::Mixed && waiting.closed.clients == clients && waiting.n_texts == n_texts
            });
            found.map(|waiting| waiting.closed.tokens as f64 / waiting.closed.seconds)
        };
        let large = self.figures.waiting.iter().find(|waiting| waiting.n_texts > 1);
        let large = large.and_then(|waiting| Some((waiting, mixed(waiting.closed.clients, waiting.n_texts)?)));
        if let (Some(one), Some((waiting, rate))) = (mixed(1, 1), large) {
            let (gain, n_texts) = (rate / one, waiting.n_texts);
            advice.push(if gain >= 1.1 {
                format!(
                    "to embed many texts, send {n_texts} in a request: {gain:.1} times the rate of one after the other"
                )
            } else {
                "texts may be sent one by one: larger requests are no faster".to_owned()
            });
        }
        advice.join("; ")
    }

    pub(super) fn json(&self, took: Duration) -> Value {
        let figures = &self.figures;
        let alone = figures.alone.iter().map(|alone| {
            let mut value = self.closed(&alone.closed);
            value["tokens_each"] = json!(alone.length);
            value
        });
        let waiting = figures.waiting.iter().map(|waiting| {
            let mut value = self.closed(&waiting.closed);
            value["texts"] = match waiting.kind {
                Kind::Mixed => json!("mixed"),
                Kind::Tokens(length) => json!(format!("{length} tokens")),
            };
            value["texts_per_request"] = json!(waiting.n_texts);
            value
        });
        let by_the_clock = figures.by_the_clock.iter().map(|(length, factor, open)| {
            json!({
                "tokens_each": length,
                "load": factor,
                "offered_per_second": rounded(open.offered),
                "goodput_per_second": rounded(open.goodput),
                "sent": open.sent,
                "held_back": open.held_back,
                "latency": open.good.as_ref().map(latency),
                "refused_429": open.refused_429,
                "refused_503": open.refused_503,
                "refused_latency": open.refused.as_ref().map(latency),
                "failed": open.failed,
                "first_failure": open.first_failure,
                "unanswered": open.unanswered,
                "client_lag_p99_ms": rounded(1e3 * open.client_lag),
                "server": Self::usage(open.usage.as_ref()),
            })
        });
        let machine = &self.machine;
        json!({
            "embedserve": env!("CARGO_PKG_VERSION"),
            "measured": self.facts,
            "seconds": rounded(took.as_secs_f64()),
            "machine": {
                "cores": machine.cores,
                "best_kernels": machine.isa.name(),
                "f32_peak_gflops_one_core": rounded(machine.peak_one / 1e9),
                "f32_peak_gflops": rounded(machine.peak_all / 1e9),
                "two_cores_over_one": machine.two_over_one.map(rounded),
                "quiet": machine.is_quiet(),
                "other_programs_percent": figures.others.map(|others| rounded(100.0 * others)),
            },
            "process": {
                "start_to_ready_ms": self.start.as_ref().map(|start| rounded(1e3 * start.ready.as_secs_f64())),
                "resident_bytes_when_ready": self.start.as_ref().and_then(|start| start.resident),
                "resident_bytes": figures.memory.resident,
                "peak_resident_bytes": figures.memory.peak,
            },
            "alone": alone.collect::<Vec<_>>(),
            "waiting_clients": waiting.collect::<Vec<_>>(),
            "by_the_clock": by_the_clock.collect::<Vec<_>>(),
            "warnings": self.warnings(),
            "advice": self.advice(),
        })
    }

    fn closed(&self, closed: &Closed) -> Value {
        json!({
            "clients": closed.clients,
            "requests": closed.latency.n,
            "seconds": rounded(closed.seconds),
            "requests_per_second": rounded(closed.requests_per_second()),
            "texts_per_second": rounded(closed.texts as f64 / closed.seconds),
            "tokens_per_second": rounded(closed.tokens as f64 / closed.seconds),
            "percent_of_f32_peak": self.percent_of_peak(closed).map(rounded),
            "latency": latency(&closed.latency),
            "server": Self::usage(closed.usage.as_ref()),
        })
    }

    fn usage(usage: Option<&Usage>) -> Value {
        json!({
            "cores_used": usage.map(|usage| rounded(usage.server_cores)),
            "percent_not_forward_pass": usage.and_then(|usage| usage.around).map(|around| rounded(100.0 * around)),
            "client_cores_used": usage.and_then(|usage| usage.client_cores).map(rounded),
        })
    }
}

fn latency(latency: &Percentiles) -> Value {
    let ms = |seconds: f64| rounded(1e3 * seconds);
    json!({ "n": latency.n, "p50_ms": ms(latency.p50), "p95_ms": ms(latency.p95), "p99_ms": ms(latency.p99),
        "max_ms": ms(latency.max) })
}

/// Three decimals: more would be noise.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

fn is(factor: f64, wanted: f64) -> bool {
    (factor - wanted).abs() < 1e-9
}
