//! What is built from what, and what it runs in: the lock file, the calls of cargo, the image, the flags of a release.

use std::path::PathBuf;

use sha2::{Digest as _, Sha256};
use toml::Table;

fn file(name: &str) -> String {
    std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

fn packages() -> Vec<Table> {
    let lock: Table = file("Cargo.lock").parse().unwrap();
    lock["package"].as_array().unwrap().iter().map(|package| package.as_table().unwrap().clone()).collect()
}

// S-02: everything comes from the registry, with a checksum; nothing is built without the lock file.
#[test]
fn inputs_are_locked() {
    let packages = packages();
    assert!(packages.len() > 100, "{} packages", packages.len());
    for package in &packages {
        if package["name"].as_str() == Some(env!("CARGO_PKG_NAME")) {
            continue;
        }
        let source = package["source"].as_str().unwrap();
        assert!(source.starts_with("registry+https://"), "{}: {source}", package["name"]);
        assert_eq!(package["checksum"].as_str().unwrap().len(), 64, "{}", package["name"]);
    }
    for name in [".ci/run", "Dockerfile"] {
        let text = file(name);
        let builds = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        let builds = builds.filter(|line| {
            let calls = ["cargo build", "cargo auditable", "cargo test", "cargo clippy", "cargo doc"];
            calls.iter().any(|call| line.contains(call))
        });
        let builds: Vec<&str> = builds.collect();
        assert!(!builds.is_empty(), "{name} builds nothing");
        for line in builds {
            assert!(line.contains("--locked"), "{name}: {line}");
        }
    }
}

// S-08: what is not there cannot be attacked. The bans of `.deny.toml` say why; they are checked here without a tool.
#[test]
fn banned_crates_are_not_in_the_tree() {
    let bans: Table = file(".deny.toml").parse().unwrap();
    let bans = bans["bans"]["deny"].as_array().unwrap();
    let banned = bans.iter().filter(|ban| ban.get("wrappers").is_none()).map(|ban| ban["crate"].as_str().unwrap());
    let banned: Vec<&str> = banned.chain(["openssl", "pyo3", "pyo3-ffi", "onig", "aws-lc-rs"]).collect();
    assert!(["h2", "openssl-sys", "native-tls"].iter().all(|name| banned.contains(name)), "{banned:?}");
    let present: Vec<String> = packages().iter().map(|package| package["name"].as_str().unwrap().to_owned()).collect();
    let found: Vec<&str> = banned.into_iter().filter(|name| present.iter().any(|other| other == name)).collect();
    assert_eq!(found, [""; 0]);
    // The crate that tests alone may use is no dependency of the server.
    let manifest: Table = file("Cargo.toml").parse().unwrap();
    assert!(manifest["dependencies"].get("reqwest").is_none() && manifest["dev-dependencies"].get("reqwest").is_some());
}

/// The instructions of a stage of the Dockerfile and of the stages that it is built on.
fn stage(dockerfile: &str, name: Option<&str>) -> String {
    let stages: Vec<&str> = dockerfile.split("\nFROM ").skip(1).collect();
    let named = |stage: &&str| name.is_some_and(|name| stage.lines().next().unwrap().ends_with(&format!(" AS {name}")));
    let own = if name.is_some() { stages.iter().copied().find(named) } else { stages.last().copied() };
    let Some(own) = own else { return String::new() };
    let base = own.split_whitespace().next().unwrap();
    stage(dockerfile, Some(base)) + own
}

// S-03: who scans an image finds in the executable which crates it is made of.
#[test]
fn released_executables_list_their_dependencies() {
    let text = file("Dockerfile");
    let builds: Vec<&str> = text.lines().filter(|line| line.contains("build --release")).collect();
    assert!(builds.len() == 2 && builds.iter().all(|line| line.contains("cargo auditable build")), "{builds:?}");
    assert!(text.contains("cargo install --locked --version 0.7.7 cargo-auditable"));
}

// S-04: the images that are shipped, as far as their text says.
#[test]
fn the_images_run_as_nobody_and_fetch_nothing() {
    let text = file("Dockerfile");
    for shipped in [stage(&text, None), stage(&text, Some("cuda"))] {
        let lines = |word: &str| shipped.lines().filter(|line| line.starts_with(word)).collect::<Vec<_>>();
        let [user] = lines("USER")[..] else { panic!("one user: {:?}", lines("USER")) };
        let (user, group) = user["USER ".len()..].split_once(':').unwrap();
        assert!(user.parse::<u32>().unwrap() > 0 && group.parse::<u32>().unwrap() > 0);
        // No shell between the signals of the orchestrator and the server.
        assert_eq!(lines("ENTRYPOINT"), ["ENTRYPOINT [\"embedserve\"]"]);
        for tool in ["apt-get", "pip", "curl", "wget", "ADD "] {
            assert!(!shipped.contains(tool), "{tool}");
        }
    }
}

// The code of GPUs travels compiled: it must be made of the sources beside it. `.ci/emulate-cuda` compiles it again.
#[test]
fn the_kernels_of_gpus_are_made_of_their_sources() {
    let script = file("src/kernel/cuda/device/compile.py");
    let (_, parts) = script.split_once("PARTS = [").unwrap();
    let parts = parts.split_once(']').unwrap().0.split(", ").map(|part| part.trim_matches('"'));
    let sources: String = parts.map(|part| file(&format!("src/kernel/cuda/device/{part}.cu"))).collect();
    let digest = Sha256::digest(sources).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    let ptx = file("src/kernel/cuda/kernels.ptx");
    assert!(ptx.lines().next().unwrap().contains(&digest), "kernels.ptx is stale: run device/compile.py");
}

// S-07: faults on request exist in debug builds alone. S-05: nor does a release depend on the processor that built it.
#[test]
fn a_release_has_no_faults_on_request() {
    let text = file("src/source/fault.rs");
    let (before, after) = text.split_once("#[cfg(debug_assertions)]").unwrap();
    let code = |text: &str| text.lines().filter(|line| !line.starts_with("//")).collect::<Vec<_>>().join("\n");
    assert!(!code(before).contains("EMBEDSERVE_FAULT") && after.contains("EMBEDSERVE_FAULT"));
    assert_eq!(after.matches("fn ").count(), 1, "all of it is behind the switch");
    let manifest: Table = file("Cargo.toml").parse().unwrap();
    assert!(manifest["profile"]["release"].get("debug-assertions").is_none());
    let settings = file(".cargo/config.toml");
    assert!(!settings.contains("target-cpu") && !settings.contains("rustflags"), "{settings}");
}
