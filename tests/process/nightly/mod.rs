//! What takes longer than a change should wait, or needs tools that not every machine has: `cargo nightly`.
#![expect(clippy::print_stderr, reason = "figures for whoever runs it")]

mod machines;
mod traced;

use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::downloads::{assert_complete, assert_no_partial_file, pull};
use crate::server::{Server, run};
use crate::support::fake_hub::FakeHub;
use crate::support::random::Random;
use crate::support::sources::repository;
use crate::support::tiny_model::TinyModel;

const BODY: &str = r#"{"model":"tiny","input":"hello world"}"#;

/// The 99th percentile of so many requests, one after the other.
fn slowest(server: &Server, n: usize) -> Duration {
    let mut latencies: Vec<Duration> = std::iter::repeat_with(|| {
        let begin = Instant::now();
        assert_eq!(server.embed(BODY).0, 200);
        begin.elapsed()
    })
    .take(n)
    .collect();
    latencies.sort_unstable();
    latencies[n * 99 / 100]
}

// W-04: a thousand heads that never end, of the 1,024 connections that there are; who is closed comes again.
#[test]
fn a_thousand_slow_heads_hold_up_nobody() {
    let folder = TinyModel::default().write();
    let server = Server::start(folder.path(), &[]);
    server.wait_until_ready();
    let alone = slowest(&server, 500);
    let (end, address) = (Instant::now() + Duration::from_secs(30), server.address);
    let crowded = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut sockets: Vec<TcpStream> = Vec::new();
            while Instant::now() < end {
                // A byte for each every second; the server closes what takes longer than ten.
                sockets.retain_mut(|socket| socket.write_all(b"x").is_ok());
                while sockets.len() < 1000
                    && let Ok(mut socket) = TcpStream::connect(address)
                {
                    if socket.write_all(b"GET / HTTP/1.1\r\nx: ").is_ok() {
                        sockets.push(socket);
                    }
                }
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        std::thread::sleep(Duration::from_secs(2));
        assert!(server.metric("embedserve_http_connections{}") > 900.0, "{}", server.get("/metrics").1);
        let mut all = Vec::new();
        while Instant::now() < end {
            all.push(slowest(&server, 500));
        }
        all
    });
    eprintln!("p99 alone {alone:?}, beside a thousand slow heads {crowded:?}");
    let best = crowded.iter().min().unwrap();
    assert!(*best < 2 * alone + Duration::from_millis(2), "{alone:?} alone, {crowded:?} beside them");
    assert!(server.metric("embedserve_http_connections_refused_total{reason=\"header_timeout\"}") > 500.0);
}

// D-01: the fault points are places that somebody thought of; this is any time at all.
#[test]
fn a_hundred_kills_at_random_moments_leave_the_cache_usable() {
    let (mut random, mut killed) = (Random::new(1), 0);
    let mut whole = Duration::MAX;
    for round in 0..103 {
        let hub = FakeHub::start(repository());
        let cache = tempfile::tempdir().unwrap();
        let from_hub = || {
            let mut command = pull(cache.path(), "o/n", &[]);
            command.env("HF_ENDPOINT", hub.endpoint()).stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let begin = Instant::now();
        let mut child = from_hub().spawn().unwrap();
        if round < 3 {
            // How long it takes when nobody kills it.
            assert!(child.wait().unwrap().success());
            whole = whole.min(begin.elapsed());
            continue;
        }
        std::thread::sleep(whole.mul_f64(random.below(1000) as f64 / 1000.0));
        let _ = child.kill();
        killed += usize::from(child.wait().unwrap().code().is_none());
        assert_no_partial_file(cache.path());
        let recovered = run(from_hub().stdout(Stdio::piped()).stderr(Stdio::piped()));
        assert_eq!(recovered.code, Some(0), "{}", recovered.stderr);
        assert_complete(&recovered.stdout);
    }
    eprintln!("{killed} of 100 pulls were killed before their end");
    assert!(killed > 30, "only {killed} were killed: the others had ended before");
}

/// Whether a tool is installed.
fn needs(tool: &str, package: &str) {
    let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    assert!(found, "{tool} is not installed: apt-get install {package}");
}
