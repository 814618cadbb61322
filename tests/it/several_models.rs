//! Several models in one process: loaded on demand, unloaded by least use, failing alone; nothing accepted fails.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use embedserve::config::Config;
use embedserve::runner::{Health, Limits};
use embedserve::threads::Turns;
use tempfile::TempDir;

use crate::support::device::{TestDevice, bounds, limits, soon, until};
use crate::support::evil::BLOCK;
use crate::support::gate::Gate;
use crate::support::golden::{Golden, folder};
use crate::support::random::Random;
use crate::support::running::Process;
use crate::support::tiny_model::TinyModel;

/// Tiny models named `a`, `b`, ... in one temporary folder.
struct Folders {
    root: TempDir,
    names: Vec<String>,
}

impl Folders {
    fn new(n: usize) -> Self {
        let root = tempfile::tempdir().unwrap();
        let names: Vec<String> = ('a'..).take(n).map(String::from).collect();
        for (seed, name) in (1..).zip(&names) {
            std::fs::create_dir(root.path().join(name)).unwrap();
            TinyModel { seed, ..TinyModel::default() }.write_to(&root.path().join(name));
        }
        Self { root, names }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn paths(&self) -> Vec<PathBuf> {
        self.names.iter().map(|name| self.path(name)).collect()
    }

    /// All models behind `flags`, as far as there is room.
    async fn serve(&self, flags: &[&str], change: impl FnOnce(&mut Config)) -> Process {
        let paths = self.paths();
        let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        Process::ready(&paths, flags, change).await
    }

    fn spoil(&self, name: &str) {
        std::fs::write(self.path(name).join("config.json"), "{}").unwrap();
    }

    fn mend(&self, name: &str) {
        let seed = self.names.iter().position(|other| other == name).unwrap() as u64 + 1;
        TinyModel { seed, ..TinyModel::default() }.write_to(&self.path(name));
    }
}

fn loads(process: &Process, model: &str) -> u64 {
    process.count("embedserve_model_loads_total", &format!("model=\"{model}\",outcome=\"ok\""))
}

// One process, three architectures, chosen by the `model` field under the names that clients know.
#[tokio::test]
async fn three_families_are_served_under_their_own_names() {
    let models = [
        ("BAAI/bge-base-en-v1.5", "bert-cls-normalize"),
        ("BAAI/bge-m3", "xlm-roberta-mean-128"),
        ("sentence-transformers/all-mpnet-base-v2", "mpnet-mean-normalize"),
    ];
    let machine = tempfile::tempdir().unwrap();
    let catalog = machine.path().join("models.toml");
    let entry = |(id, tiny): (&str, &str)| {
        let path = folder().join("models").join(tiny);
        format!("[[model]]\nid = {id:?}\nsource = [{{ kind = \"directory\", path = {path:?} }}]\n")
    };
    std::fs::write(&catalog, models.map(entry).concat()).unwrap();
    let choices = models.into_iter().flat_map(|(id, _)| ["--model".to_owned(), id.to_owned()]);
    let flags = ["--catalog".to_owned(), catalog.display().to_string()];
    let process = Process::started(choices.chain(flags), |_| ()).await;
    process.running.ready().await.unwrap();
    for (id, tiny) in models {
        let golden = Golden::read(tiny);
        let short = id.split('/').next_back().unwrap();
        for item in golden.items.iter().filter(|item| !item.text().is_empty()).take(4) {
            for name in [id, short] {
                let answer = process.embed(name, &item.text()).await;
                assert_eq!(answer.json()["model"], name);
                assert!(item.gap(&answer.vectors()[0]).judged() <= golden.tolerance, "{name}: {:?}", item.text());
            }
        }
    }
    process.stop().await;
}

// M-07: the proof that the issue asks for: more busy models than places, every answer there and right.
#[tokio::test(flavor = "multi_thread")]
async fn five_models_in_two_places_answer_everything_under_mixed_load() {
    let models =
        ["bert-cls-normalize", "bert-dense", "mpnet-mean-normalize", "distilbert-mean-normalize", "t5-gated-gelu"];
    let paths: Vec<PathBuf> = models.iter().map(|name| folder().join("models").join(name)).collect();
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let flags = ["--max-loaded-models", "2", "--idle-unload", "20ms", "--allow-empty-input"];
    let process = Process::ready(&paths, &flags, |config| config.residency.turn = Duration::from_millis(10)).await;
    let goldens: Arc<Vec<Golden>> = Arc::new(models.iter().map(|name| Golden::read(name)).collect());
    let tasks: Vec<_> = (0..12_u64)
        .map(|seed| {
            let (client, goldens) = (process.client(), Arc::clone(&goldens));
            tokio::spawn(async move {
                let mut random = Random::new(seed);
                for _ in 0..12 {
                    let model = random.below(models.len());
                    let golden = &goldens[model];
                    let item = &golden.items[random.below(golden.items.len())];
                    let text = item.text();
                    if text.is_empty() {
                        continue;
                    }
                    let answer = client.embed(models[model], &text).await;
                    let error = item.gap(&answer.vectors()[0]).judged();
                    assert!(error <= golden.tolerance, "{}: {text:?} differs by {error:e}", models[model]);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let total: u64 = models.iter().map(|model| loads(&process, model)).sum();
    assert!(total > 5, "{total} loads: nothing had to make room");
    process.until_states(&["unloaded"; 5]).await;
    assert_eq!(process.get("/readyz").await.status, 200);
    assert!(process.count("embedserve_model_unloads_total", "reason=\"room\"") > 0);
    assert!(process.count("embedserve_model_unloads_total", "reason=\"idle\"") > 0);
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_start_fills_the_places_and_the_default_model_comes_first() {
    let folders = Folders::new(3);
    let process = folders
        .serve(
            &["--max-loaded-models", "2", "--default-model", &format!("dir:{}", folders.path("c").display())],
            |_| {},
        )
        .await;
    assert_eq!(process.states().await, ["ready", "unloaded", "ready"]);
    let body = process.get("/readyz").await.json();
    assert_eq!((&body["ready"], &body["models"][1]["ready"]), (&true.into(), &true.into()));
    assert_eq!((&body["models"][2]["default"], body["models"][0].get("default")), (&true.into(), None));
    assert_eq!(process.count("embedserve_model_state", "model=\"b\",state=\"unloaded\""), 1);
    process.embed("b", "x").await.vectors();
    // What is not in memory is listed with the limits that were enforced when it was.
    assert_eq!(process.get("/v1/models/c").await.json()["max_model_len"], 64);
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_recently_used_model_makes_room_and_a_busy_one_never_does() {
    let folders = Folders::new(4);
    let process = folders
        .serve(&["--max-loaded-models", "2"], |config| {
            config.residency.turn = Duration::from_mins(10);
        })
        .await;
    assert_eq!(process.states().await, ["ready", "ready", "unloaded", "unloaded"]);
    process.embed("a", "x").await.vectors();
    process.embed("c", "x").await.vectors();
    assert_eq!(process.states().await, ["ready", "unloaded", "ready", "unloaded"]);
    let (a, c) = (process.hold("a").await, process.hold("c").await);
    let waiting = process.ask("d");
    process.until_waiting("d", 1.0).await;
    assert_eq!(process.states().await, ["ready", "unloaded", "ready", "unloaded"]);
    // The first to become idle makes room, used later than the other or not.
    drop(c);
    waiting.await.unwrap().vectors();
    assert_eq!(process.states().await, ["ready", "unloaded", "unloaded", "ready"]);
    drop(a);
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_models_take_turns_so_that_none_is_shut_out() {
    let folders = Folders::new(2);
    let process = folders
        .serve(&["--max-loaded-models", "1"], |config| {
            config.residency.turn = Duration::from_millis(1);
        })
        .await;
    let held = process.hold("a").await;
    let b = process.ask("b");
    process.until_waiting("b", 1.0).await;
    // Its turn is over: the next request of `a` waits although `a` is loaded, and comes after `b`.
    let slot = Arc::clone(process.engine.slot(Some("a")).unwrap());
    let short = || tokio::time::timeout(Duration::from_millis(1), process.engine.lease(&slot, soon()));
    while short().await.is_ok() {}
    let a = process.ask("a");
    process.until_waiting("a", 1.0).await;
    drop(held);
    b.await.unwrap().vectors();
    a.await.unwrap().vectors();
    assert_eq!(loads(&process, "a"), 2);
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_load_serves_all_who_wait_while_other_models_go_on() {
    let folders = Folders::new(2);
    let process = folders
        .serve(&["--max-loaded-models", "2", "--idle-unload", "1ms"], |config| {
            config.residency.max_waiting = 20;
        })
        .await;
    process.until_states(&["unloaded", "unloaded"]).await;
    let gate = Gate::close(&folders.path("b"));
    process.embed("a", "x").await.vectors();
    let held = process.hold("a").await;
    let waiting: Vec<_> = (0..20).map(|_| process.ask("b")).collect();
    process.until_waiting("b", 20.0).await;
    process.until_states(&["ready", "loading"]).await;
    assert_eq!(process.get("/readyz").await.status, 200, "a model that comes back does not make the server unready");
    process.embed("a", "x").await.vectors();
    // Waiting is bounded.
    let refused = process.embed("b", "x").await;
    refused.refusal(503, Some("server_is_overloaded"), None);
    assert!(refused.header("retry-after").is_some());
    let before = loads(&process, "b");
    gate.open();
    for answer in waiting {
        answer.await.unwrap().vectors();
    }
    assert_eq!(loads(&process, "b"), before + 1);
    drop(held);
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_ends_with_the_request() {
    let folders = Folders::new(2);
    let process = folders.serve(&["--max-loaded-models", "1", "--request-timeout", "300ms"], |_| {}).await;
    let held = process.hold("a").await;
    let late = process.embed("b", "x").await;
    late.refusal(503, Some("model_loading"), None);
    assert!(late.header("retry-after").is_some());
    // A client that leaves is forgotten: nothing is loaded for it.
    let gone = process.ask("b");
    process.until_waiting("b", 1.0).await;
    gone.abort();
    process.until_waiting("b", 0.0).await;
    drop(held);
    process.embed("a", "x").await.vectors();
    assert_eq!((loads(&process, "a"), loads(&process, "b")), (1, 0));
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_answers_those_who_wait_for_a_model() {
    let folders = Folders::new(2);
    let process = folders.serve(&["--max-loaded-models", "1"], |_| {}).await;
    let gate = Gate::close(&folders.path("b"));
    let waiting = process.ask("b");
    process.until_states(&["unloaded", "loading"]).await;
    let engine = Arc::clone(&process.engine);
    let stop = tokio::spawn(process.stop());
    until("the drain has begun", || engine.is_draining()).await;
    gate.open();
    waiting.await.unwrap().vectors();
    stop.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_keep_going_one_failure_ends_the_start() {
    let folders = Folders::new(2);
    folders.spoil("b");
    let paths = folders.paths();
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let process = Process::start(&paths, &[], |_| {}).await;
    let reason = process.running.ready().await.unwrap_err();
    assert!(reason.starts_with("cannot serve b: ") && reason.contains("model_type is missing"), "{reason}");
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_keep_going_the_others_serve_and_a_failed_model_is_tried_again() {
    let folders = Folders::new(3);
    folders.spoil("b");
    // No files at all: no request may bring them.
    std::fs::remove_file(folders.path("c").join("model.safetensors")).unwrap();
    let process =
        folders.serve(&["--keep-going"], |config| config.residency.retry_failed = Duration::from_millis(40)).await;
    assert_eq!(process.states().await, ["ready", "failed", "failed"]);
    let answer = process.get("/readyz").await;
    assert_eq!(answer.status, 200);
    let reasons =
        answer.json()["models"].as_array().unwrap().iter().map(|model| model["reason"].clone()).collect::<Vec<_>>();
    assert_eq!(reasons[1..], ["its files could not be loaded", "its files could not be obtained"]);
    assert!(!answer.text.contains(folders.root.path().to_str().unwrap()), "{}", answer.text);
    process.embed("a", "x").await.vectors();
    for failed in ["b", "c"] {
        let answer = process.embed(failed, "x").await;
        let message = answer.refusal(503, Some("model_unavailable"), None);
        assert!(message.starts_with(&format!("The model `{failed}` is not available. ")), "{message}");
        assert!(answer.header("retry-after").is_some());
    }
    // Once they are mended, a request brings the one back, the clock the other.
    folders.mend("b");
    folders.mend("c");
    let deadline = soon();
    for model in ["b", "c"] {
        loop {
            let answer = process.embed(model, "x").await;
            if answer.status == 200 {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{}", answer.text);
        }
    }
    assert_eq!(process.states().await, ["ready"; 3]);
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_no_model_can_be_served_the_start_fails_even_with_keep_going() {
    let folders = Folders::new(2);
    folders.spoil("a");
    folders.spoil("b");
    let paths = folders.paths();
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let process = Process::start(&paths, &["--keep-going"], |_| {}).await;
    let reason = process.running.ready().await.unwrap_err();
    assert!(reason.starts_with("none of the 2 models can be served"), "{reason}");
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_reported_and_can_be_limited() {
    let folders = Folders::new(3);
    let process = folders.serve(&[], |_| {}).await;
    let version = process.get("/version").await.json();
    let one = version["models"][0]["weight_bytes"].as_u64().unwrap();
    assert!(one > 10_000 && version["models"][0]["scratch_bytes"].as_u64().unwrap() > 0, "{version}");
    assert_eq!(version["memory"]["weight_bytes"], 3 * one);
    assert_eq!(process.count("embedserve_model_weight_bytes", ""), 3 * one);
    process.stop().await;
    // Room for two of them, with some to spare for the tensors that are read and not kept.
    let limit = (5 * one / 2).to_string();
    let process = folders.serve(&["--max-model-memory", &limit], |_| {}).await;
    assert_eq!(process.states().await, ["ready", "ready", "unloaded"]);
    process.embed("c", "x").await.vectors();
    assert_eq!(process.states().await, ["unloaded", "ready", "ready"]);
    assert_eq!(process.get("/version").await.json()["memory"]["weight_bytes"], 2 * one);
    assert_eq!(process.count("embedserve_model_weight_bytes", "model=\"a\""), 0);
    process.stop().await;
    let paths = folders.paths();
    let process = Process::start(&[&paths[0]], &["--max-model-memory", "1000"], |_| {}).await;
    let reason = process.running.ready().await.unwrap_err();
    assert!(reason.contains("more than --max-model-memory = 1000"), "{reason}");
    process.stop().await;
}

// I-06: the stall limit is for a forward pass, not for the turn before it.
#[tokio::test]
async fn waiting_for_another_model_is_not_a_stall() {
    let turns: Arc<Turns> = Arc::default();
    let within = |heartbeat| Limits { heartbeat, ..bounds() };
    let hanging = TestDevice::start_on(limits(), within(Duration::from_millis(60)), Arc::clone(&turns));
    let patient = TestDevice::start_on(limits(), within(Duration::from_millis(1)), turns);
    let blocker = hanging.submit(&[&[BLOCK]]).unwrap();
    until("the first model has its turn", || hanging.evil.batches().len() == 1).await;
    let waiting = patient.submit(&[&[1]]).unwrap();
    until("the first model stalls", || matches!(hanging.runner.health(), Health::Stalled { .. })).await;
    assert!(patient.queue.is_busy());
    assert_eq!(patient.runner.health(), Health::Ready);
    hanging.evil.release();
    assert!(blocker.join(soon()).await.unwrap().rows[0].is_ok());
    assert!(waiting.join(soon()).await.unwrap().rows[0].is_ok());
}
