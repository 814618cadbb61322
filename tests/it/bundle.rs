//! Models in one file: round trips, and everything that an import must refuse. U-05, U-06, D-05, D-09

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use embedserve::catalog::{ModelSpec, SourceSpec};
use embedserve::config::SourceConfig;
use embedserve::source::bundle::{self, Bundle, BundleError, Import};
use embedserve::source::{self, Cause};
use serde_json::json;

use crate::support::bundles::{HandMade, Member};
use crate::support::fake_hub::{COMMIT, FakeHub, NEXT_COMMIT, etag};
use crate::support::fake_pip::{Behaviour, FakePip, wheel};
use crate::support::sources::{
    ANY, Machine, NEEDED, hex, hub_model, hub_model_at, model, obtain, path, repository, sha256,
};

fn export(specs: &[ModelSpec], output: &Path, config: &SourceConfig) -> Result<Bundle, BundleError> {
    bundle::export(specs, ANY, output, config, &AtomicBool::new(false))
}

/// With no checksum expected and no catalogue.
fn import(bundle: &Path, config: &SourceConfig) -> Result<Bundle, BundleError> {
    import_with(bundle, config, &[])
}

fn import_with(bundle: &Path, config: &SourceConfig, catalogue: &[ModelSpec]) -> Result<Bundle, BundleError> {
    bundle::import(Import { bundle, sha256: None, catalogue, config, stop: &AtomicBool::new(false) })
}

/// A machine that was never online.
fn airless() -> Machine {
    let mut machine = Machine::new("http://127.0.0.1:9");
    machine.config = machine.offline();
    machine
}

/// A hub, a machine that exported `o/n` from it, and where the bundle lies.
fn exported() -> (FakeHub, Machine, PathBuf) {
    let hub = FakeHub::start(repository());
    let machine = Machine::new(&hub.endpoint());
    let output = machine.folder.path().join("models.bundle");
    export(&[hub_model()], &output, &machine.config).unwrap();
    (hub, machine, output)
}

fn scratch(machine: &Machine) -> bool {
    [&machine.config.hub_cache, &machine.config.wheel_cache]
        .iter()
        .any(|cache| cache.join(".embedserve-import").exists())
}

#[test]
fn what_is_exported_is_served_offline_elsewhere() {
    let (hub, machine, output) = exported();
    let before = hub.connections();
    let there = airless();
    let read = import(&output, &there.config).unwrap();
    let folder = obtain(&hub_model(), &there.config).unwrap();
    assert_eq!((read.models[0].id.as_str(), &read.models[0].path), ("o/n", &folder.path));
    assert_eq!(folder.revision.as_deref(), Some(COMMIT));
    for name in NEEDED {
        assert_eq!(fs::read(folder.path.join(name)).unwrap(), repository()[name], "{name}");
    }
    // In the shared layout, link by link as a download leaves it, and by commit too.
    let link =
        |machine: &Machine| fs::read_link(machine.repository().join("snapshots").join(COMMIT).join("config.json"));
    assert_eq!(link(&there).unwrap(), link(&machine).unwrap());
    assert_eq!(
        source::cached(&hub_model_at(COMMIT, Vec::new()), &there.config).map(|folder| folder.path),
        Some(folder.path)
    );
    assert_eq!(hub.connections(), before);
    // The checksum beside it is that of the bytes, in the form that sha256sum reads.
    let sum = fs::read_to_string(output.with_extension("bundle.sha256")).unwrap();
    assert_eq!(sum, format!("{}  models.bundle\n", hex(&fs::read(&output).unwrap())));
    assert_eq!(read.sha256, sum[..64]);
    assert!(!scratch(&there));
}

