//! Start and stop: the socket before the model, SIGTERM with work in flight, impatient operators, closed logs.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::server::{PATIENCE, Server, embedserve, exchange, wait_for};
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
    let (hub, start) = server_from_hub(cache.path(), &["--drain-delay", "0s"]);
    hub.always("GET model.safetensors", Script::Stall);
    let mut server = start(&hub);
    wait_for("the download", || (!hub.asked_for("GET model.safetensors").is_empty()).then_some(()));
    let begin = Instant::now();
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(begin.elapsed() < Duration::from_secs(10), "took {:?}", begin.elapsed());
}

// L-01
#[test]
fn sigterm_finishes_what_was_accepted_and_exits_0() {
    let folder = TinyModel { hidden: 64, layers: 4, ..TinyModel::default() }.write();
    let mut server = Server::start(folder.path(), &["--max-batch-tokens", "64", "--drain-delay", "300ms"]);
    server.wait_until_ready();
    let mut idle = TcpStream::connect(server.address).unwrap();
    let texts = vec!["x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x"; 2048];
    let body = format!(r#"{{"model":"tiny","input":{texts:?}}}"#);
    let address = server.address;
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let body = body.clone();
            std::thread::spawn(move || {
                let length = body.len();
                exchange(
                    address,
                    &format!("POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"),
                )
            })
        })
        .collect();
    wait_for("work in the queue", || (server.metric("embedserve_queue_rows") > 0.0).then_some(()));
    server.signal("TERM");
    wait_for("not ready", || (server.get("/readyz").0 == 503).then_some(()));
    for client in clients {
        let (status, body) = client.join().unwrap();
        assert_eq!(status, 200, "{body}");
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
    server.signal("INT");
    assert_eq!(server.wait().code(), Some(1));
    assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
}

// L-12
#[test]
fn a_closed_log_does_not_stop_the_server() {
    let folder = TinyModel::default().write();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (reader, writer) = std::io::pipe().unwrap();
    let choice = format!("dir:{}", folder.path().display());
    let mut command = embedserve(&["--model", &choice, "--served-model-name", "tiny", "--port", &port.to_string()]);
    let mut child = command.stderr(Stdio::from(OwnedFd::from(writer))).stdout(Stdio::null()).spawn().unwrap();
    drop(command);
    drop(reader);
    let address = ([127, 0, 0, 1], port).into();
    let ready = "GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let deadline = Instant::now() + PATIENCE;
    while exchange(address, ready).0 != 200 {
        assert!(child.try_wait().unwrap().is_none(), "the server died with its log");
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
