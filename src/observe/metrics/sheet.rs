//! The shapes of our metrics: label sets, buckets, and how a row of the table is registered.

use std::borrow::Cow;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Label names and values, in the order of the table. Values come from closed sets only, so that no client can make
/// the number of series grow.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Labels(Vec<(&'static str, Cow<'static, str>)>);

pub(super) type Counters = Family<Labels, Counter>;
pub(super) type Gauges = Family<Labels, FloatGauge>;
pub(super) type FloatGauge = Gauge<f64, AtomicU64>;
pub(super) type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// A value for [`labels`].
pub(super) type Value = Cow<'static, str>;

/// One label set.
pub(super) fn labels<const N: usize>(pairs: [(&'static str, Value); N]) -> Labels {
    Labels(pairs.into())
}

/// Makes a series exist before anything is counted on it.
pub(super) fn zero<M, C: MetricConstructor<M>>(family: &Family<Labels, M, C>, labels: &Labels) {
    drop(family.get_or_create(labels));
}

/// What is measured, and with it the buckets of its histograms.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scale {
    /// Whole requests, in seconds.
    Requests,
    /// Stages of a request, in seconds.
    Stages,
    Tokens,
    Rows,
    Bytes,
}

/// The registry being filled.
#[derive(Debug, Default)]
pub(super) struct Sheet(pub(super) Registry);

// === impl Labels ===

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.as_slice().encode(encoder)
    }
}

// === impl Scale ===

impl Scale {
    fn histogram(self) -> fn() -> Histogram {
        match self {
            Self::Requests => || Histogram::new(REQUEST_SECONDS),
            Self::Stages => || Histogram::new(STAGE_SECONDS),
            Self::Tokens => || Histogram::new([1.0].into_iter().chain(powers(8.0, 2.0, 32_768.0))),
            Self::Rows => || Histogram::new(powers(1.0, 2.0, 2048.0)),
            Self::Bytes => || Histogram::new(powers(256.0, 4.0, 67_108_864.0)),
        }
    }
}

// === impl Sheet ===

impl Sheet {
    /// A counter; the exposition appends `_total` to its name.
    pub(super) fn counters(&mut self, name: &'static str, help: &'static str) -> Counters {
        let family = Counters::default();
        self.0.register(name, help, family.clone());
        family
    }

    pub(super) fn gauges(&mut self, name: &'static str, help: &'static str) -> Gauges {
        let family = Gauges::default();
        self.0.register(name, help, family.clone());
        family
    }

    pub(super) fn histograms(&mut self, scale: Scale, name: &'static str, help: &'static str) -> Histograms {
        let family = Histograms::new_with_constructor(scale.histogram());
        self.0.register(name, help, family.clone());
        family
    }
}

fn powers(first: f64, factor: f64, last: f64) -> impl Iterator<Item = f64> {
    std::iter::successors(Some(first), move |bound| Some(bound * factor)).take_while(move |bound| *bound <= last)
}

/// Up to the usual `--request-timeout`.
const REQUEST_SECONDS: [f64; 18] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
/// Beyond the usual `--queue-timeout`.
const STAGE_SECONDS: [f64; 18] = [
    0.000_05, 0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0,
];
