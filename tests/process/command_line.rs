//! What a person sees who types something wrong, and the commands that do not serve.

use std::net::TcpListener;
use std::time::Duration;

use crate::server::{Server, embedserve, run};
use crate::support::tiny_model::TinyModel;

// L-04
#[test]
fn usage_errors_exit_64_with_one_line() {
    let cases: [(&[&str], &str); 6] = [
        (&["--no-such-flag"], "--no-such-flag"),
        (&["--port", "70000"], "70000"),
        (&["--model", "bge-enormous"], "bge-enormous"),
        (&["--device", "cuda"], "CPU only"),
        (&["--host", "0.0.0.0"], "--api-key"),
        (&["--catalog", "/no/such/file.toml"], "/no/such/file.toml"),
    ];
    for (arguments, mentions) in cases {
        let finished = run(&mut embedserve(arguments));
        assert_eq!(finished.code, Some(64), "{arguments:?}: {}", finished.stderr);
        assert!(finished.stderr.contains(mentions), "{arguments:?}: {}", finished.stderr);
        assert!(!finished.stderr.contains("panicked") && !finished.stderr.contains("backtrace"), "{}", finished.stderr);
        assert!(finished.took < Duration::from_secs(5));
    }
}

// L-04
#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let finished = run(&mut embedserve(&["--port", &port]));
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains(&port), "{}", finished.stderr);
}

// L-04
#[test]
fn a_model_that_cannot_be_loaded_ends_the_process() {
    let finished = run(&mut embedserve(&["--model", "dir:/no/such/model", "--port", "0"]));
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("/no/such/model"), "{}", finished.stderr);
}

// L-08
#[test]
fn print_config_masks_secrets_and_exits() {
    let finished = run(embedserve(&["--print-config", "--api-key", "a-very-secret-key", "--port", "1234"])
        .env("HF_TOKEN", "hf_secret-token"));
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    for expected in ["1234", "***", "all-MiniLM-L6-v2", "hub_cache"] {
        assert!(finished.stdout.contains(expected), "{expected} in {}", finished.stdout);
    }
    for secret in ["a-very-secret-key", "hf_secret-token"] {
        assert!(!finished.stdout.contains(secret) && !finished.stderr.contains(secret));
    }
}

#[test]
fn help_teaches() {
    let finished = run(&mut embedserve(&["--help"]));
    assert_eq!(finished.code, Some(0));
    for expected in ["Examples:", "EMBEDSERVE_MAX_BODY_BYTES", "models", "--api-key-file", "HF_HUB_OFFLINE"] {
        assert!(finished.stdout.contains(expected), "{expected}");
    }
}

#[test]
fn models_list_shows_the_catalogue() {
    let finished = run(&mut embedserve(&["models", "list"]));
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let line = finished.stdout.lines().find(|line| line.contains("sentence-transformers/all-MiniLM-L6-v2"));
    let line = line.unwrap_or_else(|| panic!("{}", finished.stdout));
    assert!(line.contains("384") && line.contains("256") && line.contains("no"), "{line}");
}

#[test]
fn models_verify_compares_with_a_second_implementation() {
    let folder = TinyModel::default().write();
    let verified = run(&mut embedserve(&["models", "verify", &format!("dir:{}", folder.path().display())]));
    assert_eq!(verified.code, Some(0), "{}{}", verified.stdout, verified.stderr);
    assert!(verified.stdout.contains("12 texts") && verified.stdout.contains("ok  (candle"), "{}", verified.stdout);
}

#[test]
fn health_tells_by_its_exit_code() {
    let folder = TinyModel::default().write();
    let server = Server::start(folder.path(), &[]);
    server.wait_until_ready();
    let port = server.address.port().to_string();
    let healthy = run(&mut embedserve(&["health", "--port", &port]));
    assert_eq!(healthy.code, Some(0), "{}", healthy.stderr);
    drop(server);
    assert_eq!(run(&mut embedserve(&["health", "--port", &port])).code, Some(1));
}

#[test]
fn every_flag_can_come_from_the_environment() {
    let folder = TinyModel::default().write();
    let mut command = embedserve(&[]);
    command.env("EMBEDSERVE_MODEL", format!("dir:{}", folder.path().display()));
    command.env("EMBEDSERVE_SERVED_MODEL_NAME", "from-environment").env("EMBEDSERVE_MAX_INPUTS", "2");
    let server = Server::spawn(command);
    server.wait_until_ready();
    let (status, body) = server.embed(r#"{"model":"from-environment","input":["a","b"]}"#);
    assert_eq!(status, 200, "{body}");
    let (status, body) = server.embed(r#"{"model":"from-environment","input":["a","b","c"]}"#);
    assert!(status == 400 && body.contains("2 or less"), "{body}");
}
