//! Models brought here before they are served: `models pull`, `bundle export`, `bundle import`, then no network at all.

use std::path::Path;
use std::process::Command;

use crate::server::{Server, embedserve, run};
use crate::support::fake_hub::{FakeHub, Script};
use crate::support::sources::{NEEDED, hex, repository};
use crate::support::tiny_model::TinyModel;

fn command(cache: &Path, arguments: &[&str], hub: Option<&FakeHub>) -> Command {
    let mut command = embedserve(&[arguments, &["--cache-dir", cache.to_str().unwrap()]].concat());
    // A hub that is not there: whoever asks it anything fails.
    command.env("HF_ENDPOINT", hub.map_or("http://127.0.0.1:9".to_owned(), FakeHub::endpoint));
    command
}

// D-10
#[test]
fn a_tiny_model_goes_through_a_bundle_and_is_served_offline() {
    let tiny = TinyModel::default().write();
    let hub =
        FakeHub::start(NEEDED.map(|name| (name.to_owned(), std::fs::read(tiny.path().join(name)).unwrap())).into());
    let here = tempfile::tempdir().unwrap();
    let bundle = here.path().join("tiny.bundle");
    let output = bundle.to_str().unwrap();
    // Into the current folder, by a bare name.
    let mut export = command(here.path(), &["bundle", "export", "o/n", "--output", "tiny.bundle"], Some(&hub));
    let finished = run(export.current_dir(here.path()));
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let sum = hex(&std::fs::read(&bundle).unwrap());
    assert_eq!(finished.stdout, format!("{sum}  tiny.bundle\n"));
    assert_eq!(std::fs::read_to_string(here.path().join("tiny.bundle.sha256")).unwrap(), finished.stdout);

    // A device, a link or a folder is not replaced by a file, nor is one of the names beside it.
    std::os::unix::fs::symlink("/dev/null", here.path().join("link")).unwrap();
    for (name, occupied) in [("folder", "folder"), ("a", "a.sha256"), ("b", "b.incomplete"), ("link", "link")] {
        let path = here.path().join(occupied);
        if occupied != "link" {
            std::fs::create_dir_all(path.join("within")).unwrap();
        }
        let output = here.path().join(name);
        let arguments = ["bundle", "export", "o/n", "--output", output.to_str().unwrap()];
        let finished = run(&mut command(here.path(), &arguments, None));
        assert_eq!(finished.code, Some(1), "{name}");
        assert!(finished.stderr.contains("no regular file"), "{}", finished.stderr);
        assert!(path.join("within").is_dir() || path.is_symlink(), "{occupied} is as it was");
    }

    let there = tempfile::tempdir().unwrap();
    let import = |more: &[&str]| run(&mut command(there.path(), &[&["bundle", "import", output], more].concat(), None));
    let finished = import(&["--sha256", &"0".repeat(64)]);
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains(&sum), "{}", finished.stderr);
    assert_eq!(import(&["--sha256", "x"]).code, Some(64));
    let finished = run(&mut command(there.path(), &["bundle", "import", "/no/such/bundle"], None));
    assert_eq!(finished.stderr.matches("No such file").count(), 1, "{}", finished.stderr);
    for _ in 0..2 {
        let finished = import(&["--sha256", &sum]);
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        assert!(finished.stdout.starts_with("o/n  ") && finished.stdout.lines().count() == 1, "{}", finished.stdout);
    }
    let asked = hub.connections();
    let server = Server::spawn(command(there.path(), &["--model", "o/n", "--offline"], Some(&hub)));
    server.wait_until_ready();
    let (status, body) = server.embed(r#"{"model":"o/n","input":"hello world"}"#);
    assert_eq!(status, 200, "{body}");
    let original = Server::start(tiny.path(), &[]);
    original.wait_until_ready();
    let vector = |body: &str| serde_json::from_str::<serde_json::Value>(body).unwrap()["data"][0]["embedding"].clone();
    assert_eq!(vector(&body), vector(&original.embed(r#"{"model":"tiny","input":"hello world"}"#).1));
    assert_eq!(hub.connections(), asked, "offline means without a socket");
}

// D-01
#[test]
fn a_crash_at_any_point_of_an_import_leaves_a_cache_that_the_next_one_completes() {
    let hub = FakeHub::start(repository());
    let here = tempfile::tempdir().unwrap();
    let bundle = here.path().join("bundle");
    let output = bundle.to_str().unwrap();
    let finished = run(&mut command(here.path(), &["bundle", "export", "o/n", "-o", output], Some(&hub)));
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let points = [
        "between_members:4",
        "before_create:3",
        "before_fsync:2",
        "before_rename:2",
        "after_rename:6",
        "before_link:3",
        "before_link:6",
        "before_ref",
    ];
    for point in points {
        let there = tempfile::tempdir().unwrap();
        let import = || command(there.path(), &["bundle", "import", output], None);
        assert_eq!(run(import().env("EMBEDSERVE_FAULT", point)).code, None, "{point} was not reached");
        let blobs = std::fs::read_dir(there.path().join("models--o--n/blobs")).into_iter().flatten();
        for blob in blobs.map(|entry| entry.unwrap().path()) {
            let bytes = std::fs::read(&blob).unwrap();
            assert!(repository().values().any(|file| *file == bytes), "{point}: partial file: {}", blob.display());
        }
        let finished = run(&mut import());
        assert_eq!(finished.code, Some(0), "after {point}: {}", finished.stderr);
        let folder = run(&mut command(there.path(), &["models", "pull", "o/n", "--offline"], None));
        assert_eq!(folder.code, Some(0), "after {point}: {}", folder.stderr);
        for name in NEEDED {
            assert_eq!(
                std::fs::read(Path::new(folder.stdout.trim()).join(name)).unwrap(),
                repository()[name],
                "{name}"
            );
        }
        assert!(!there.path().join(".embedserve-import").exists(), "{point}");
    }
}

#[test]
fn a_model_that_cannot_be_pulled_costs_one_line_and_the_exit_code() {
    let hub = FakeHub::start(repository());
    let cache = tempfile::tempdir().unwrap();
    hub.script("GET info", [Script::Ok, Script::Status(404), Script::Ok]);
    let finished = run(&mut command(cache.path(), &["models", "pull", "o/a", "o/b", "o/c"], Some(&hub)));
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    let folders: Vec<&str> = finished.stdout.lines().collect();
    assert!(folders.len() == 2 && folders[0].contains("models--o--a") && folders[1].contains("models--o--c"));
    let complaints: Vec<&str> = finished.stderr.lines().filter(|line| line.starts_with("embedserve: ")).collect();
    assert!(complaints[0].contains("cannot fetch o/b") && complaints[0].contains("404"), "{complaints:?}");
    assert_eq!(complaints[1..], ["embedserve: 2 of 3 models are complete"]);
    let finished = run(&mut command(cache.path(), &["models", "pull", "o/a", "o/b", "o/c"], Some(&hub)));
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let help = run(&mut embedserve(&["models", "pull", "--help"])).stdout;
    assert!(help.contains("Exit codes: 0") && help.contains("1 at least one is not"), "{help}");
}

#[test]
fn a_revision_is_pulled_for_one_model_and_slips_cost_nothing() {
    let hub = FakeHub::start(repository());
    let commit = "3".repeat(40);
    hub.branch("refs/pr/2", &commit, repository());
    let cache = tempfile::tempdir().unwrap();
    let pull =
        |arguments: &[&str]| run(&mut command(cache.path(), &[&["models", "pull"], arguments].concat(), Some(&hub)));
    for slip in
        [&["o/n", "bge-enormous"][..], &["o/n", "o/m", "--revision", "main"], &["o/n", "--revision", "../x"], &[]]
    {
        assert_eq!(pull(slip).code, Some(64), "{slip:?}");
    }
    assert_eq!(hub.connections(), 0);
    let finished = pull(&["o/n", "--revision", "refs/pr/2"]);
    assert!(finished.stdout.contains(&commit), "{} {}", finished.stdout, finished.stderr);
    assert_eq!(pull(&["o/n@refs/pr/2", "--offline"]).stdout, finished.stdout);
}