#[test]
fn equal_models_give_equal_bundles_and_a_second_import_changes_nothing() {
    let (_hub, machine, output) = exported();
    let again = machine.folder.path().join("again");
    export(&[hub_model()], &again, &machine.offline()).unwrap();
    assert!(fs::read(&output).unwrap() == fs::read(&again).unwrap());

    let there = airless();
    let first = import(&output, &there.config).unwrap();
    let state = |machine: &Machine| -> Vec<(PathBuf, std::time::SystemTime)> {
        let mut files = machine.files();
        files.sort();
        files.into_iter().map(|file| (file.clone(), file.metadata().unwrap().modified().unwrap())).collect()
    };
    let before = state(&there);
    assert_eq!(import(&output, &there.config).unwrap(), first);
    assert_eq!(state(&there), before);
}

#[test]
fn an_import_repairs_what_is_damaged_and_moves_the_branch() {
    let (_hub, _machine, output) = exported();
    let hub = FakeHub::start(repository());
    let there = Machine::new(&hub.endpoint());
    hub.move_main_after_first_look();
    obtain(&hub_model(), &there.config).unwrap();
    assert_eq!(obtain(&hub_model(), &there.config).unwrap().revision.as_deref(), Some(NEXT_COMMIT));
    let blob = there.blob(&etag("model.safetensors", &repository()["model.safetensors"]));
    fs::write(&blob, b"damaged").unwrap();
    import(&output, &there.config).unwrap();
    assert_eq!(obtain(&hub_model(), &there.offline()).unwrap().revision.as_deref(), Some(COMMIT));
    assert_eq!(fs::read(blob.with_extension("corrupt")).unwrap(), b"damaged");
}

#[test]
fn several_models_travel_together_and_what_is_cached_elsewhere_is_not_asked_for() {
    let (hub, machine, _) = exported();
    let other = {
        let mut spec = hub_model_at(NEXT_COMMIT, Vec::new());
        spec.id = "o/n@next".to_owned();
        spec
    };
    hub.move_main_after_first_look();
    obtain(&hub_model(), &machine.config).unwrap();
    let output = machine.folder.path().join("both");
    // The second is fetched for the bundle.
    export(&[hub_model_at(COMMIT, Vec::new()), other.clone()], &output, &machine.config).unwrap();
    let there = airless();
    assert_eq!(import(&output, &there.config).unwrap().models.len(), 2);
    obtain(&other, &there.config).unwrap();
    obtain(&hub_model_at(COMMIT, Vec::new()), &there.config).unwrap();
}

#[test]
fn a_conversion_is_carried_along() {
    let mut pickled = repository();
    pickled.remove("model.safetensors");
    let hub = FakeHub::start(pickled);
    hub.branch("refs/pr/4", NEXT_COMMIT, repository());
    hub.discussions(
        r#"{"discussions": [{"num": 4, "author": {"name": "SFconvertbot"}, "status": "open", "isPullRequest": true,
            "title": "Adding `safetensors` variant of this model"}]}"#,
    );
    let machine = Machine::new(&hub.endpoint());
    let output = machine.folder.path().join("bundle");
    export(&[hub_model()], &output, &machine.config).unwrap();
    let there = airless();
    import(&output, &there.config).unwrap();
    assert_eq!(obtain(&hub_model(), &there.config).unwrap().revision.as_deref(), Some(NEXT_COMMIT));
}

