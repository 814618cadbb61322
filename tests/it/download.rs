//! The Hub as a source while the network misbehaves: D-02, D-04, D-05, D-07 to D-09, D-11.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use embedserve::catalog::ModelSpec;
use embedserve::load::describe;
use embedserve::observe::progress::LoadProgress;
use embedserve::observe::secret::Secret;
use embedserve::source::{self, Cause, SourceError};

use crate::support::fake_hub::{COMMIT, FakeHub, NEXT_COMMIT, Script, etag};
use crate::support::sources::{
    ANY, Machine, NEEDED, cause, hub_model, hub_model_at, obtain, path, repository, sha256, wait_until,
};

const WEIGHTS: &str = "GET model.safetensors";

fn hub() -> (FakeHub, Machine) {
    let hub = FakeHub::start(repository());
    let machine = Machine::new(&hub.endpoint());
    (hub, machine)
}

/// The weights in the cache are those of the repository.
fn assert_weights_arrived(machine: &Machine) {
    let bytes = repository().remove("model.safetensors").unwrap();
    let blob = machine.blob(&etag("model.safetensors", &bytes));
    assert!(std::fs::read(blob).unwrap() == bytes, "the weights are not those of the repository");
}

/// No blob and no snapshot holds this text.
fn assert_nowhere(machine: &Machine, text: &str) {
    for file in machine.files() {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(text.len()).any(|window| window == text.as_bytes()), "{}", file.display());
    }
}

#[test]
fn a_model_arrives_in_the_shared_layout_and_needs_one_question_the_next_time() {
    let (hub, machine) = hub();
    let folder = obtain(&hub_model(), &machine.config).unwrap();
    assert_eq!((folder.source, folder.revision.as_deref(), folder.pinned), ("hub", Some(COMMIT), false));
    assert_eq!(folder.path, machine.repository().join("snapshots").join(COMMIT));
    for name in NEEDED {
        let link = std::fs::read_link(folder.path.join(name)).unwrap();
        let up = if name.contains('/') { "../../../blobs" } else { "../../blobs" };
        assert!(link.starts_with(up), "{name}: {}", link.display());
        assert_eq!(std::fs::read(folder.path.join(name)).unwrap(), repository()[name]);
    }
    assert_eq!(std::fs::read_to_string(machine.repository().join("refs/main")).unwrap(), COMMIT);
    // Nothing that could run code was asked for, and nothing unfinished is left.
    for name in ["pytorch_model.bin", "modeling_custom.py", "README.md"] {
        assert!(hub.asked_for(&format!("GET {name}")).is_empty(), "{name}");
    }
    assert!(machine.files().iter().all(|file| !file.to_string_lossy().ends_with(".incomplete")));

    let before = hub.asked().len();
    assert_eq!(obtain(&hub_model(), &machine.config).unwrap(), folder);
    assert_eq!(hub.asked().len(), before + 1);
}

// D-11
#[test]
fn every_file_is_of_one_commit_when_the_branch_moves() {
    let (hub, machine) = hub();
    hub.move_main_after_first_look();
    let folder = obtain(&hub_model(), &machine.config).unwrap();
    assert_eq!(folder.revision.as_deref(), Some(COMMIT));
    let files = hub.asked().into_iter().filter(|asked| asked.path.contains("/resolve/"));
    assert!(files.into_iter().all(|asked| asked.path.contains(COMMIT)));
    // The next start follows the branch.
    assert_eq!(obtain(&hub_model(), &machine.config).unwrap().revision.as_deref(), Some(NEXT_COMMIT));
}

// D-02
#[test]
fn a_cut_transfer_goes_on_at_the_right_byte() {
    let (hub, machine) = hub();
    hub.script(WEIGHTS, [Script::Cut(70_001), Script::Cut(10)]);
    obtain(&hub_model(), &machine.config).unwrap();
    let ranges: Vec<String> = hub.asked_for(WEIGHTS).iter().map(|asked| asked.headers["range"].clone()).collect();
    assert_eq!(ranges, ["bytes=0-199999", "bytes=70001-199999", "bytes=70011-199999"]);
    assert_weights_arrived(&machine);
}

