//! `models verify` by its exit code: right weights pass, one wrong weight does not.

use std::path::{Path, PathBuf};

use crate::server::{Finished, embedserve, run};
use crate::support::fake_hub::FakeHub;
use crate::support::tiny_model::TinyModel;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn verify(folder: &Path, reference: &Path) -> Finished {
    let (model, reference) = (format!("dir:{}", folder.display()), reference.to_str().unwrap());
    run(&mut embedserve(&["models", "verify", &model, "--reference", reference]))
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

#[test]
fn a_wrong_weight_makes_it_exit_1() {
    let reference = golden("mpnet-mean-normalize.json");
    let copied = tempfile::tempdir().unwrap();
    copy(&golden("models/mpnet-mean-normalize"), copied.path());
    let right = verify(copied.path(), &reference);
    assert_eq!(right.code, Some(0), "{}{}", right.stdout, right.stderr);
    assert!(right.stdout.contains("  ok  (mpnet-mean-normalize.json)"), "{}", right.stdout);
    assert!(right.stdout.contains("no second implementation"), "{}", right.stdout);

    // The sign of one weight in a hundred, behind the header.
    let path = copied.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = 8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    for value in bytes[header..].chunks_exact_mut(4).step_by(100) {
        value[3] ^= 0x80;
    }
    std::fs::write(&path, bytes).unwrap();
    let wrong = verify(copied.path(), &reference);
    assert_eq!(wrong.code, Some(1), "{}{}", wrong.stdout, wrong.stderr);
    assert!(wrong.stdout.contains("DIFFERS") && wrong.stdout.contains("differs: "), "{}", wrong.stdout);
}

#[test]
fn nothing_to_compare_with_is_said_and_is_no_success() {
    let model = format!("dir:{}", golden("models/mpnet-mean-normalize").display());
    let finished = run(&mut embedserve(&["models", "verify", &model]));
    assert_eq!(finished.code, Some(1), "{}", finished.stdout);
    assert!(finished.stdout.contains("NOTHING TO COMPARE WITH"), "{}", finished.stdout);
}

#[test]
fn references_need_the_model_they_speak_of() {
    let reference = golden("bert-mean-raw.json");
    let finished = run(&mut embedserve(&["models", "verify", "--reference", reference.to_str().unwrap()]));
    assert_eq!(finished.code, Some(64), "{}", finished.stderr);
    assert!(finished.stderr.contains("--reference"), "{}", finished.stderr);
}

/// From a hub, with the references of a catalogue: the way it will go where the Hub can be reached.
#[test]
fn a_catalogued_model_is_fetched_and_held_against_its_published_vectors() {
    let machine = tempfile::tempdir().unwrap();
    let model = TinyModel::default().write();
    let files = ["config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json", "model.safetensors"];
    let files = files.map(|name| (name.to_owned(), std::fs::read(model.path().join(name)).unwrap()));
    let hub = FakeHub::start(files.into());
    let catalog = machine.path().join("models.toml");
    let cache = machine.path().join("cache");
    let verify = |dot: f64, ids: &[&str]| {
        let text = format!(
            "[[model]]\nid = \"o/n\"\nsource = [{{ kind = \"hub\", repo = \"o/n\", revision = \"main\" }}]\n\
             [[reference]]\nmodel = \"o/n\"\ntext = \"hello world\"\nother = \"hello world\"\ndot = {dot:?}\n\
             tokens = 4\npublished = \"a page\"\n"
        );
        std::fs::write(&catalog, text).unwrap();
        let options = ["--catalog", catalog.to_str().unwrap(), "--cache-dir", cache.to_str().unwrap()];
        run(embedserve(&[&["models", "verify"], ids, &options].concat()).env("HF_ENDPOINT", hub.endpoint()))
    };
    // The model's vectors have length 1.
    let right = verify(1.0, &["o/n"]);
    assert_eq!(right.code, Some(0), "{}{}", right.stdout, right.stderr);
    assert!(
        right.stdout.contains("ok  (a page)") && right.stdout.contains("ok  (candle-transformers)"),
        "{}",
        right.stdout
    );
    let wrong = verify(0.9, &["o/n"]);
    assert_eq!(wrong.code, Some(1), "{}", wrong.stdout);
    assert!(wrong.stdout.contains("DIFFERS  (a page)"), "{}", wrong.stdout);
    // One that cannot be had does not keep the others from being verified.
    let absent = verify(1.0, &["dir:/no/such/model", "o/n"]);
    assert_eq!(absent.code, Some(1), "{}", absent.stdout);
    assert!(absent.stdout.contains("FAILED") && absent.stdout.contains("ok  (a page)"), "{}", absent.stdout);
}