#[test]
fn a_wheels_model_travels_where_the_catalogue_knows_the_wheel() {
    let files = repository();
    let members: Vec<(String, &[u8])> =
        files.iter().map(|(name, bytes)| (format!("pkg/model/{name}"), bytes.as_slice())).collect();
    let members: Vec<(&str, &[u8])> = members.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
    let archive = wheel(&members);
    let spec = |sha256, members| {
        let (package, version) = ("some-pkg".to_owned(), "1.0".to_owned());
        model(vec![SourceSpec::Wheel { package, version, sha256, folder: path("pkg/model"), members }])
    };
    let good = spec(sha256(&archive), Vec::new());
    let pip = FakePip::new(Behaviour::Ok(&archive));
    let mut machine = Machine::new("http://127.0.0.1:9");
    machine.config.pip = pip.command();
    let output = machine.folder.path().join("bundle");
    export(std::slice::from_ref(&good), &output, &machine.config).unwrap();

    let there = airless();
    let stranger = spec(sha256(b"another wheel"), Vec::new());
    let pinned = spec(sha256(&archive), vec![(path("config.json"), sha256(b"another config"))]);
    assert!(matches!(import(&output, &there.config), Err(BundleError::Refused { .. })));
    assert!(matches!(import_with(&output, &there.config, &[stranger]), Err(BundleError::Refused { .. })));
    let pin = import_with(&output, &there.config, &[pinned]);
    assert!(matches!(pin, Err(BundleError::Cause(Cause::Hash { .. }))), "{pin:?}");
    assert_eq!(there.files(), Vec::<PathBuf>::new());
    for _ in 0..2 {
        let read = import_with(&output, &there.config, std::slice::from_ref(&good)).unwrap();
        assert_eq!(obtain(&good, &there.config).unwrap().path, read.models[0].path);
    }
    // A damaged folder is set aside and replaced.
    let placed = source::cached(&good, &there.config).unwrap().path;
    fs::write(placed.join("config.json"), b"damaged").unwrap();
    import_with(&output, &there.config, std::slice::from_ref(&good)).unwrap();
    obtain(&good, &there.config).unwrap();
    assert!(!scratch(&there));
}

#[test]
fn an_export_needs_complete_and_sound_models_and_leaves_nothing_half_written() {
    let output = |machine: &Machine| machine.folder.path().join("out");
    let empty = airless();
    let why = export(&[hub_model()], &output(&empty), &empty.config).unwrap_err();
    assert!(matches!(why, BundleError::Source(_)) && why.to_string().contains("offline"), "{why}");

    let (hub, machine, bundle) = exported();
    let kept = fs::read(&bundle).unwrap();
    fs::write(machine.blob(&etag("config.json", &repository()["config.json"])), b"damaged").unwrap();
    fs::write(machine.blob(&etag("model.safetensors", &repository()["model.safetensors"])), b"damaged").unwrap();
    let why = export(&[hub_model()], &bundle, &machine.offline()).unwrap_err();
    assert!(why.to_string().contains("model.safetensors"), "{why}");
    assert!(fs::read(&bundle).unwrap() == kept, "the older bundle stays");
    drop(hub);

    let (_hub, machine, _) = exported();
    let snapshot = machine.repository().join("snapshots").join(COMMIT);
    let directory = model(vec![SourceSpec::Directory { path: snapshot }]);
    assert!(matches!(export(&[directory], &output(&machine), &machine.config), Err(BundleError::Directory { .. })));
    let nowhere = machine.folder.path().join("no/such/folder/out");
    let why = export(&[hub_model()], &nowhere, &machine.config).unwrap_err();
    assert!(why.to_string().contains("no/such/folder"), "{why}");
    // Twice the same is a slip, and would not be accepted.
    assert!(matches!(
        export(&[hub_model(), hub_model()], &output(&machine), &machine.config),
        Err(BundleError::Refused { .. })
    ));
    assert!(!machine.folder.path().join("out").exists() && !machine.folder.path().join("out.incomplete").exists());
}

/// Imports bytes that must be refused; nothing may be left.
fn refused(bytes: &[u8]) -> BundleError {
    let there = airless();
    let bundle = there.folder.path().join("hostile");
    fs::write(&bundle, bytes).unwrap();
    let why = import(&bundle, &there.config).expect_err("a hostile bundle was accepted");
    assert_eq!(there.files(), [bundle], "{why}");
    assert!(!scratch(&there) && !there.repository().exists(), "{why}");
    assert!(!why.to_string().contains('\n') && why.to_string().len() < 1_000, "{why}");
    why
}

fn refused_after(change: impl FnOnce(&mut HandMade)) -> BundleError {
    let mut bundle = HandMade::honest();
    change(&mut bundle);
    refused(&bundle.bytes())
}

