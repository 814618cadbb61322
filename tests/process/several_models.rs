//! Several models in the executable: memory that really comes back, failures told by exit codes, signals while loading.

use std::path::Path;
use std::time::Duration;

use crate::server::{Server, embedserve, run, wait_for};
use crate::support::gate::Gate;
use crate::support::tiny_model::TinyModel;

fn choice(folder: &Path) -> String {
    format!("dir:{}", folder.display())
}

fn serve(folders: &[&Path], arguments: &[&str]) -> Server {
    let choices: Vec<String> = folders.iter().map(|folder| choice(folder)).collect();
    let mut all: Vec<&str> = choices.iter().flat_map(|choice| ["--model", choice]).collect();
    all.extend(arguments);
    Server::spawn(embedserve(&all))
}

/// A model folder called `name`.
fn model(root: &Path, name: &str, tiny: &TinyModel) -> std::path::PathBuf {
    let folder = root.join(name);
    std::fs::create_dir(&folder).unwrap();
    tiny.write_to(&folder);
    folder
}

#[test]
fn unloading_gives_memory_back_to_the_system() {
    let root = tempfile::tempdir().unwrap();
    // About 50 MB of weights.
    let large = model(root.path(), "large", &TinyModel { hidden: 512, layers: 6, ..TinyModel::default() });
    let small = model(root.path(), "small", &TinyModel::default());
    let weights = std::fs::metadata(large.join("model.safetensors")).unwrap().len();
    assert!(weights > 40 << 20, "{weights}");
    let server = serve(&[&small, &large], &["--max-loaded-models", "1"]);
    server.wait_until_ready();
    let load = |name: &str| {
        let (status, body) = server.embed(&format!(r#"{{"model":"{name}","input":"x"}}"#));
        assert_eq!(status, 200, "{body}");
        server.resident_bytes()
    };
    // The first round fills the allocator's own pools and the tokenizers' caches.
    load("large");
    let before = load("small");
    let mut sizes = Vec::new();
    for _ in 0..12 {
        let with = load("large");
        // The allocator gives pages back after a moment.
        let without = wait_for("memory that falls", || {
            let now = load("small");
            (now + weights * 3 / 4 < with).then_some(now)
        });
        sizes.push((with, without));
    }
    // The threads that pack weights keep up to 35 MB of free memory between them, taken over the first few rounds. What
    // a round leaves behind for good, a twelfth of the weights or more, would show.
    let (_, last) = sizes[11];
    assert!(last < before + weights, "memory grows from {before}: {sizes:?}");
}

#[test]
fn with_keep_going_the_exit_code_and_the_log_tell_whether_any_model_serves() {
    let root = tempfile::tempdir().unwrap();
    let good = model(root.path(), "good", &TinyModel::default());
    let bad = model(root.path(), "bad", &TinyModel::default());
    std::fs::write(bad.join("config.json"), "{}").unwrap();
    let (good, bad) = (choice(&good), choice(&bad));
    for arguments in [&["--model", &good, "--model", &bad][..], &["--model", &bad, "--keep-going"]] {
        let ended = run(embedserve(arguments).env("PORT", "0"));
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        assert!(ended.stderr.contains("model_type is missing"), "{}", ended.stderr);
    }
    let mut server = Server::spawn(embedserve(&["--model", &bad, "--model", &good, "--keep-going"]));
    server.wait_until_ready();
    assert_eq!(server.embed(r#"{"model":"good","input":"x"}"#).0, 200);
    let (status, body) = server.embed(r#"{"model":"bad","input":"x"}"#);
    assert!(status == 503 && body.contains("model_unavailable"), "{status} {body}");
    assert!(server.log().contains("model_type is missing"), "{}", server.log());
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}

// L-01, L-03
#[test]
fn sigterm_while_a_request_waits_for_its_model() {
    let root = tempfile::tempdir().unwrap();
    let (a, b) = (model(root.path(), "a", &TinyModel::default()), model(root.path(), "b", &TinyModel::default()));
    for finishes in [true, false] {
        let flags = ["--max-loaded-models", "1", "--drain-delay", "0s", "--drain-grace"];
        let grace = if finishes { "25s" } else { "200ms" };
        let mut server = serve(&[&a, &b], &[&flags[..], &[grace]].concat());
        server.wait_until_ready();
        let gate = Gate::close(&b);
        let address = server.address;
        let client = std::thread::spawn(move || {
            let body = r#"{"model":"b","input":"x"}"#;
            let request = format!(
                "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            crate::server::exchange(address, &request)
        });
        wait_for("a waiting request", || (server.metric("embedserve_model_waiting_requests") > 0.0).then_some(()));
        server.signal("TERM");
        server.wait_for_log("draining");
        if finishes {
            wait_for("a closed socket", || (server.get("/livez").0 == 0).then_some(()));
            gate.open();
            assert_eq!(client.join().unwrap().0, 200);
            assert_eq!(server.wait().code(), Some(0), "{}", server.log());
        } else {
            let begin = std::time::Instant::now();
            assert_eq!(server.wait().code(), Some(1), "{}", server.log());
            assert!(begin.elapsed() < Duration::from_secs(10), "took {:?}", begin.elapsed());
            gate.open();
        }
    }
}

// L-08
#[test]
fn the_printed_configuration_estimates_the_memory() {
    let root = tempfile::tempdir().unwrap();
    let folder = model(root.path(), "large", &TinyModel { hidden: 512, layers: 1, ..TinyModel::default() });
    let arguments = ["--model", &choice(&folder), "--model", "BAAI/bge-small-en-v1.5", "--dry-run"];
    let printed = run(&mut embedserve(&arguments)).stdout;
    let mebibytes = std::fs::metadata(folder.join("model.safetensors")).unwrap().len() >> 20;
    assert!(printed.contains(&format!("weights in memory    = {mebibytes} MiB (large)")), "{printed}");
    assert!(printed.contains("weights in memory    = not on this machine (BAAI/bge-small-en-v1.5)"), "{printed}");
}
