//! `bench`: measures a server of its own, or a running one, and says so for people and for programs.

use serde_json::Value;

use crate::server::{Finished, Server, embedserve, run};
use crate::support::tiny_model::TinyModel;

fn json(finished: &Finished) -> Value {
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error} in {}", finished.stdout))
}

fn number(value: &Value, pointer: &str) -> f64 {
    value.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number at {pointer} of {value:#}"))
}

fn positive(value: &Value, pointers: &[&str]) {
    for pointer in pointers {
        assert!(number(value, pointer) > 0.0, "{pointer} of {value:#}");
    }
}

/// What every measurement of the tiny model has, whoever serves it.
fn check(report: &Value) {
    positive(report, &["/seconds", "/machine/cores", "/machine/f32_peak_gflops", "/process/resident_bytes"]);
    assert!(number(report, "/machine/f32_peak_gflops") >= number(report, "/machine/f32_peak_gflops_one_core"));
    let rows = |name: &str| report[name].as_array().unwrap().clone();
    // It takes 64 tokens, so there is no text of 128 or 512.
    let lengths: Vec<u64> = rows("alone").iter().map(|row| row["tokens_each"].as_u64().unwrap()).collect();
    assert_eq!(lengths, [16, 64]);
    for row in rows("alone").iter().chain(&rows("waiting_clients")) {
        positive(row, &["/requests", "/requests_per_second", "/tokens_per_second", "/server/cores_used"]);
        assert!(number(row, "/requests") >= 5.0, "{row:#}");
        assert!(number(row, "/tokens_per_second") > 2.0 * number(row, "/texts_per_second"), "{row:#}");
        ordered(&row["latency"]);
    }
    let clients = |row: &Value| (row["clients"].as_u64().unwrap(), row["texts_per_request"].as_u64().unwrap());
    let waiting: Vec<_> = rows("waiting_clients").iter().map(clients).collect();
    assert_eq!(waiting, [(1, 1), (8, 1), (32, 1), (4, 32), (32, 1), (32, 1)]);
    let loads: Vec<_> =
        rows("by_the_clock").iter().map(|row| (number(row, "/tokens_each"), number(row, "/load"))).collect();
    let expected: Vec<_> =
        [16.0, 64.0].into_iter().flat_map(|tokens| [0.5, 0.8, 1.0, 2.0, 10.0].map(|load| (tokens, load))).collect();
    assert_eq!(loads, expected);
    for row in rows("by_the_clock") {
        positive(&row, &["/sent", "/offered_per_second", "/latency/n"]);
        ordered(&row["latency"]);
        let outcomes = ["/latency/n", "/refused_429", "/refused_503", "/failed", "/unanswered"];
        let accounted: f64 = outcomes.iter().map(|pointer| number(&row, pointer)).sum();
        // Below what it carries, every request finds a connection.
        assert!(number(&row, "/held_back") < 0.5 || number(&row, "/load") >= 1.0, "{row:#}");
        assert_eq!((accounted, number(&row, "/failed")), (number(&row, "/sent"), 0.0), "{row:#}");
        assert!(number(&row, "/goodput_per_second") < 3.0 * number(&row, "/offered_per_second"), "{row:#}");
    }
    assert!(!report["advice"].as_str().unwrap().is_empty());
}

fn ordered(latency: &Value) {
    let percentiles = ["/p50_ms", "/p95_ms", "/p99_ms", "/max_ms"].map(|pointer| number(latency, pointer));
    assert!(percentiles[0] > 0.0 && percentiles.is_sorted(), "{latency:#}");
}

#[test]
fn it_measures_a_server_of_its_own() {
    let folder = TinyModel::default().write();
    let model = format!("dir:{}", folder.path().display());
    let mut command = embedserve(&["bench", "--seconds", "2", "--json", "--model", &model, "--threads", "1"]);
    // What protects a server from the network is not for this one.
    command.env("EMBEDSERVE_API_KEY", "sk-unused").env("EMBEDSERVE_HOST", "0.0.0.0").env("EMBEDSERVE_PORT", "1");
    let finished = run(&mut command);
    let report = json(&finished);
    check(&report);
    assert_eq!((&report["measured"]["max_tokens"], &report["measured"]["threads"]), (&64.into(), &1.into()));
    positive(&report, &["/process/start_to_ready_ms", "/process/resident_bytes_when_ready"]);
    assert!(number(&report, "/process/peak_resident_bytes") >= number(&report, "/process/resident_bytes"));
    for row in report["waiting_clients"].as_array().unwrap() {
        let percent = number(row, "/percent_of_f32_peak");
        assert!(percent > 0.0 && percent < 100.0, "{row:#}");
        let around = number(row, "/server/percent_not_forward_pass");
        assert!(around > 0.0 && around < 100.0, "{row:#}");
        positive(row, &["/server/client_cores_used"]);
    }
    assert!(finished.stderr.contains("bench: one request alone: 16 tokens"), "{}", finished.stderr);
    assert!(!finished.stderr.contains("listening"), "{}", finished.stderr);
}

#[test]
fn it_measures_a_running_server_with_a_key() {
    let folder = TinyModel::default().write();
    let server = Server::start(folder.path(), &["--api-key", "sk-right"]);
    server.wait_until_ready();
    let url = format!("http://{}/v1", server.address);
    let bench =
        |more: &[&str]| run(&mut embedserve(&[&["bench", "--seconds", "2", "--json", "--url", &url], more].concat()));
    let report = json(&bench(&["--api-key", "sk-right", "--model", "tiny"]));
    check(&report);
    assert_eq!((&report["measured"]["url"], &report["measured"]["model"]), (&url.as_str().into(), &"tiny".into()));
    // Of a server elsewhere these are unknown, and not made up.
    for pointer in ["/process/start_to_ready_ms", "/process/peak_resident_bytes", "/alone/0/percent_of_f32_peak"] {
        assert_eq!(report.pointer(pointer), Some(&Value::Null), "{pointer} of {report:#}");
    }
    let refused = bench(&["--api-key", "sk-wrong"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("401") && !refused.stderr.contains("sk-wrong"), "{}", refused.stderr);
    let unknown = bench(&["--api-key", "sk-right", "--model", "another"]);
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.stderr.contains("404") && unknown.stderr.contains("another"), "{}", unknown.stderr);
    drop(server);
    let absent = bench(&[]);
    assert_eq!(absent.code, Some(1));
    assert!(absent.stderr.contains("cannot connect"), "{}", absent.stderr);
}

#[test]
fn people_get_a_table_with_units_and_advice() {
    let folder = TinyModel::default().write();
    let finished = run(&mut embedserve(&["bench", "--seconds", "1", &format!("dir:{}", folder.path().display())]));
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    for expected in ["GFLOP/s on one", "One request alone", "p99 ms", "tokens/s", "% of f32 peak", "2 x", "Advice: "] {
        assert!(finished.stdout.contains(expected), "{expected} in {}", finished.stdout);
    }
}

#[test]
fn what_cannot_be_measured_is_wrong_usage() {
    let cases: [(&[&str], &str); 6] = [
        (&["--seconds", "0"], "1 to 3600"),
        (&["--seconds", "soon"], "soon"),
        (&["--url", "https://127.0.0.1:1"], "of TLS"),
        (&["--url", "127.0.0.1:1"], "http://HOST:PORT"),
        (&["--model", "bge-enormous"], "bge-enormous"),
        (&["--model", "bge-m3", "--model", "BAAI/bge-base-en-v1.5"], "one model at a time"),
    ];
    for (arguments, mentions) in cases {
        let finished = run(&mut embedserve(&[&["bench"], arguments].concat()));
        assert_eq!(finished.code, Some(64), "{arguments:?}: {}", finished.stderr);
        assert!(finished.stderr.contains(mentions), "{arguments:?}: {}", finished.stderr);
    }
}