#[test]
fn the_honest_bundle_by_hand_is_accepted() {
    let there = airless();
    let bundle = there.folder.path().join("honest");
    fs::write(&bundle, HandMade::honest().bytes()).unwrap();
    import(&bundle, &there.config).unwrap();
    obtain(&hub_model(), &there.config).unwrap();
    // By the exporter's own hand it is the same, but for who made it.
    let (_hub, _machine, output) = exported();
    let text = String::from_utf8_lossy(&fs::read(output).unwrap()).into_owned();
    assert!(text.contains("\"made_by\": \"embedserve "));
}

// U-06, D-09
#[test]
fn members_other_than_those_announced_are_refused() {
    type Change = fn(&mut Vec<Member>);
    let changes: [(&str, Change); 14] = [
        ("an unknown member at the end", |members| members.push(Member::file("0/evil.py", b"x"))),
        ("an unknown member in between", |members| members.insert(1, Member::file("../../evil", b"x"))),
        ("a member that comes twice", |members| members.insert(1, members[0].clone())),
        ("another order", |members| members.swap(0, 1)),
        ("a member that is missing", |members| drop(members.remove(2))),
        ("the last member missing", |members| drop(members.pop())),
        ("a parent folder", |members| members[0].name = "../config.json".to_owned()),
        ("an absolute name", |members| members[0].name = "/etc/passwd".to_owned()),
        ("another model's number", |members| members[0].name = "1/config.json".to_owned()),
        ("a symbolic link", |members| members[0].kind = b'2'),
        ("a hard link", |members| members[0].kind = b'1'),
        ("a folder", |members| members[0].kind = b'5'),
        ("a longer size", |members| members[0].size += 1),
        ("a shorter size", |members| members[0].size -= 1),
    ];
    for (what, change) in changes {
        let why = refused_after(|bundle| change(&mut bundle.members));
        assert!(matches!(why, BundleError::Refused { .. }), "{what}: {why}");
    }
}

#[test]
fn content_that_is_not_what_the_manifest_says_is_refused() {
    let why = refused_after(|bundle| bundle.file("model.safetensors").1.bytes[100_000] ^= 1);
    assert!(matches!(why, BundleError::Cause(Cause::Hash { .. })), "{why}");
    let why = refused_after(|bundle| bundle.file("config.json").0["sha256"] = json!(hex(b"other")));
    assert!(matches!(why, BundleError::Cause(Cause::Hash { .. })), "{why}");
    // Consistent in itself, but not what the name of the blob promises: SHA-256 of large files, git's of small ones.
    for name in ["model.safetensors", "tokenizer.json"] {
        let why = refused_after(|bundle| {
            let (entry, member) = bundle.file(name);
            member.bytes[0] ^= 1;
            entry["sha256"] = json!(hex(&member.bytes));
        });
        assert!(matches!(why, BundleError::Cause(Cause::Hash { .. })), "{name}: {why}");
    }
    for size in [1, 400_000_u64] {
        let why = refused_after(|bundle| bundle.file("model.safetensors").0["size"] = json!(size));
        assert!(matches!(why, BundleError::Refused { .. }), "{why}");
    }
    // Both header and manifest lie alike: the next member does not begin there.
    let why = refused_after(|bundle| {
        let (entry, member) = bundle.file("config.json");
        entry["size"] = json!(2_000);
        member.size = 2_000;
    });
    assert!(matches!(why, BundleError::Refused { .. } | BundleError::Cause(Cause::Hash { .. })), "{why}");
}

