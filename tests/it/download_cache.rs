//! The Hub's cache: damage, offline use, other processes, an unreachable endpoint: D-03, D-06, D-10.

use std::fs;
use std::path::PathBuf;

use embedserve::catalog::ModelSpec;
use embedserve::config::SourceConfig;
use embedserve::source::{self, Cause};

use crate::support::fake_hub::{COMMIT, FakeHub, NEXT_COMMIT, Script, etag};
use crate::support::sources::{Machine, NEEDED, cause, hub_model, hub_model_at, obtain, repository};

const WEIGHTS: &str = "GET model.safetensors";

/// A hub, and a machine that has fetched the model from it.
fn filled() -> (FakeHub, Machine) {
    let hub = FakeHub::start(repository());
    let machine = Machine::new(&hub.endpoint());
    obtain(&hub_model(), &machine.config).unwrap();
    (hub, machine)
}

fn blob_of(machine: &Machine, name: &str) -> PathBuf {
    machine.blob(&etag(name, &repository()[name]))
}

/// Ways in which a cached file can be wrong.
type Damage = (&'static str, fn(&PathBuf));

const DAMAGES: [Damage; 6] = [
    ("a flipped byte", |blob| {
        let mut bytes = fs::read(blob).unwrap();
        bytes[3] ^= 0x10;
        fs::write(blob, bytes).unwrap();
    }),
    ("truncated", |blob| {
        let file = fs::OpenOptions::new().write(true).open(blob).unwrap();
        file.set_len(3).unwrap();
    }),
    ("empty", |blob| fs::write(blob, b"").unwrap()),
    ("a directory", |blob| {
        fs::remove_file(blob).unwrap();
        fs::create_dir(blob).unwrap();
        fs::write(blob.join("x"), b"x").unwrap();
    }),
    ("a dangling link", |blob| {
        fs::remove_file(blob).unwrap();
        std::os::unix::fs::symlink("nowhere", blob).unwrap();
    }),
    ("gone", |blob| fs::remove_file(blob).unwrap()),
];

// D-03
#[test]
fn a_damaged_file_is_set_aside_and_fetched_once() {
    for name in ["model.safetensors", "tokenizer.json"] {
        for (what, damage) in DAMAGES {
            let (hub, machine) = filled();
            let blob = blob_of(&machine, name);
            damage(&blob);
            let folder = obtain(&hub_model(), &machine.config).unwrap();
            assert_eq!(fs::read(folder.path.join(name)).unwrap(), repository()[name], "{name} {what}");
            assert_eq!(hub.asked_for(&format!("GET {name}")).len(), 2, "{name} {what}");
            let aside = blob.with_extension("corrupt");
            assert_eq!(aside.symlink_metadata().is_ok(), what != "gone", "{name} {what}");
        }
    }
}

// D-03
#[test]
fn offline_a_damaged_file_is_refused_by_name() {
    for name in ["model.safetensors", "tokenizer.json"] {
        for (what, damage) in DAMAGES {
            let (hub, machine) = filled();
            let before = hub.connections();
            damage(&blob_of(&machine, name));
            let message = cause(&hub_model(), &machine.offline()).to_string();
            assert!(message.contains(name), "{name} {what}: {message}");
            assert_eq!(hub.connections(), before);
        }
    }
}

#[test]
fn a_hub_that_keeps_sending_the_damage_is_given_up() {
    let (hub, machine) = filled();
    fs::write(blob_of(&machine, "tokenizer.json"), b"HELLO\n").unwrap();
    hub.always("GET tokenizer.json", Script::Flip(0));
    assert!(matches!(cause(&hub_model(), &machine.config), Cause::Hash { .. }));
    assert!(!blob_of(&machine, "tokenizer.json").exists());
}

// D-10
#[test]
fn offline_a_complete_cache_serves_without_a_socket() {
    let (hub, machine) = filled();
    let before = hub.connections();
    let folder = obtain(&hub_model(), &machine.offline()).unwrap();
    assert_eq!(folder.revision.as_deref(), Some(COMMIT));
    assert_eq!(source::cached(&hub_model(), &machine.config), Some(folder.clone()));
    assert_eq!(obtain(&hub_model_at(COMMIT, Vec::new()), &machine.offline()).unwrap().path, folder.path);
    assert_eq!(hub.connections(), before);
}

// D-10
#[test]
fn offline_an_incomplete_cache_is_refused_with_what_is_missing() {
    let (hub, machine) = filled();
    let before = hub.connections();
    let snapshot = machine.repository().join("snapshots").join(COMMIT);
    for name in ["model.safetensors", "tokenizer.json", "1_Pooling/config.json"] {
        fs::remove_file(snapshot.join(name)).unwrap();
    }
    assert_eq!(source::cached(&hub_model(), &machine.config), None);
    let why = cause(&hub_model(), &machine.offline());
    let Cause::Offline { missing } = &why else { panic!("{why}") };
    assert_eq!(*missing, ["tokenizer.json", "1_Pooling/config.json", "model.safetensors"]);
    // What was never fetched is named as well.
    let empty = Machine::new(&hub.endpoint());
    let message = cause(&hub_model(), &empty.offline()).to_string();
    assert!(message.contains("o/n at main"), "{message}");
    assert_eq!(hub.connections(), before);
    assert_eq!(empty.files(), Vec::<PathBuf>::new());
}

#[test]
fn an_unreachable_or_failing_hub_leaves_the_cached_snapshot_in_use() {
    let (hub, machine) = filled();
    hub.always("GET info", Script::Status(503));
    assert_eq!(obtain(&hub_model(), &machine.config).unwrap().revision.as_deref(), Some(COMMIT));
    // A refusal is not an outage: the operator's token or spelling is wrong.
    hub.always("GET info", Script::Status(401));
    assert!(matches!(cause(&hub_model(), &machine.config), Cause::Status { status: 401, .. }));
    drop(hub);
    assert_eq!(obtain(&hub_model(), &machine.config).unwrap().revision.as_deref(), Some(COMMIT));
    fs::remove_dir_all(machine.repository()).unwrap();
    assert!(matches!(cause(&hub_model(), &machine.config), Cause::Unreachable { .. }));
}

// D-05, D-10: a new version for which there is no room, and an answer that is no hub's, are no reason not to serve.
#[test]
fn what_keeps_an_update_from_coming_leaves_the_cached_snapshot_in_use() {
    let (hub, machine) = filled();
    hub.move_main_after_first_look();
    obtain(&hub_model(), &machine.config).unwrap();
    hub.set_file("model.safetensors", b"the new weights".to_vec());
    hub.always("HEAD model.safetensors", Script::Length(1 << 60));
    let spec = ModelSpec { max_file_bytes: u64::MAX, ..hub_model() };
    assert_eq!(obtain(&spec, &machine.config).unwrap().revision.as_deref(), Some(COMMIT));
    // A file that is larger than it may be is another matter.
    assert!(matches!(cause(&hub_model(), &machine.config), Cause::TooLarge { .. }));
    hub.always("GET info", Script::Html);
    assert_eq!(obtain(&spec, &machine.config).unwrap().revision.as_deref(), Some(COMMIT));
    hub.always("GET info", Script::Status(407));
    assert_eq!(obtain(&spec, &machine.config).unwrap().revision.as_deref(), Some(COMMIT));
}

#[test]
fn an_interrupted_update_leaves_the_old_snapshot_in_use() {
    let (hub, machine) = filled();
    hub.move_main_after_first_look();
    obtain(&hub_model(), &machine.config).unwrap();
    hub.set_file("model.safetensors", b"the new weights".to_vec());
    hub.always(WEIGHTS, Script::Cut(3));
    let folder = obtain(&hub_model(), &machine.config).unwrap();
    assert_eq!(folder.revision.as_deref(), Some(COMMIT));
    assert_eq!(fs::read_to_string(machine.repository().join("refs/main")).unwrap(), COMMIT);
    hub.always(WEIGHTS, Script::Ok);
    let folder = obtain(&hub_model(), &machine.config).unwrap();
    assert_eq!(folder.revision.as_deref(), Some(NEXT_COMMIT));
    assert_eq!(fs::read(folder.path.join("model.safetensors")).unwrap(), b"the new weights");
}

#[test]
fn a_pinned_commit_in_the_cache_needs_no_network() {
    let (hub, machine) = filled();
    let before = hub.connections();
    let folder = obtain(&hub_model_at(COMMIT, Vec::new()), &machine.config).unwrap();
    assert!(folder.pinned);
    assert_eq!(hub.connections(), before);
}

// D-10: another program fetched single files. What is absent then need not be absent on the Hub.
#[test]
fn a_snapshot_that_others_filled_is_completed() {
    let (hub, machine) = filled();
    let snapshot = machine.repository().join("snapshots").join(COMMIT);
    fs::remove_file(machine.repository().join(format!(".embedserve-complete-{COMMIT}"))).unwrap();
    fs::remove_file(snapshot.join("modules.json")).unwrap();
    // Without a network it serves, and complains.
    assert_eq!(obtain(&hub_model_at(COMMIT, Vec::new()), &machine.offline()).unwrap().path, snapshot);
    assert!(!snapshot.join("modules.json").exists());
    let before = hub.asked_for(WEIGHTS).len();
    assert_eq!(obtain(&hub_model_at(COMMIT, Vec::new()), &machine.config).unwrap().path, snapshot);
    assert_eq!(fs::read(snapshot.join("modules.json")).unwrap(), repository()["modules.json"]);
    assert_eq!(hub.asked_for(WEIGHTS).len(), before, "what is there is not fetched again");
    let before = hub.connections();
    obtain(&hub_model_at(COMMIT, Vec::new()), &machine.config).unwrap();
    assert_eq!(hub.connections(), before);
}

// D-06
#[test]
fn two_loaders_of_one_cache_fetch_each_file_once() {
    let hub = FakeHub::start(repository());
    let machine = Machine::new(&hub.endpoint());
    std::thread::scope(|scope| {
        let loaders = [0, 1, 2].map(|_| scope.spawn(|| obtain(&hub_model(), &machine.config).unwrap()));
        for loader in loaders {
            loader.join().unwrap();
        }
    });
    for name in NEEDED {
        assert_eq!(hub.asked_for(&format!("GET {name}")).len(), 1, "{name}");
    }
}

#[test]
fn a_part_that_is_too_long_or_from_another_time_does_no_harm() {
    let hub = FakeHub::start(repository());
    let machine = Machine::new(&hub.endpoint());
    fs::create_dir_all(machine.repository().join("blobs")).unwrap();
    // Longer than the file: begun anew. Shorter, with other bytes: the hash notices, and it is begun anew.
    let blob = blob_of(&machine, "model.safetensors");
    for stale in [vec![1; 300_000], vec![1; 50_000], vec![1; 200_000]] {
        fs::write(format!("{}.incomplete", blob.display()), stale).unwrap();
        let _ = fs::remove_file(&blob);
        obtain(&hub_model(), &machine.config).unwrap();
        assert_eq!(fs::read(&blob).unwrap(), repository()["model.safetensors"]);
    }
    // A part that is complete, as a crash before the rename leaves it, is used without asking for a byte.
    fs::rename(&blob, format!("{}.incomplete", blob.display())).unwrap();
    let before = hub.asked_for(WEIGHTS).len();
    obtain(&hub_model(), &machine.config).unwrap();
    assert_eq!(hub.asked_for(WEIGHTS).len(), before);
}

// D-05
#[test]
fn a_cache_that_cannot_be_written_is_an_error_with_its_path() {
    let hub = FakeHub::start(repository());
    let machine = Machine::new(&hub.endpoint());
    let file = machine.folder.path().join("file");
    fs::write(&file, b"").unwrap();
    let config = SourceConfig { hub_cache: file.join("hub"), ..machine.config.clone() };
    let why = cause(&hub_model(), &config);
    assert!(matches!(why, Cause::Io { .. }) && why.to_string().contains("file/hub"), "{why}");
}