// D-02
#[test]
fn a_later_start_resumes_what_an_earlier_one_left() {
    let (hub, mut machine) = hub();
    machine.config.attempts = 1;
    hub.script(WEIGHTS, [Script::Cut(50_000)]);
    assert!(matches!(cause(&hub_model(), &machine.config), Cause::Cut { received: 50_000, .. }));
    obtain(&hub_model(), &machine.config).unwrap();
    assert_eq!(hub.asked_for(WEIGHTS)[1].headers["range"], "bytes=50000-199999");
    assert_weights_arrived(&machine);
}

// D-02
#[test]
fn attempts_are_bounded() {
    for script in [Script::Status(500), Script::Cut(0), Script::Status(503)] {
        let (hub, machine) = hub();
        hub.always(WEIGHTS, script);
        assert!(cause(&hub_model(), &machine.config).is_transient());
        assert_eq!(hub.asked_for(WEIGHTS).len(), 3);
    }
}

// D-02
#[test]
fn retry_after_is_honoured() {
    let (hub, machine) = hub();
    hub.script(WEIGHTS, [Script::RetryAfter(429, 1)]);
    let begun = Instant::now();
    obtain(&hub_model(), &machine.config).unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    // A wait beyond the file's own deadline is not begun.
    let (hub, machine) = self::hub();
    hub.always(WEIGHTS, Script::RetryAfter(503, 3_600));
    assert!(matches!(cause(&hub_model(), &machine.config), Cause::Deadline { .. }));
    assert!(begun.elapsed() < Duration::from_secs(20));
}

// D-02
#[test]
fn an_error_body_or_web_page_never_becomes_part_of_a_file() {
    for what in ["GET info", "HEAD config.json", "GET config.json", WEIGHTS] {
        for script in [Script::Status(403), Script::Status(500), Script::Html] {
            let (hub, machine) = hub();
            hub.always(what, script.clone());
            let cause = cause(&hub_model(), &machine.config);
            let expected = matches!(cause, Cause::Status { .. } | Cause::Protocol { .. } | Cause::Size { .. });
            assert!(expected, "{what} {script:?}: {cause}");
            assert_nowhere(&machine, "<error>");
            assert_nowhere(&machine, "<html>");
            assert!(!machine.repository().join("refs/main").exists());
        }
    }
}