#[test]
fn truncation_padding_and_garbage_are_refused() {
    let honest = HandMade::honest().bytes();
    let ends = [0, 1, 511, 512, 600, 1_024, 3_000, honest.len() - 1_025, honest.len() - 1_024, honest.len() - 1];
    for end in ends {
        assert!(matches!(refused(&honest[..end]), BundleError::Refused { .. }), "{end}");
    }
    for end in (0..honest.len()).step_by(honest.len() / 25) {
        refused(&honest[..end]);
    }
    for tail in [vec![0; 1_025], vec![0; 512], [vec![0; 1_024], b"more".to_vec()].concat(), vec![1; 1_024], Vec::new()]
    {
        let why = refused_after(|bundle| bundle.tail = tail);
        assert!(matches!(why, BundleError::Refused { .. }), "{why}");
    }
    // Two bundles in one file.
    refused(&[honest.clone(), honest.clone()].concat());
    // Something hidden in the padding behind the first file.
    let at = honest.windows(14).position(|window| window == b"0/config.json\0").unwrap();
    let mut hidden = honest.clone();
    hidden[at + 512 + repository()["config.json"].len() + 3] = 7;
    assert!(refused(&hidden).to_string().contains("padding"));
    for foreign in [b"PK\x03\x04 a zip".to_vec(), b"\x1f\x8b gzip".to_vec(), vec![0; 4_096], Vec::new()] {
        assert!(matches!(refused(&foreign), BundleError::Refused { .. }));
    }
}

#[test]
fn manifests_that_promise_too_much_or_the_unknown_are_refused() {
    type Change = fn(&mut HandMade);
    let why = refused_after(|bundle| bundle.manifest["format"] = json!(2));
    assert!(matches!(why, BundleError::Format { found: 2, .. }), "{why}");
    let changes: [(&str, Change); 16] = [
        ("an unknown key", |b| b.manifest["hook"] = json!("rm -rf")),
        ("an unknown key of a file", |b| b.files()[0]["mode"] = json!(0o4777)),
        ("an unknown kind of source", |b| b.manifest["models"][0]["source"]["kind"] = json!("directory")),
        ("an unknown key of a source", |b| b.manifest["models"][0]["source"]["path"] = json!("/")),
        ("no models", |b| b.manifest["models"] = json!([])),
        ("no files", |b| b.files().clear()),
        ("a negative size", |b| b.files()[0]["size"] = json!(-1)),
        ("a size beyond the limit", |b| b.files()[0]["size"] = json!(1_u64 << 40)),
        ("too many files", |b| {
            let first = b.files()[0].clone();
            b.files().resize(1_001, first);
        }),
        ("the same file twice", |b| {
            let first = b.files()[0].clone();
            b.files().push(first);
        }),
        ("twins on some file systems", |b| b.add("CONFIG.json", b"{}")),
        ("a branch that is a commit, but another", |b| {
            b.manifest["models"][0]["source"]["revision"] = json!(NEXT_COMMIT);
        }),
        ("a commit that is none", |b| b.manifest["models"][0]["source"]["commit"] = json!("main")),
        ("a conversion of another commit", |b| {
            b.manifest["models"][0]["source"]["conversion"] =
                json!({"base": COMMIT, "number": 1, "commit": NEXT_COMMIT});
        }),
        ("a conversion of another branch", |b| {
            b.manifest["models"][0]["source"]["revision"] = json!("v1");
            b.manifest["models"][0]["source"]["conversion"] =
                json!({"base": NEXT_COMMIT, "number": 1, "commit": COMMIT});
        }),
        ("the same model twice", |b| {
            let first = b.manifest["models"][0].clone();
            b.manifest["models"].as_array_mut().unwrap().push(first);
        }),
    ];
    for (what, change) in changes {
        let why = refused_after(change);
        assert!(matches!(why, BundleError::Refused { .. }), "{what}: {why}");
    }
    // Larger than a manifest may be, in its header already.
    let mut huge = Member::file("manifest.json", b"{}");
    huge.size = 5 << 20;
    assert!(matches!(refused(&huge.bytes()), BundleError::Refused { .. }));
}

