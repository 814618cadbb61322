//! Start and stop: the socket before the model, SIGTERM with work in flight, impatient operators, closed logs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::server::{PATIENCE, Server, embedserve, exchange, run, wait_for};
use crate::support::fake_hub::{FakeHub, Script};
use crate::support::tiny_model::TinyModel;

/// A hub that serves a tiny model as `o/n`, and a server that is to serve it.
fn server_from_hub(cache: &Path, arguments: &[&str]) -> (FakeHub, impl FnOnce(&FakeHub) -> Server) {
    let folder = TinyModel::default().write();
    let mut files = BTreeMap::new();
    for name in [
        "config.json",
        "tokenizer.json",
        "modules.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
        "model.safetensors",
    ] {
        files.insert(name.to_owned(), std::fs::read(folder.path().join(name)).unwrap());
    }
    let fixed = ["--model", "o/n", "--served-model-name", "tiny", "--cache-dir", cache.to_str().unwrap()];
    let mut command = embedserve(&[&fixed[..], arguments].concat());
    let start = move |hub: &FakeHub| {
        command.env("HF_ENDPOINT", hub.endpoint());
        Server::spawn(command)
    };
    (FakeHub::start(files), start)
}

// L-06
#[test]
fn the_socket_answers_while_a_model_loads() {
    let cache = tempfile::tempdir().unwrap();
    let (hub, start) = server_from_hub(cache.path(), &["--download-stall-timeout", "2s"]);
    hub.script("GET model.safetensors", [Script::Stall]);
    let server = start(&hub);
    assert_eq!(server.get("/livez").0, 200);
    let (status, body) = server.get("/readyz");
    assert!(status == 503 && body.contains("o/n"), "{status} {body}");
    let (status, body) = server.embed(r#"{"model":"tiny","input":"x"}"#);
    assert!(status == 503 && body.contains("model_loading"), "{status} {body}");
    let (status, _) = server.embed(r#"{"model":"unknown","input":"x"}"#);
    assert_eq!(status, 404, "an unknown model is unknown from the start");
    // The stalled transfer is given up and repeated.
    server.wait_until_ready();
    assert_eq!(server.embed(r#"{"model":"tiny","input":"x"}"#).0, 200);
}

// L-03
#[test]
fn sigterm_while_a_model_downloads_ends_the_process() {
    let cache = tempfile::tempdir().unwrap();
    // No balancer sends to what was never ready: the delay is not waited for.
    let (hub, start) = server_from_hub(cache.path(), &["--drain-delay", "50s"]);
    hub.always("GET model.safetensors", Script::Stall);
    let mut server = start(&hub);
    wait_for("the download", || (!hub.asked_for("GET model.safetensors").is_empty()).then_some(()));
    let begin = Instant::now();
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(begin.elapsed() < Duration::from_secs(10), "took {:?}", begin.elapsed());
}

/// A client that asks for as many vectors as it may.
fn ask_for_much(address: SocketAddr) -> JoinHandle<(u16, String)> {
    let texts = vec!["x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x"; 2048];
    let body = format!(r#"{{"model":"tiny","input":{texts:?}}}"#);
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length:";
    std::thread::spawn(move || exchange(address, &format!("{head} {}\r\n\r\n{body}", body.len())))
}

// L-01
#[test]
fn sigterm_finishes_what_was_accepted_and_exits_0() {
    let folder = TinyModel { hidden: 64, layers: 4, ..TinyModel::default() }.write();
    let mut server = Server::start(folder.path(), &["--max-batch-tokens", "64", "--drain-delay", "2s"]);
    server.wait_until_ready();
    let mut idle = TcpStream::connect(server.address).unwrap();
    let address = server.address;
    let clients = [(); 2].map(|()| ask_for_much(address));
    wait_for("the work of both in the queue", || (server.metric("embedserve_queue_rows") > 2048.0).then_some(()));
    server.signal("TERM");
    wait_for("not ready", || (server.get("/readyz").0 == 503).then_some(()));
    for client in clients {
        let (status, body) = client.join().unwrap();
        assert_eq!(status, 200, "{body}\n{}", server.log());
        assert_eq!(body.matches(r#""object":"embedding""#).count(), 2048);
    }
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(TcpStream::connect(address).is_err(), "the socket is closed");
    let mut rest = Vec::new();
    assert_eq!(idle.read_to_end(&mut rest).unwrap_or(0), 0, "the idle connection was closed without an answer");
}

// L-02
#[test]
fn work_longer_than_the_grace_period_is_cut_off() {
    let folder = TinyModel { hidden: 128, layers: 8, ..TinyModel::default() }.write();
    let mut server = Server::start(folder.path(), &["--drain-delay", "0s", "--drain-grace", "200ms"]);
    server.wait_until_ready();
    // A body that never comes keeps its request in flight.
    let mut stuck = TcpStream::connect(server.address).unwrap();
    stuck.write_all(b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{").unwrap();
    // The request that asks is in flight too.
    wait_for("the request in flight", || (server.metric("embedserve_http_requests_in_flight") > 1.0).then_some(()));
    let start = Instant::now();
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(1), "work was lost, and the exit code says so");
    assert!(start.elapsed() < Duration::from_secs(10), "took {:?}", start.elapsed());
    assert!(server.log().contains("cut=1"), "{}", server.log());
}

// L-03
#[test]
fn a_second_signal_ends_the_process_at_once() {
    let folder = TinyModel::default().write();
    let mut server = Server::start(folder.path(), &["--drain-delay", "50s"]);
    server.wait_until_ready();
    server.signal("TERM");
    server.wait_for_log("draining");
    let start = Instant::now();
    // As someone presses Ctrl-C who does not want to wait: the first one may still pass for an echo.
    wait_for("the end", || {
        server.signal("INT");
        server.log().contains("stopped at once by a second signal").then_some(())
    });
    assert_eq!(server.wait().code(), Some(1));
    assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
}

// L-03: a group that is told to end and a parent that passes the signal on reach the server at the same time.
#[test]
fn an_echo_of_the_first_signal_cuts_nothing_off() {
    let folder = TinyModel { hidden: 64, layers: 4, ..TinyModel::default() }.write();
    let mut server = Server::start(folder.path(), &["--max-batch-tokens", "64", "--drain-delay", "0s"]);
    server.wait_until_ready();
    let client = ask_for_much(server.address);
    wait_for("work in the queue", || (server.metric("embedserve_queue_rows") > 0.0).then_some(()));
    // One program sends both: two would have to be started within the time that is one wish.
    let both = format!("kill -INT {0}; kill -TERM {0}", server.pid());
    assert!(Command::new("sh").args(["-c", &both]).status().unwrap().success());
    server.wait_for_log("draining already");
    let (status, body) = client.join().unwrap();
    assert_eq!(status, 200, "{body}\n{}", server.log());
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}

/// A ready server that logs into the pipe.
fn logging_to(folder: &Path, pipe: std::io::PipeWriter) -> (std::process::Child, std::net::SocketAddr) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let choice = format!("dir:{}", folder.display());
    let mut command = embedserve(&["--model", &choice, "--served-model-name", "tiny", "--port", &port.to_string()]);
    command.env("EMBEDSERVE_DRAIN_DELAY", "100ms");
    let mut child = command.stderr(Stdio::from(OwnedFd::from(pipe))).stdout(Stdio::null()).spawn().unwrap();
    let address = ([127, 0, 0, 1], port).into();
    let deadline = Instant::now() + PATIENCE;
    while exchange(address, &get("/readyz")).0 != 200 {
        assert!(child.try_wait().unwrap().is_none(), "the server died with its log");
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(10));
    }
    (child, address)
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
}

// L-12
#[test]
fn a_closed_log_does_not_stop_the_server() {
    let folder = TinyModel::default().write();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let (mut child, _) = logging_to(folder.path(), writer);
    child.kill().unwrap();
    child.wait().unwrap();
}

// L-12
#[test]
fn a_log_that_nobody_reads_does_not_stop_the_server() {
    let folder = TinyModel::default().write();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (mut child, address) = logging_to(folder.path(), writer);
    for _ in 0..1000 {
        assert_eq!(exchange(address, &get("/nowhere")).0, 404);
    }
    assert_eq!(exchange(address, &get("/livez")).0, 200);
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    let code = wait_for("the end of the process", || child.try_wait().unwrap());
    let mut log = Vec::new();
    reader.read_to_end(&mut log).unwrap();
    assert!(log.len() >= 60_000, "the pipe was never full: {} bytes", log.len());
    assert_eq!(code.code(), Some(0));
}

// O-05
#[test]
fn a_log_in_json_is_json_from_its_first_line_to_its_last() {
    let folder = TinyModel::default().write();
    for (format, is_hinted) in [("text", true), ("json", false)] {
        let mut server = Server::start(folder.path(), &["--log-format", format, "--log-level", "INFO"]);
        server.wait_until_ready();
        server.signal("TERM");
        server.wait_for_log("stopped: every accepted request was answered");
        assert_eq!(server.log().contains("Try it:"), is_hinted, "{format}");
        let log = server.log();
        let mut events = log.lines().filter(|line| serde_json::from_str::<serde_json::Value>(line).is_err());
        assert!(is_hinted || events.next().is_none(), "{log}");
    }
}

/// The raw values of one tensor of a model folder.
fn tensor(folder: &Path, name: &str) -> Vec<u8> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor(name).unwrap().data().to_vec()
}

/// Overwrites every copy of `wanted` in the memory of a process; returns how many there were.
fn corrupt(pid: u32, wanted: &[u8]) -> usize {
    const CHUNK: usize = 1 << 20;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem")).unwrap();
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw-p ")) {
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let address = |text| u64::from_str_radix(text, 16).unwrap();
        let (mut at, end) = (address(start), address(end));
        // Neighbouring chunks overlap, so that no copy is cut in two.
        let mut chunk = vec![0; CHUNK + wanted.len()];
        while at < end {
            let length = usize::try_from(end - at).unwrap().min(chunk.len());
            if memory.read_exact_at(&mut chunk[..length], at).is_ok() {
                let first = wanted[0];
                let starts = chunk[..length].iter().enumerate().filter(|(_, byte)| **byte == first).map(|(i, _)| i);
                for offset in starts.filter(|offset| chunk[*offset..length].starts_with(wanted)) {
                    memory.write_all_at(&0.5_f32.to_le_bytes(), at + offset as u64).unwrap();
                    found += 1;
                }
            }
            at += CHUNK as u64;
        }
    }
    found
}

// I-06: a flipped value among the weights of an idle server is found by its canary, and the process ends.
#[test]
fn corrupted_weights_end_the_process_with_its_own_code() {
    let folder = TinyModel::default().write();
    let mut server = Server::start(folder.path(), &["--canary-interval", "50ms"]);
    server.wait_until_ready();
    wait_for("canaries", || (server.metric("embedserve_canary_total") > 2.0).then_some(()));
    let bias = tensor(folder.path(), "encoder.layer.1.output.LayerNorm.bias");
    assert!(corrupt(server.pid(), &bias) > 0, "the weights were not found in memory");
    assert_eq!(server.wait().code(), Some(70), "{}", server.log());
    let log = server.log();
    assert!(log.contains("stopped: the device failed") && log.contains("another vector than before"), "{log}");
}

// M-05
#[test]
fn models_beyond_the_memory_limit_are_refused_at_start() {
    let folder = TinyModel::default().write();
    let choice = format!("dir:{}", folder.path().display());
    let finished = run(&mut embedserve(&["--model", &choice, "--port", "0", "--memory-limit", "10MiB"]));
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("10 MiB may be used"), "{}", finished.stderr);
}

// I-06: an idle server costs nothing although it proves all the time that it works.
#[test]
fn an_idle_server_uses_no_processor() {
    let folder = TinyModel::default().write();
    let server = Server::start(folder.path(), &["--canary-interval", "100ms"]);
    server.wait_until_ready();
    let used = server.fewest_ticks_in(Duration::from_secs(2), 10);
    assert!(server.metric("embedserve_canary_total") > 5.0);
    assert!(used <= 10, "an idle server used {used} of 200 ticks in its quietest two seconds");
}
