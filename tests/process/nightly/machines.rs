//! Other machines than this one: an old processor, a small share of a large one, little memory, a small disk.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{BODY, needs};
use crate::downloads::pull;
use crate::operation::{announced_mebibytes, full_batches, three_models};
use crate::server::{Server, embedserve, run, through};
use crate::support::fake_hub::FakeHub;
use crate::support::sources::repository;
use crate::support::tiny_model::TinyModel;

fn vector(server: &Server) -> Vec<f64> {
    let (status, body) = server.embed(BODY);
    assert_eq!(status, 200, "{body}");
    let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
    answer["data"][0]["embedding"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

// N-09: Intel's Nehalem of 2008 has neither AVX nor fused multiply-adds.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_processor_without_vector_extensions_gives_the_same_vectors() {
    needs("qemu-x86_64-static", "qemu-user-static");
    let folder = TinyModel::default().write();
    let choice = format!("dir:{}", folder.path().display());
    let command = || embedserve(&["--model", &choice, "--served-model-name", "tiny"]);
    let mut old = Server::spawn(through(&["qemu-x86_64-static", "-cpu", "Nehalem"], &command()));
    assert!(old.wait_for_log("model loaded").contains("kernels=portable"), "{}", old.log());
    let new = Server::spawn(command());
    old.wait_until_ready();
    new.wait_until_ready();
    let (old, new) = (vector(&old), vector(&new));
    let worst = old.iter().zip(&new).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(old.len() == new.len() && worst < 1e-6, "{worst:e}");
}

/// A control group of its own, removed when dropped. Only a hierarchy that this user may write has any.
struct Group {
    folder: PathBuf,
}

impl Group {
    /// With a file and its value, as in version 1 and as in version 2.
    fn new(controller: &str, old: (&str, String), new: (&str, String)) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let root = PathBuf::from("/sys/fs/cgroup");
        let is_unified = root.join("cgroup.controllers").exists();
        let parent = if is_unified { root } else { root.join(controller) };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = parent.join(format!("embedserve-test-{}-{number}", std::process::id()));
        let because =
            |error| panic!("no control group can be made here, this takes root: {}: {error}", folder.display());
        std::fs::create_dir(&folder).unwrap_or_else(because);
        let (name, value) = if is_unified { new } else { old };
        std::fs::write(folder.join(name), value).unwrap();
        Self { folder }
    }

    /// The command inside the group.
    fn inside(&self, command: &Command) -> Command {
        let enter = format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", self.folder.display());
        through(&["/bin/sh", "-c", &enter], command)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Empty a moment after its last process has ended.
        let gone = || std::fs::remove_dir(&self.folder).is_ok();
        let _ = (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            gone()
        });
    }
}

// L-10
#[test]
fn threads_follow_the_quota_of_the_control_group() {
    // Whole cores: a thread that the quota stops in the middle of a batch holds up the others.
    for (quota, expected) in [("50000", 1.0_f64), ("100000", 1.0), ("150000", 1.0), ("200000", 2.0)] {
        // The period of version 1 is the default of 100 ms.
        let group = Group::new("cpu", ("cpu.cfs_quota_us", quota.to_owned()), ("cpu.max", format!("{quota} 100000")));
        let threads = three_models(&[], |command| group.inside(&command));
        let cores = std::thread::available_parallelism().unwrap().get() as f64;
        assert!((threads - expected.min(cores)).abs() < 1e-9, "{threads} threads for a quota of {quota}");
    }
}

// M-05, M-03: what was announced is enough for the fullest batches, and less is refused instead of killed later.
#[test]
fn the_announced_memory_is_enough_and_less_is_refused() {
    let model = TinyModel { hidden: 256, layers: 4, positions: 512, ..TinyModel::default() };
    let folder = model.write();
    let choice = format!("dir:{}", folder.path().display());
    let flags = ["--model", &choice, "--served-model-name", "tiny", "--max-batch-tokens", "16384"];
    let command = embedserve(&flags);
    let announced = announced_mebibytes(&mut Server::spawn(embedserve(&flags)));
    let limited = |mebibytes: u64| {
        let bytes = (mebibytes << 20).to_string();
        Group::new("memory", ("memory.limit_in_bytes", bytes.clone()), ("memory.max", bytes))
    };
    let group = limited(announced + 1);
    let server = Server::spawn(group.inside(&command));
    server.wait_until_ready();
    full_batches(&server);
    assert_eq!(server.embed(BODY).0, 200, "{}", server.log());
    drop(server);

    let group = limited(announced - 1);
    let refused = run(group.inside(&command).env("PORT", "0"));
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    let numbers = format!("{} MiB may be used", announced - 1);
    assert!(refused.stderr.contains(&numbers), "{}", refused.stderr);
}

// D-05
#[test]
fn a_small_disk_is_told_apart_before_the_download_and_kept_clean() {
    needs("unshare", "util-linux");
    let hub = FakeHub::start(repository());
    let cache = tempfile::tempdir().unwrap();
    let place = cache.path().display();
    // Its own mount goes with the process: what is left on it has to be looked at inside.
    let script = format!(
        "mount -t tmpfs -o size=100k none {place} && \"$0\" \"$@\"; code=$?; find {place} -type f -size +0; exit $code"
    );
    let mut command = pull(cache.path(), "o/n", &[]);
    command.env("HF_ENDPOINT", hub.endpoint());
    let finished = run(&mut through(&["unshare", "-m", "/bin/sh", "-c", &script], &command));
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    let path = cache.path().join("models--o--n/blobs").display().to_string();
    assert!(
        finished.stderr.contains(&path) && finished.stderr.contains("200000 bytes are needed"),
        "{}",
        finished.stderr
    );
    assert!(hub.asked_for("GET model.safetensors").is_empty());
    assert!(!finished.stdout.contains("incomplete"), "{}", finished.stdout);
}
