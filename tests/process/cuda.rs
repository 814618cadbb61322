//! The executable on emulated GPUs (`.ci/emulate-cuda`): several of them, one that breaks, and one with little memory.
//!
//! Left out by name where there is no emulated GPU: a real one cannot be told to break.

use std::path::Path;
use std::process::Command;

use embedserve::kernel::cuda::{Device, count};
use serde_json::Value;

use crate::server::{Server, embedserve, run, wait_for};
use crate::support::tiny_model::TinyModel;

/// Whether the GPUs here are emulated; if not, that is said in the test's name.
#[expect(clippy::print_stderr, reason = "a test may say that it is left out")]
fn emulated(test: &str) -> bool {
    let emulated = count() > 0 && Device::open(0).is_ok_and(|device| device.label().contains("Emulated"));
    if !emulated {
        assert!(std::env::var("EMBEDSERVE_TEST_GPU").as_deref() != Ok("required"), "{test}: no emulated GPU");
        eprintln!("{test}: left out, no emulated GPU");
    }
    emulated
}

/// Heads of 32 values, which the matrix units have.
fn model() -> TinyModel {
    TinyModel { hidden: 128, ..TinyModel::default() }
}

/// The server on emulated devices that are like this.
fn on_devices(folder: &Path, arguments: &[&str], emulator: &[(&str, &str)]) -> Command {
    let choice = format!("dir:{}", folder.display());
    let mut command = embedserve(&[&["--model", &choice, "--served-model-name", "tiny"], arguments].concat());
    command.env("LD_LIBRARY_PATH", std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default());
    command.envs(emulator.iter().copied());
    command
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn two_devices_share_the_work_and_are_told_everywhere() {
    if !emulated("cuda::two_devices_share_the_work_and_are_told_everywhere") {
        return;
    }
    let folder = model().write();
    let two = &[("EMULATOR_DEVICES", "2")];
    // Batches of two texts: a request of forty is work for both.
    let flags = ["--device", "cuda:0,cuda:1", "--dtype", "f16", "--max-batch-rows", "2", "--metrics-public"];
    let server = Server::spawn(on_devices(folder.path(), &flags, two));
    server.wait_until_ready();
    let texts: Vec<String> = (0..40).map(|index| format!("the quick fox {}", index % 4)).collect();
    let (status, answer) = server.embed(&serde_json::json!({"model": "tiny", "input": texts}).to_string());
    assert_eq!(status, 200, "{answer}");
    let vectors: Vec<Value> =
        json(&answer)["data"].as_array().unwrap().iter().map(|item| item["embedding"].clone()).collect();
    for (index, vector) in vectors.iter().enumerate() {
        assert_eq!(*vector, vectors[index % 4], "text {index}, whichever device computed it");
    }
    let names = ["cuda:0 (Emulated)", "cuda:1 (Emulated)"];
    for name in names {
        let page = server.get("/metrics").1;
        let batches = page.lines().find(|line| line.starts_with("embedserve_batches_total") && line.contains(name));
        let batches: f64 = batches.unwrap_or_else(|| panic!("{page}")).rsplit(' ').next().unwrap().parse().unwrap();
        assert!(batches >= 1.0, "{name} had no batch");
    }
    let version = json(&server.get("/version").1);
    let model = &version["models"][0];
    assert_eq!((&model["devices"], &model["dtype"]), (&serde_json::json!(names), &Value::from("f16")), "{version}");
    let ready = json(&server.get("/readyz").1);
    let devices = ready["models"][0]["devices"].as_array().unwrap();
    assert_eq!(devices.iter().map(|device| device["device"].as_str().unwrap()).collect::<Vec<_>>(), names);
    assert!(devices.iter().all(|device| device["state"] == "ready"), "{ready}");
    assert!(server.log().contains("cuda:0 (Emulated), cuda:1 (Emulated)"));
}

// I-09
#[test]
fn a_device_that_breaks_is_named_and_ends_the_process() {
    if !emulated("cuda::a_device_that_breaks_is_named_and_ends_the_process") {
        return;
    }
    let folder = model().write();
    // After the self-test, in one of the known texts that idle devices compute.
    let emulator = [("EMULATOR_DEVICES", "2"), ("EMULATOR_BREAK_DEVICE", "1"), ("EMULATOR_BREAK_AT", "100")];
    let flags = ["--device", "cuda:0,cuda:1", "--canary-interval", "20ms"];
    let mut server = Server::spawn(on_devices(folder.path(), &flags, &emulator));
    assert_eq!(server.wait().code(), Some(70), "{}", server.log());
    let log = server.log();
    assert!(log.contains("on cuda:1 (Emulated): the device is lost"), "{log}");
    assert!(!log.contains("on cuda:0 (Emulated): "), "{log}");
}

// I-08
#[test]
fn batches_are_as_large_as_the_memory_of_the_device_allows() {
    if !emulated("cuda::batches_are_as_large_as_the_memory_of_the_device_allows") {
        return;
    }
    let folder = model().write();
    let memory = |mib: u64| (mib << 20).to_string();
    let flags = ["--device", "cuda", "--max-batch-tokens", "16384", "--metrics-public"];
    // The workspace of matrix products, what is left free, and some room for batches: about 6 KiB for each token.
    for (mib, expected) in [(256, 16_384), (32 + 64 + 26, 4096), (32 + 64 + 3, 256)] {
        let bytes = memory(mib);
        let server = Server::spawn(on_devices(folder.path(), &flags, &[("EMULATOR_MEMORY", bytes.as_str())]));
        server.wait_until_ready();
        let told = &json(&server.get("/version").1)["models"][0]["batch_tokens"];
        assert_eq!(*told, expected, "{mib} MiB: {}", server.log());
        let series = server.metric("embedserve_batch_limit_tokens");
        assert!((series - f64::from(expected)).abs() < 0.5, "{series}");
        assert_eq!(server.log().matches("batches are smaller than wanted").count(), usize::from(expected < 16_384));
        // More than any one batch holds.
        let texts = vec!["the quick brown fox jumps over the lazy dog"; 100];
        let (status, answer) = server.embed(&serde_json::json!({"model": "tiny", "input": texts}).to_string());
        assert_eq!(status, 200, "{answer}");
        wait_for("an idle device", || (server.metric("embedserve_queue_rows") < 0.5).then_some(()));
        assert!(!server.log().contains("out of device memory"), "{}", server.log());
    }
    // No text at all.
    let (bytes, flags) = (memory(96), [&flags[..], &["--port", "0"]].concat());
    let finished = run(&mut on_devices(folder.path(), &flags, &[("EMULATOR_MEMORY", bytes.as_str())]));
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    assert!(finished.stderr.contains("no memory for one text of 64 tokens"), "{}", finished.stderr);
}

// What cannot be recorded is launched, and what is switched off is not tried.
#[test]
fn short_texts_are_the_same_however_their_kernels_are_launched() {
    if !emulated("cuda::short_texts_are_the_same_however_their_kernels_are_launched") {
        return;
    }
    let folder = model().write();
    let table: [(&[&str], &str, usize); 3] = [(&[], "1", 0), (&["--no-cuda-graphs"], "1", 0), (&[], "0", 1)];
    let mut answers: Vec<Vec<Value>> = Vec::new();
    for (flags, graphs, lines) in table {
        let flags = [&["--device", "cuda", "--dtype", "f16"], flags].concat();
        let emulator = [("EMULATOR_GRAPHS", graphs)];
        let server = Server::spawn(on_devices(folder.path(), &flags, &emulator));
        server.wait_until_ready();
        let mut vectors = Vec::new();
        for text in ["the quick fox", "hello", "the quick fox", "the quick fox", "jumps over", "hello"] {
            let (status, answer) = server.embed(&serde_json::json!({"model": "tiny", "input": text}).to_string());
            assert_eq!(status, 200, "{answer}");
            vectors.push(json(&answer)["data"][0]["embedding"].clone());
        }
        assert_eq!(server.log().matches("recording them failed").count(), lines, "{}", server.log());
        answers.push(vectors);
    }
    assert!(answers.iter().all(|vectors| *vectors == answers[0]), "{answers:?}");
}
