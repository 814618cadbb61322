//! A network that breaks and mends, before the Hub and before the server.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::app::{M, TestApp, words};
use crate::support::chaos_proxy::ChaosProxy;
use crate::support::fake_hub::{FakeHub, Script};
use crate::support::random::Random;
use crate::support::raw::{RawClient, post};
use crate::support::sources::{Machine, NEEDED, cause, hub_model, obtain, repository, wait_until};

const WEIGHTS: &str = "GET model.safetensors";

fn hub_behind_a_proxy(most: usize) -> (FakeHub, ChaosProxy, Machine) {
    let hub = FakeHub::start(repository());
    let address = hub.endpoint().trim_start_matches("http://").parse().unwrap();
    let proxy = ChaosProxy::start(address, most, 3);
    let machine = Machine::new(&format!("http://{}", proxy.address));
    (hub, proxy, machine)
}

// D-02: no connection lives long enough for the weights, and each goes on where the last one was cut.
#[test]
fn a_model_arrives_over_connections_that_are_cut_at_any_byte() {
    let (_hub, proxy, mut machine) = hub_behind_a_proxy(60_000);
    machine.config.attempts = 1000;
    let folder = obtain(&hub_model(), &machine.config).unwrap();
    for name in NEEDED {
        assert!(std::fs::read(folder.path.join(name)).unwrap() == repository()[name], "{name}");
    }
    assert!(proxy.cut() >= 3, "{} connections were cut", proxy.cut());
}

// D-02, M-07: a hub that goes down in the middle and comes back.
#[test]
fn a_model_arrives_after_the_hub_was_gone() {
    let (hub, proxy, mut machine) = hub_behind_a_proxy(usize::MAX);
    proxy.go_down();
    assert!(cause(&hub_model(), &machine.config).is_transient(), "gone before the first byte");
    proxy.come_back();
    machine.config.attempts = 1000;
    hub.script(WEIGHTS, [Script::Stall]);
    std::thread::scope(|scope| {
        let arriving = scope.spawn(|| obtain(&hub_model(), &machine.config));
        wait_until("the weights are asked for", || !hub.asked_for(WEIGHTS).is_empty());
        proxy.go_down();
        std::thread::sleep(Duration::from_millis(300));
        assert!(!arriving.is_finished(), "it waits for the hub to come back");
        proxy.come_back();
        let folder = arriving.join().unwrap().unwrap();
        assert!(NEEDED.iter().all(|name| std::fs::read(folder.path.join(name)).unwrap() == repository()[*name]));
    });
}

// I-10, P1: requests and answers cut at any byte. Who gets an answer gets the right one, and nothing stays behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_behind_a_breaking_network_stays_right_and_clean() {
    let app = TestApp::start().await;
    let mut expected = Vec::new();
    for n in 1..=8 {
        expected.push(app.embed(json!({"model": M, "input": words(n)})).await.json()["data"].clone());
    }
    let connections = app.metric("embedserve_http_connections", "");
    // A request and its answer are some 1,500 bytes: about two connections in three carry both.
    let proxy = ChaosProxy::start(app.address, 4000, 5);
    let (whole, broken) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (expected, proxy, whole, broken) = (&expected, &proxy, &whole, &broken);
            scope.spawn(move || {
                let mut random = Random::new(seed);
                for _ in 0..50 {
                    let index = random.below(expected.len());
                    let mut client = RawClient::connect(proxy.address);
                    client.send(post(&json!({"model": M, "input": words(index + 1)}).to_string()));
                    match client.answer() {
                        Some(answer) if answer.status == 200 => {
                            let body: Value = serde_json::from_str(&answer.body).unwrap();
                            assert_eq!(body["data"], expected[index]);
                            whole.fetch_add(1, Ordering::Relaxed);
                        }
                        // A request of which a part arrived is none.
                        Some(answer) => assert!((400..500).contains(&answer.status), "{answer:?}"),
                        None => _ = broken.fetch_add(1, Ordering::Relaxed),
                    }
                }
            });
        }
    });
    assert!(whole.into_inner() > 10 && broken.into_inner() > 10, "both have to happen");
    for empty in ["embedserve_http_requests_in_flight", "embedserve_queue_rows", "embedserve_queue_tokens"] {
        app.until_metric(empty, "", 0.0).await;
    }
    drop(proxy);
    app.until_metric("embedserve_http_connections", "", connections).await;
}
