//! The executable under odd traffic: bodies in hundreds of thousands of pieces, no descriptors left, names that look like
//! places, an address that everybody reaches.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::memory::settles;
use crate::server::{PATIENCE, Server, embedserve, exchange, run, through, wait_for};
use crate::support::fake_hub::FakeHub;
use crate::support::tiny_model::TinyModel;

/// Sends a body of one-byte chunks as far as the server reads it, and returns the status line.
fn crumbs(server: &Server, chunks: usize) -> String {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
    let piece = b"1\r\n \r\n".repeat(10_000);
    for _ in 0..chunks / 10_000 {
        // The server has answered and closed: nobody reads the rest.
        if stream.write_all(&piece).is_err() {
            break;
        }
    }
    let _ = stream.write_all(b"0\r\n\r\n");
    let mut line = String::new();
    let _ = BufReader::new(stream).read_line(&mut line);
    line
}

// W-06
#[test]
fn bodies_of_crumbs_leave_nothing_in_memory() {
    let folder = TinyModel::default().write();
    for (limit, status) in [("100000", "413"), ("1000000", "400")] {
        let server = Server::start(folder.path(), &["--max-body-bytes", limit]);
        server.wait_until_ready();
        let mut refused = 0;
        settles(&server, || {
            for _ in 0..3 {
                let line = crumbs(&server, 300_000);
                // A reset may overtake the answer; what must never come is another one.
                assert!(line.is_empty() || line.contains(status), "{line}");
                refused += usize::from(line.contains(status));
            }
        });
        assert!(refused > 0, "no answer arrived at all");
    }
}

// W-11
#[test]
fn without_descriptors_the_server_waits_and_recovers() {
    let folder = TinyModel::default().write();
    let choice = format!("dir:{}", folder.path().display());
    let plain = embedserve(&["--model", &choice, "--served-model-name", "tiny"]);
    let command = through(&["sh", "-c", "ulimit -n 40; exec \"$0\" \"$@\""], &plain);
    let server = Server::spawn(command);
    server.wait_until_ready();
    let crowd: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    let held = || std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
    wait_for("the last descriptor", || (held() >= 40).then_some(()));
    let used = server.fewest_ticks_in(Duration::from_secs(1), 20);
    assert!(used <= 20, "{used} ticks of 100 went into waiting");
    drop(crowd);
    wait_for("an answer", || (server.embed(r#"{"model":"tiny","input":"x"}"#).0 == 200).then_some(()));
}

// A-09
#[test]
fn names_that_look_like_places_reach_nothing() {
    let (folder, outside) = (TinyModel::default().write(), TinyModel::default().write());
    let hub = FakeHub::start(BTreeMap::new());
    let started = outside.path().join("started");
    let pip = format!("touch {}", started.display());
    let choice = format!("dir:{}", folder.path().display());
    let mut command = embedserve(&["--model", &choice, "--served-model-name", "tiny", "--pip", &pip]);
    command.env("HF_ENDPOINT", hub.endpoint()).env("EMBEDSERVE_CACHE_DIR", outside.path().join("cache"));
    let server = Server::spawn(command);
    server.wait_until_ready();
    let elsewhere = outside.path().to_str().unwrap();
    for name in [
        "bge-m3",
        "BAAI/bge-m3@main",
        "all-MiniLM-L6-v2",
        &format!("{}/o/n", hub.endpoint()),
        elsewhere,
        &format!("dir:{elsewhere}"),
        &format!("file://{elsewhere}"),
        &format!("./../{elsewhere}"),
        "../../../../etc/passwd",
    ] {
        let (status, body) = server.embed(&serde_json::json!({"model": name, "input": "x"}).to_string());
        assert!(status == 404 && body.contains("model_not_found"), "{name}: {status} {body}");
        let (status, _) = server.get(&format!("/v1/models/{}", name.replace('/', "%2F")));
        assert_eq!(status, 404, "{name}");
    }
    assert_eq!(hub.connections(), 0);
    assert!(!started.exists() && !outside.path().join("cache").exists());
    // The traps are sound: whoever names the model at start springs them.
    let pulled = embedserve(&["models", "pull", "o/n"]).env("HF_ENDPOINT", hub.endpoint()).output().unwrap();
    assert!(!pulled.status.success() && hub.connections() > 0);
}

// A-10
#[test]
fn an_open_address_without_keys_is_refused_with_its_risk() {
    let folder = TinyModel::default().write();
    let choice = format!("dir:{}", folder.path().display());
    for address in ["0.0.0.0", "::", "192.0.2.1"] {
        let refused = run(&mut embedserve(&["--model", &choice, "--host", address]));
        assert_eq!(refused.code, Some(64), "{}", refused.stderr);
        assert!(refused.stderr.contains("is reachable from other machines and no key is set"), "{}", refused.stderr);
    }
    for consent in [&["--insecure"][..], &["--api-key", "sk-0123456789abcdef"]] {
        let server = Server::start(folder.path(), &[&["--host", "0.0.0.0"], consent].concat());
        let address = ([127, 0, 0, 1], server.address.port()).into();
        assert_eq!(exchange(address, "GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").0, 200);
    }
}

// W-11: the soft limit is often as low as the number of connections alone.
#[test]
fn the_limit_on_open_files_is_raised_to_the_hard_one() {
    let folder = TinyModel::default().write();
    let choice = format!("dir:{}", folder.path().display());
    let plain = embedserve(&["--model", &choice, "--served-model-name", "tiny"]);
    let server =
        Server::spawn(through(&["sh", "-c", "ulimit -S -n 200; ulimit -H -n 2000; exec \"$0\" \"$@\""], &plain));
    server.wait_until_ready();
    assert!((server.metric("process_max_fds") - 2000.0).abs() < 0.5, "{}", server.metric("process_max_fds"));
}
