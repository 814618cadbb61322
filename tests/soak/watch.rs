//! The server as the operating system sees it, from its start to its rest.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::server::Server;

/// One look.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Seconds since the start.
    pub at: f64,
    pub resident: u64,
    pub descriptors: usize,
    pub threads: usize,
    pub ready: bool,
}

/// Looks a few hundred times in the time of the traffic: what is resident at one moment depends on what is being answered.
pub struct Watch<'s> {
    server: &'s Server,
    start: Instant,
    time: Duration,
    /// Resident memory before any traffic.
    pub before: u64,
    samples: Vec<Sample>,
}

/// Samples of a run.
const SAMPLES: u32 = 600;
/// Of a leak: connections that pile up between two samples.
const LEAKED: usize = 4;

impl<'s> Watch<'s> {
    pub fn new(server: &'s Server, time: Duration) -> Self {
        Self { server, start: Instant::now(), time, before: server.resident_bytes(), samples: Vec::new() }
    }

    /// Until the time of the traffic is over; with a leak, holds connections that have asked for something.
    pub fn run(&mut self, leak: bool) {
        let mut leaked = Vec::new();
        while self.start.elapsed() < self.time {
            std::thread::sleep(self.time / SAMPLES);
            let sample = self.look();
            self.samples.push(sample);
            if leak {
                leaked.extend((0..LEAKED).filter_map(|_| self.leak()));
            }
            if self.samples.len().is_multiple_of(SAMPLES as usize / 20) {
                let Sample { at, resident, descriptors, .. } = sample;
                eprintln!("soak: {at:.0} s, {} KiB resident, {descriptors} descriptors", resident >> 10);
            }
        }
    }

    /// Without traffic; what is resident at the end.
    pub fn rest(&self, time: Duration) -> u64 {
        eprintln!("soak: rest for {:.0} s", time.as_secs_f64());
        std::thread::sleep(time);
        self.server.resident_bytes()
    }

    pub fn into_samples(self) -> Samples {
        Samples { before: self.before, all: self.samples, time: self.time.as_secs_f64() }
    }

    fn look(&self) -> Sample {
        let process = format!("/proc/{}", self.server.pid());
        let count = |folder: &str| std::fs::read_dir(format!("{process}/{folder}")).unwrap().count();
        Sample {
            at: self.start.elapsed().as_secs_f64(),
            resident: self.server.resident_bytes(),
            descriptors: count("fd"),
            threads: count("task"),
            ready: self.server.get("/readyz").0 == 200,
        }
    }

    fn leak(&self) -> Option<TcpStream> {
        use std::io::{Read, Write};
        let mut stream = TcpStream::connect(self.server.address).ok()?;
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").ok()?;
        // Whatever comes: the connection is what stays.
        (stream.read(&mut [0; 1024]).ok()? > 0).then_some(stream)
    }
}

/// What was seen.
pub struct Samples {
    pub before: u64,
    all: Vec<Sample>,
    time: f64,
}

/// The first and the last quarter of the time after the warm-up, which is a fifth.
pub const BEGIN: (f64, f64) = (0.2, 0.4);
pub const END: (f64, f64) = (0.8, 1.01);

impl Samples {
    /// The median of something over a part of the time, given as shares of it.
    pub fn median(&self, (from, to): (f64, f64), value: impl Fn(&Sample) -> u64) -> u64 {
        let within = self.all.iter().filter(|sample| (from * self.time..to * self.time).contains(&sample.at));
        let mut values: Vec<u64> = within.map(value).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or_default()
    }

    pub fn most(&self, value: impl Fn(&Sample) -> u64) -> u64 {
        self.all.iter().map(value).max().unwrap_or_default()
    }

    /// Times that the server said it was not ready.
    pub fn not_ready(&self) -> usize {
        self.all.iter().filter(|sample| !sample.ready).count()
    }

    /// Resident memory after the warm-up by least squares, in bytes per hour.
    pub fn slope(&self) -> f64 {
        let points: Vec<(f64, f64)> = self
            .all
            .iter()
            .filter(|sample| sample.at >= BEGIN.0 * self.time)
            .map(|sample| (sample.at, sample.resident as f64))
            .collect();
        let n = points.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
        let (at, resident) = (mean(|point| point.0), mean(|point| point.1));
        let covariance: f64 = points.iter().map(|point| (point.0 - at) * (point.1 - resident)).sum();
        let variance: f64 = points.iter().map(|point| (point.0 - at).powi(2)).sum();
        3600.0 * covariance / variance
    }
}
