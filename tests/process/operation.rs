//! Servers as operators run them: replaced under load, started over and over, on one thread, on any instruction set,
//! within the memory they announced.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::server::{Server, embedserve, exchange, wait_for};
use crate::support::tiny_model::TinyModel;

const BODY: &str = r#"{"model":"tiny","input":["x","y z"]}"#;

/// What a proxy does: forwards to a server that said it was ready when it was last asked.
fn through_a_proxy(servers: &Mutex<Vec<SocketAddr>>) -> (u16, String) {
    let request = format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{BODY}",
        BODY.len()
    );
    let is_ready = |address: &SocketAddr| {
        exchange(*address, "GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").0 == 200
    };
    // A list from before a server was added may hold only the one that has just begun to drain: look again.
    let ready = wait_for("a server that is ready", || {
        let known = servers.lock().unwrap().clone();
        known.into_iter().find(is_ready)
    });
    exchange(ready, &request)
}

// L-11
#[test]
fn servers_are_replaced_under_load_without_a_failed_request() {
    let folder = TinyModel::default().write();
    let start = || {
        let server = Server::start(folder.path(), &["--drain-delay", "1s"]);
        server.wait_until_ready();
        server
    };
    let mut current = start();
    let known = Mutex::new(vec![current.address]);
    let (answered, enough) = (AtomicUsize::new(0), AtomicBool::new(false));
    let expected = through_a_proxy(&known);
    let vectors = |body: &str| serde_json::from_str::<Value>(body).unwrap()["data"].clone();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    let (status, body) = through_a_proxy(&known);
                    assert_eq!(status, 200, "{body}");
                    assert_eq!(vectors(&body), vectors(&expected.1));
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..3 {
            let before = answered.load(Ordering::Relaxed);
            wait_for("requests", || (answered.load(Ordering::Relaxed) > before + 50).then_some(()));
            let next = start();
            known.lock().unwrap().push(next.address);
            let mut old = std::mem::replace(&mut current, next);
            old.signal("TERM");
            let code = old.wait().code();
            known.lock().unwrap().remove(0);
            assert_eq!(code, Some(0), "{}", old.log());
        }
        enough.store(true, Ordering::Relaxed);
    });
    assert!(answered.into_inner() > 150);
}

/// The files below a folder, and their sizes.
fn files(folder: &Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        }
        found.push((entry.path().display().to_string(), entry.metadata().unwrap().len()));
    }
    found.sort();
    found
}

// L-09
#[test]
fn starts_and_stops_leave_nothing_behind() {
    let (folder, scratch) = (TinyModel::default().write(), tempfile::tempdir().unwrap());
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let before = files(folder.path());
    let choice = format!("dir:{}", folder.path().display());
    for cycle in 0..10 {
        let mut command = embedserve(&["--model", &choice, "--served-model-name", "tiny", "--drain-delay", "0s"]);
        command.env("TMPDIR", scratch.path()).args(["--port", &port]);
        let mut server = Server::spawn(command);
        server.wait_until_ready();
        assert_eq!(server.embed(BODY).0, 200);
        server.signal("TERM");
        // The same port is free again at once.
        assert_eq!(server.wait().code(), Some(0), "cycle {cycle}: {}", server.log());
    }
    assert_eq!(files(folder.path()), before);
    assert_eq!(files(scratch.path()), []);
}

// L-10: one thread for three models, with more clients than that: turns, and no deadlock.
#[test]
fn three_models_share_one_thread() {
    let threads = three_models(&["--threads", "1"], |command| command);
    assert!((threads - 1.0).abs() < 1e-9, "{threads}");
}

/// Three models under load, in a process that was started in this way; its compute threads.
pub fn three_models(arguments: &[&str], started: impl FnOnce(Command) -> Command) -> f64 {
    let folders: Vec<_> = (1..=3).map(|seed| TinyModel { seed, ..TinyModel::default() }.write()).collect();
    let mut arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    for (name, folder) in ["a", "b", "c"].into_iter().zip(&folders) {
        let choice = format!("dir:{}", folder.path().display());
        let id = folder.path().file_name().unwrap().to_str().unwrap();
        arguments.extend(["--model".to_owned(), choice, "--served-model-name".to_owned(), format!("{name}={id}")]);
    }
    let server = Server::spawn(started(embedserve(&arguments.iter().map(String::as_str).collect::<Vec<_>>())));
    server.wait_until_ready();
    let text = "x ".repeat(60);
    std::thread::scope(|scope| {
        for client in 0..9 {
            let (server, text) = (&server, &text);
            scope.spawn(move || {
                let model = ["a", "b", "c"][client % 3];
                for _ in 0..10 {
                    let body = json!({"model": model, "input": vec![text.as_str(); 16]}).to_string();
                    let (status, answer) = server.embed(&body);
                    assert_eq!(status, 200, "{answer}");
                }
            });
        }
    });
    server.metric("embedserve_threads{pool=\"compute\"}")
}

// N-09: the slowest kernels are for every processor, and the vectors are the same up to rounding.
#[test]
fn the_portable_kernels_give_the_same_vectors() {
    let folder = TinyModel::default().write();
    let vectors = |arguments: &[&str]| {
        let server = Server::start(folder.path(), arguments);
        server.wait_until_ready();
        let (status, body) = server.embed(BODY);
        assert_eq!(status, 200, "{body}");
        let data = serde_json::from_str::<Value>(&body).unwrap()["data"].clone();
        let values = data.as_array().unwrap().iter().flat_map(|item| item["embedding"].as_array().unwrap().clone());
        values.map(|value| value.as_f64().unwrap()).collect::<Vec<_>>()
    };
    let (best, portable) = (vectors(&[]), vectors(&["--kernel-isa", "portable"]));
    assert_eq!((best.len(), portable.len()), (64, 64));
    let worst = best.iter().zip(&portable).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-6, "{worst:e}");
}

// M-03
#[test]
fn full_batches_and_queues_stay_within_the_announced_memory() {
    let model = TinyModel { hidden: 256, layers: 4, positions: 512, ..TinyModel::default() };
    let folder = model.write();
    let mut server = Server::start(folder.path(), &["--max-batch-tokens", "16384", "--queue-timeout", "1m"]);
    server.wait_until_ready();
    let bound = announced_mebibytes(&mut server);
    full_batches(&server);
    let peak = server.peak_bytes() >> 20;
    assert!(peak <= bound, "{peak} MiB of the {bound} MiB that were announced");
}

/// The memory that the server said it would need at most.
pub fn announced_mebibytes(server: &mut Server) -> u64 {
    let line = server.wait_for_log("bound_mib=");
    line.split("bound_mib=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

/// More of the longest texts than one batch takes, several times at once.
pub fn full_batches(server: &Server) {
    let text = "x ".repeat(510);
    let body = json!({"model": "tiny", "input": vec![text.as_str(); 40], "encoding_format": "base64"}).to_string();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let (status, answer) = server.embed(&body);
                assert_eq!(status, 200, "{answer}");
            });
        }
    });
}