// U-06, D-09
#[test]
fn hostile_names_in_a_manifest_are_refused() {
    let long = "x/".repeat(2_500);
    for name in ["../../evil", "/etc/evil", "a\\b", "a\0b", "C:\\evil", "a//b", "\u{1b}[2J", "", long.as_str()] {
        let why = refused_after(|bundle| bundle.files()[0]["name"] = json!(name));
        assert!(matches!(why, BundleError::Cause(Cause::Name(_))), "{name:?}: {why}");
        assert!(!why.to_string().contains('\u{1b}'), "{why:?}");
    }
    for (key, value) in [("repo", "../../x"), ("repo", "o"), ("revision", "../../x"), ("commit", "../../x")] {
        let why = refused_after(|bundle| bundle.manifest["models"][0]["source"][key] = json!(value));
        assert!(matches!(why, BundleError::Cause(Cause::Name(_))), "{key} {value}: {why}");
    }
    for (key, value) in [("etag", "../../x"), ("etag", ""), ("sha256", "zz"), ("sha256", "../../x")] {
        let why = refused_after(|bundle| bundle.files()[0][key] = json!(value));
        assert!(matches!(why, BundleError::Cause(Cause::Name(_))), "{key} {value}: {why}");
    }
}

// U-05
#[test]
fn only_the_files_of_a_model_are_accepted() {
    for name in ["modeling_custom.py", "pytorch_model.bin", "README.md", "onnx/model.onnx", "tokenizer.model"] {
        let why = refused_after(|bundle| bundle.add(name, b"import os"));
        assert!(why.to_string().contains("no model consists of such a file"), "{name}: {why}");
    }
    let without = |name: &str| {
        refused_after(|bundle| {
            bundle.files().retain(|file| file["name"] != name);
            bundle.members.retain(|member| member.name != format!("0/{name}"));
        })
    };
    for name in ["config.json", "tokenizer.json", "1_Pooling/config.json", "model.safetensors"] {
        let why = without(name);
        assert!(matches!(why, BundleError::Cause(Cause::Missing { .. })), "{name}: {why}");
    }
    let why = refused_after(|bundle| {
        let (entry, member) = bundle.file("model.safetensors");
        entry["name"] = json!("pytorch_model.bin");
        entry["etag"] = json!("tag");
        member.name = "0/pytorch_model.bin".to_owned();
    });
    assert!(matches!(why, BundleError::Cause(Cause::Weights { .. })), "{why}");
}

// D-05
#[test]
fn a_bundle_larger_than_the_disk_is_refused_before_a_file_is_written() {
    let why = refused_after(|bundle| {
        for number in 0..900 {
            let entry = json!({"name": format!("f{number}"), "size": 16_u64 << 30, "sha256": hex(b""), "etag": null});
            bundle.files().insert(0, entry);
        }
    });
    let BundleError::Cause(Cause::Space { needed, .. }) = why else { panic!("{why}") };
    assert!(needed > 900 * (16 << 30), "{needed}");
}

#[test]
fn a_bundle_that_was_changed_on_the_way_does_not_match_its_checksum() {
    let (_hub, machine, output) = exported();
    let good = fs::read(&output).unwrap();
    let there = airless();
    let wrong = sha256(b"something else");
    let by_flag = Import {
        bundle: &output,
        sha256: Some(&wrong),
        catalogue: &[],
        config: &there.config,
        stop: &AtomicBool::new(false),
    };
    let why = bundle::import(by_flag).unwrap_err();
    assert!(matches!(&why, BundleError::Changed { expected, .. } if expected == wrong.as_str()), "{why}");
    // A byte anywhere, in the manifest's harmless words too.
    for at in (0..good.len()).step_by(good.len() / 40) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&output, bad).unwrap();
        import(&output, &there.config).unwrap_err();
    }
    assert_eq!(there.files(), Vec::<PathBuf>::new());
    fs::write(&output, &good).unwrap();
    fs::write(machine.folder.path().join("models.bundle.sha256"), "no checksum").unwrap();
    assert!(matches!(import(&output, &there.config), Err(BundleError::Cause(Cause::Name(_)))));
}

#[test]
fn stop_ends_an_import_and_nothing_remains() {
    let (_hub, _machine, output) = exported();
    let there = airless();
    let stop = AtomicBool::new(true);
    let stopped = Import { bundle: &output, sha256: None, catalogue: &[], config: &there.config, stop: &stop };
    assert!(matches!(bundle::import(stopped), Err(BundleError::Cause(Cause::Stopped))));
    assert_eq!(there.files(), Vec::<PathBuf>::new());
    assert!(!scratch(&there));
}