// D-02
#[test]
fn a_stalled_transfer_is_given_up_and_repeated() {
    let (hub, mut machine) = hub();
    machine.config.stall_timeout = Duration::from_millis(300);
    hub.script(WEIGHTS, [Script::Stall]);
    obtain(&hub_model(), &machine.config).unwrap();
    assert_weights_arrived(&machine);
    hub.always("GET info", Script::Stall);
    machine.config.hub_cache = machine.folder.path().join("other");
    // Time enough to connect on a crowded machine, which would be another cause.
    (machine.config.stall_timeout, machine.config.attempts) = (Duration::from_secs(1), 1);
    let begun = Instant::now();
    let cause = cause(&hub_model(), &machine.config);
    assert!(matches!(cause, Cause::Stalled { .. }), "{cause}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn stop_ends_a_stalled_transfer_within_a_second() {
    let (hub, machine) = hub();
    hub.always(WEIGHTS, Script::Stall);
    let stop = Arc::new(AtomicBool::new(false));
    let worker = {
        let (stop, config) = (Arc::clone(&stop), machine.config.clone());
        std::thread::spawn(move || source::obtain(&hub_model(), ANY, &config, &LoadProgress::default(), &stop))
    };
    wait_until("the weights are asked for", || !hub.asked_for(WEIGHTS).is_empty());
    let begun = Instant::now();
    stop.store(true, Ordering::SeqCst);
    assert!(matches!(worker.join().unwrap(), Err(SourceError::Stopped)));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[test]
fn files_arrive_side_by_side_up_to_a_bound_and_weights_last() {
    // One slow file does not hold up the other small ones, but no weights are there before it is.
    let (hub, machine) = hub();
    hub.script("GET config.json", [Script::Stall]);
    let config = machine.config.clone();
    let worker = std::thread::spawn(move || obtain(&hub_model(), &config));
    let small = NEEDED.iter().filter(|name| !["config.json", "model.safetensors"].contains(name));
    let small: Vec<PathBuf> = small.map(|name| machine.blob(&etag(name, &repository()[*name]))).collect();
    wait_until("the others are complete", || small.iter().all(|blob| blob.exists()));
    assert_eq!(hub.asked_for("GET config.json").len(), 1);
    assert!(hub.asked_for(WEIGHTS).is_empty());
    hub.hang_up();
    worker.join().unwrap().unwrap();
    assert_weights_arrived(&machine);

    // One at a time means one after the other.
    let (hub, mut machine) = self::hub();
    machine.config.parallel_files = 1;
    hub.always("GET config.json", Script::Status(404));
    assert!(matches!(cause(&hub_model(), &machine.config), Cause::Status { .. }));
    for name in NEEDED.iter().filter(|name| !["config.json", "modules.json"].contains(name)) {
        assert!(hub.asked_for(&format!("HEAD {name}")).is_empty(), "{name}");
    }
}

// D-02
#[test]
fn wrong_ranges_and_lengths_are_refused() {
    let scripts = [
        Script::ContentRange("bytes 1-199999/200000".to_owned()),
        Script::ContentRange("bytes 0-199999/7".to_owned()),
        Script::ContentRange("bytes 5-2/200000".to_owned()),
        Script::ContentRange("nonsense".to_owned()),
    ];
    for script in scripts {
        let (hub, machine) = hub();
        hub.always(WEIGHTS, script.clone());
        let cause = cause(&hub_model(), &machine.config);
        assert!(matches!(cause, Cause::Protocol { .. } | Cause::Size { .. }), "{script:?}: {cause}");
    }
    // A server that knows no ranges is served from the beginning, even in the middle of a resume.
    let (hub, machine) = hub();
    hub.script(WEIGHTS, [Script::Cut(1_000), Script::Whole]);
    obtain(&hub_model(), &machine.config).unwrap();
    assert_weights_arrived(&machine);
}

// D-02, D-04
#[test]
fn a_byte_flipped_on_the_way_is_noticed_and_the_file_fetched_once_more() {
    let (hub, machine) = hub();
    hub.script(WEIGHTS, [Script::Flip(123)]);
    // A small file, by git's hash.
    hub.script("GET tokenizer.json", [Script::Flip(2)]);
    obtain(&hub_model(), &machine.config).unwrap();
    assert_eq!((hub.asked_for(WEIGHTS).len(), hub.asked_for("GET tokenizer.json").len()), (2, 2));
    assert_weights_arrived(&machine);

    let (hub, machine) = self::hub();
    hub.always(WEIGHTS, Script::Flip(123));
    let right = etag("model.safetensors", &repository()["model.safetensors"]);
    let cause = cause(&hub_model(), &machine.config);
    assert!(matches!(&cause, Cause::Hash { expected, found, .. } if *expected == right && *found != right), "{cause}");
    assert_eq!(hub.asked_for(WEIGHTS).len(), 2);
    assert!(!machine.blob(&right).exists() && !machine.blob(&format!("{right}.incomplete")).exists());
}

// D-04
#[test]
fn a_file_that_differs_from_its_pin_is_refused_with_both_hashes() {
    let (hub, machine) = hub();
    let pinned = sha256(b"what was verified by hand");
    let served = etag("model.safetensors", &repository()["model.safetensors"]);
    let spec = hub_model_at("main", vec![(path("model.safetensors"), pinned.clone())]);
    let message = cause(&spec, &machine.config).to_string();
    assert!(message.contains(pinned.as_str()) && message.contains(&served), "{message}");
    // The Hub declares the hash: not a byte of the weights had to be moved.
    assert!(hub.asked_for(WEIGHTS).is_empty());

    // A small file's hash shows only when it is here.
    let machine = Machine::new(&hub.endpoint());
    let spec = hub_model_at("main", vec![(path("config.json"), pinned.clone())]);
    let message = cause(&spec, &machine.config).to_string();
    assert!(
        message.contains(pinned.as_str()) && message.contains(sha256(&repository()["config.json"]).as_str()),
        "{message}"
    );
    assert_nowhere(&machine, "hidden_size");

    let right = sha256(&repository()["model.safetensors"]);
    let spec = hub_model_at("main", vec![(path("model.safetensors"), right)]);
    assert!(obtain(&spec, &machine.config).unwrap().pinned);
}

// D-07: weights that nothing could be done with are not fetched to find that out.
#[test]
fn a_model_of_another_kind_is_refused_before_its_weights_are_asked_for() {
    let mut decoder = repository();
    decoder.insert("config.json".to_owned(), br#"{"model_type": "llama"}"#.to_vec());
    let hub = FakeHub::start(decoder);
    let machine = Machine::new(&hub.endpoint());
    let (progress, stop) = (LoadProgress::default(), AtomicBool::new(false));
    let refused = source::obtain(&hub_model(), describe::judge, &machine.config, &progress, &stop).unwrap_err();
    let message = refused.to_string();
    assert!(message.contains("model_type = llama is not implemented; served are: bert, "), "{message}");
    assert!(hub.asked_for(WEIGHTS).is_empty());
    // The small files are kept: asked again, only the weights have to come.
    obtain(&hub_model(), &machine.config).unwrap();
    assert_eq!(hub.asked_for("GET tokenizer.json").len(), 1);
}

// Who fetches a model that others will serve need not say how it pools.
#[test]
fn a_model_without_a_pooling_of_its_own_can_be_fetched_and_not_served() {
    let mut files = repository();
    files.remove("modules.json").unwrap();
    let hub = FakeHub::start(files);
    let machine = Machine::new(&hub.endpoint());
    let (progress, stop) = (LoadProgress::default(), AtomicBool::new(false));
    let refused = source::obtain(&hub_model(), describe::judge, &machine.config, &progress, &stop).unwrap_err();
    assert!(refused.to_string().contains("--pooling"), "{refused}");
    assert!(hub.asked_for(WEIGHTS).is_empty());
    source::obtain(&hub_model(), describe::judge_to_keep, &machine.config, &progress, &stop).unwrap();
}

// D-07
#[test]
fn sizes_are_capped_before_and_during_a_transfer() {
    let (hub, machine) = hub();
    hub.script("HEAD model.safetensors", [Script::Length(10_000_000_000_000)]);
    assert!(matches!(cause(&hub_model(), &machine.config), Cause::TooLarge { size: 10_000_000_000_000, .. }));
    assert!(hub.asked_for(WEIGHTS).is_empty());

    let (hub, machine) = self::hub();
    hub.always(WEIGHTS, Script::Endless);
    let cause = cause(&hub_model(), &machine.config);
    assert!(matches!(cause, Cause::Size { .. } | Cause::Hash { .. }), "{cause}");
    let largest = machine.files().iter().map(|file| file.metadata().unwrap().len()).max().unwrap();
    assert!(largest <= 1_000_000, "{largest}");
}

// D-07
#[test]
fn what_a_redirect_leads_to_cannot_send_more_than_the_hub_announced() {
    for script in [Script::Endless, Script::Length(10_000_000_000_000), Script::Whole] {
        let (hub, machine) = hub();
        let mut larger = repository();
        larger.insert("model.safetensors".to_owned(), vec![7; 900_000]);
        let cdn = FakeHub::start(larger);
        let there = format!("{}/x/resolve/{COMMIT}/model.safetensors", cdn.endpoint());
        hub.always(WEIGHTS, Script::Redirect(there.clone()));
        hub.always("HEAD model.safetensors", Script::Redirect(there));
        cdn.always(WEIGHTS, script.clone());
        let why = cause(&hub_model(), &machine.config);
        assert!(matches!(why, Cause::Size { .. } | Cause::Protocol { .. }), "{script:?}: {why}");
        let largest = machine.files().iter().map(|file| file.metadata().unwrap().len()).max().unwrap();
        assert!(largest <= 200_000, "{script:?}: {largest}");
        assert!(!machine.blob(&etag("model.safetensors", &repository()["model.safetensors"])).exists());
    }
}

// D-05
#[test]
fn a_file_for_which_there_is_no_room_is_not_begun() {
    let (hub, machine) = hub();
    hub.always("HEAD model.safetensors", Script::Length(1 << 60));
    let spec = ModelSpec { max_file_bytes: u64::MAX, ..hub_model() };
    let why = cause(&spec, &machine.config);
    let Cause::Space { path, needed, free } = &why else { panic!("{why}") };
    assert!(path.starts_with(machine.folder.path()) && *needed == 1 << 60 && *free < *needed, "{why}");
    assert!(hub.asked_for(WEIGHTS).is_empty());
}

// D-08
#[test]
fn the_token_is_shown_to_the_endpoint_alone() {
    let (hub, mut machine) = hub();
    machine.config.token = Some(Secret::new("hf_canary".to_owned()));
    let cdn = FakeHub::start(repository());
    let there = format!("{}/x/resolve/{COMMIT}/model.safetensors?signature=abc", cdn.endpoint());
    hub.always("HEAD model.safetensors", Script::Redirect(there.clone()));
    hub.always(WEIGHTS, Script::Redirect(there));
    obtain(&hub_model(), &machine.config).unwrap();
    assert!(cdn.connections() > 0);
    assert!(hub.asked().iter().all(|asked| asked.headers["authorization"] == "Bearer hf_canary"));
    for asked in cdn.asked() {
        assert!(!asked.headers.values().any(|value| value.contains("hf_canary")), "{asked:?}");
    }
    assert_nowhere(&machine, "hf_canary");
}

#[test]
fn weights_on_another_host_arrive_with_one_look_at_their_size() {
    let (hub, machine) = hub();
    let cdn = FakeHub::start(repository());
    let there = format!("{}/x/resolve/{COMMIT}/model.safetensors", cdn.endpoint());
    hub.always("HEAD model.safetensors", Script::Redirect(there.clone()));
    hub.always(WEIGHTS, Script::Redirect(there));
    obtain(&hub_model(), &machine.config).unwrap();
    assert_weights_arrived(&machine);
    assert!(cdn.asked_for("HEAD model.safetensors").is_empty());
}

// D-08
#[test]
fn redirects_are_followed_within_bounds_only() {
    let (hub, machine) = hub();
    let circle = format!("/o/n/resolve/{COMMIT}/model.safetensors");
    hub.always(WEIGHTS, Script::Redirect(circle));
    let cause = cause(&hub_model(), &machine.config);
    assert!(matches!(cause, Cause::Redirect { .. }), "{cause}");
    assert!(hub.asked_for(WEIGHTS).len() <= 12, "{}", hub.asked_for(WEIGHTS).len());
    for to in ["file:///etc/passwd", "//evil.example/x", "ftp://127.0.0.1/x", "\u{7f}", "http://user:pw@127.0.0.1/x"] {
        hub.script("GET config.json", [Script::Redirect(to.to_owned())]);
        let machine = Machine::new(&hub.endpoint());
        let message = self::cause(&hub_model(), &machine.config).to_string();
        assert!(!message.contains("pw@"), "{message}");
    }
}

// D-09
#[test]
fn hostile_names_from_the_hub_are_refused_and_nothing_is_written_outside() {
    let long = format!("\"{}\"", "x".repeat(5_000));
    for tag in ["\"../../../../evil\"", "\"a/b\"", "\"\"", "\"..\"", long.as_str()] {
        let (hub, machine) = hub();
        hub.always("HEAD config.json", Script::Etag(tag.to_owned()));
        assert!(matches!(cause(&hub_model(), &machine.config), Cause::Name(_)), "{tag}");
        // What lies there are honest files of the same model, perhaps on their way.
        let blobs: Vec<PathBuf> = repository().iter().map(|(name, bytes)| machine.blob(&etag(name, bytes))).collect();
        for file in machine.files() {
            assert!(blobs.contains(&file) || blobs.contains(&file.with_extension("")), "{}", file.display());
        }
        assert!(hub.asked_for(WEIGHTS).is_empty());
    }
    let long = "x/".repeat(2_500);
    for name in ["../../evil", "/etc/evil", "a\\b", "a\0b", long.as_str()] {
        let (hub, machine) = hub();
        hub.list_also(name);
        assert!(matches!(cause(&hub_model(), &machine.config), Cause::Name(_)), "{name:?}");
        assert_eq!(machine.files(), Vec::<PathBuf>::new());
    }
    // No attack, and nothing that is fetched.
    {
        let (hub, machine) = hub();
        hub.list_also("images/at 10:00.png");
        obtain(&hub_model(), &machine.config).unwrap();
    }
    let (hub, machine) = hub();
    hub.always("HEAD config.json", Script::Commit(NEXT_COMMIT.to_owned()));
    assert!(matches!(cause(&hub_model(), &machine.config), Cause::Protocol { .. }));
}
