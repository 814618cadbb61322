//! The file of keys: what is wrong with it ends the start, and SIGHUP reads it again.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use crate::server::{PATIENCE, Server, embedserve, run, wait_for};
use crate::support::tiny_model::TinyModel;

const BODY: &str = r#"{"model":"tiny","input":"x"}"#;

fn write(path: &Path, key: &str) {
    std::fs::write(path, format!("[[key]]\nname = \"search\"\nkey = \"{key}\"\nrequests_per_minute = 1000\n")).unwrap();
}

fn ask(server: &Server, key: &str) -> u16 {
    server.embed_with(BODY, &format!("api-key: {key}\r\n")).0
}

// A-06
#[test]
fn sighup_exchanges_the_keys_and_drops_nothing() {
    let folder = TinyModel::default().write();
    let (keys, plain) = (folder.path().join("keys.toml"), folder.path().join("plain"));
    write(&keys, "sk-old-canary");
    std::fs::write(&plain, "sk-old-plain-canary\n").unwrap();
    let files = ["--keys-file", keys.to_str().unwrap(), "--api-key-file", plain.to_str().unwrap()];
    let mut server = Server::start(folder.path(), &files);
    server.wait_until_ready();
    assert_eq!((ask(&server, "sk-old-canary"), ask(&server, "sk-old-plain-canary")), (200, 200));
    // A request that has passed the check, and whose body is still on its way.
    let mut waiting = TcpStream::connect(server.address).unwrap();
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\napi-key: sk-old-canary\r\nconnection: close\r\n";
    let (first, rest) = BODY.split_at(5);
    waiting.write_all(format!("{head}content-length: {}\r\n\r\n{first}", BODY.len()).as_bytes()).unwrap();
    let key = "api-key: sk-old-canary\r\n";
    let in_flight = || {
        let request = format!("GET /metrics HTTP/1.1\r\nhost: localhost\r\n{key}connection: close\r\n\r\n");
        let (_, page) = crate::server::exchange(server.address, &request);
        page.contains("embedserve_http_requests_in_flight{route=\"/v1/embeddings\"} 1").then_some(())
    };
    wait_for("the request in flight", in_flight);

    write(&keys, "sk-new-canary");
    std::fs::write(&plain, "sk-new-plain-canary\n").unwrap();
    server.signal("HUP");
    server.wait_for_log("keys were read again");
    for (key, status) in
        [("sk-old-canary", 401), ("sk-old-plain-canary", 401), ("sk-new-canary", 200), ("sk-new-plain-canary", 200)]
    {
        assert_eq!(ask(&server, key), status, "{key}");
    }
    waiting.write_all(rest.as_bytes()).unwrap();
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    // A file with a fault changes nothing.
    for broken in ["[[key]]\nname = \"search\"\nkey = \"sk-third-canary\"\nrpm = 1\n", "key = sk-third-canary", ""] {
        std::fs::write(&keys, broken).unwrap();
        let before = server.log().matches("could not be read again").count();
        server.signal("HUP");
        let again = || (server.log().matches("could not be read again").count() > before).then_some(());
        wait_for("the refusal", again);
        assert_eq!((ask(&server, "sk-third-canary"), ask(&server, "sk-new-canary")), (401, 200));
    }
    let log = server.log();
    assert!(log.contains("keys.toml:4:1: unknown key"), "{log}");
    assert!(log.contains("key=search") || log.contains("key=\"search\""), "names are what is logged: {log}");
    assert!(!log.contains("canary"), "{log}");
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
}

// L-04, P11: told at start, in place, without a word of the key.
#[test]
fn a_faulty_file_of_keys_ends_the_start() {
    let folder = TinyModel::default().write();
    let path = folder.path().join("keys.toml");
    let model = format!("dir:{}", folder.path().display());
    for (content, mentions) in [
        ("[[key]]\nname = \"a\"\nkey = \"sk-canary\"\nlimit = 1\n", "keys.toml:4:1: unknown key"),
        ("[[key]]\nname = \"a\"\nkey = \"sk-canary\"\nmodels = [\"other\"]\n", "keys.toml:4:11: expected the name"),
        ("", "it holds no key"),
    ] {
        std::fs::write(&path, content).unwrap();
        let finished = run(&mut embedserve(&["--model", &model, "--keys-file", path.to_str().unwrap()]));
        assert_eq!(finished.code, Some(64), "{}", finished.stderr);
        assert!(finished.stderr.contains(mentions), "{}", finished.stderr);
        assert!(!finished.stderr.contains("canary"), "{}", finished.stderr);
    }
}
