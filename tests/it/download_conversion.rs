//! Repositories whose `main` holds only pickles: the conversion bot's pull request, and everything that is not it. U-05

use std::collections::BTreeMap;
use std::fs;

use embedserve::config::SourceConfig;
use embedserve::source::{self, Cause};
use serde_json::{Value, json};

use crate::support::fake_hub::{COMMIT, FakeHub, NEXT_COMMIT, Script};
use crate::support::sources::{Machine, NEEDED, cause, hub_model, hub_model_at, obtain, repository};

type Files = BTreeMap<String, Vec<u8>>;

const REQUEST_COMMIT: &str = "3333333333333333333333333333333333333333";
const BOT: &str = "SFconvertbot";
const TITLE: &str = "Adding `safetensors` variant of this model";

/// `main` of an older repository: no safetensors.
fn pickled() -> Files {
    let mut files = repository();
    files.remove("model.safetensors");
    files
}

fn request(num: u64, author: &str, title: &str, status: &str) -> Value {
    json!({"num": num, "author": {"name": author, "type": "user"}, "title": title, "status": status,
        "isPullRequest": true, "repo": {"name": "o/n", "type": "model"}})
}

fn list(requests: &[Value]) -> String {
    json!({"discussions": requests, "count": requests.len(), "start": 0}).to_string()
}

fn bot_request(num: u64) -> Value {
    request(num, BOT, TITLE, "open")
}

/// A hub whose pull request 7 holds `files`, and a machine.
fn hub_with(files: Files, requests: &[Value]) -> (FakeHub, Machine) {
    let hub = FakeHub::start(pickled());
    hub.branch("refs/pr/7", REQUEST_COMMIT, files);
    hub.discussions(&list(requests));
    let machine = Machine::new(&hub.endpoint());
    (hub, machine)
}

/// The one sentence, after checking that nothing of a pickle or of foreign weights was transferred.
fn refusal(hub: &FakeHub, config: &SourceConfig) -> String {
    let why = cause(&hub_model(), config);
    assert!(matches!(why, Cause::Pickled { .. }), "{why}");
    for name in ["pytorch_model.bin", "model.safetensors"] {
        assert!(hub.asked_for(&format!("GET {name}")).is_empty(), "{name}");
    }
    let message = why.to_string();
    for part in ["pytorch_model.bin", "--revision refs/pr/N", "SentenceTransformer", "o/n"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(!message.contains('\n'));
    message
}

// BAAI/bge-m3 has heads beside its weights, and others have weights for other programs, under names that come first.
#[test]
fn other_weights_do_not_hide_the_pickle() {
    let mut files = pickled();
    for name in ["colbert_linear.pt", "flax_model.msgpack", "model.onnx", "sparse_linear.pt"] {
        files.insert(name.to_owned(), b"never asked for".to_vec());
    }
    let hub = FakeHub::start(files);
    hub.branch("refs/pr/7", REQUEST_COMMIT, repository());
    hub.discussions(&list(&[bot_request(7)]));
    let machine = Machine::new(&hub.endpoint());
    let folder = obtain(&hub_model(), &machine.config).unwrap();
    assert_eq!(folder.revision.as_deref(), Some(REQUEST_COMMIT));
}

#[test]
fn the_bots_open_request_serves_and_is_found_again_without_a_network() {
    let (hub, machine) = hub_with(repository(), &[bot_request(7)]);
    let folder = obtain(&hub_model(), &machine.config).unwrap();
    assert_eq!((folder.source, folder.revision.as_deref(), folder.pinned), ("hub", Some(REQUEST_COMMIT), false));
    for name in NEEDED {
        assert_eq!(fs::read(folder.path.join(name)).unwrap(), repository()[name], "{name}");
    }
    let asked: Vec<String> = hub.asked_for("GET discussions").into_iter().map(|asked| asked.path).collect();
    assert_eq!(asked, ["/api/models/o/n/discussions?p=0&type=pull_request&status=open&author=SFconvertbot"]);
    assert!(hub.asked().iter().any(|asked| asked.path == "/api/models/o/n/revision/refs%2Fpr%2F7"));
    assert!(hub.asked_for("GET pytorch_model.bin").is_empty());
    // As other tools note a pull request; `main` is left to them.
    assert_eq!(fs::read_to_string(machine.repository().join("refs/refs/pr/7")).unwrap(), REQUEST_COMMIT);
    assert!(!machine.repository().join("refs/main").exists());

    // While main stays where it is, one question; offline, with the hub gone and when only asked for, none.
    let before = hub.asked().len();
    assert_eq!(obtain(&hub_model(), &machine.config).unwrap(), folder);
    assert_eq!(hub.asked().len(), before + 1);
    assert_eq!(obtain(&hub_model(), &machine.offline()).unwrap(), folder);
    assert_eq!(source::cached(&hub_model(), &machine.config), Some(folder.clone()));
    hub.always("GET info", Script::Status(503));
    assert_eq!(obtain(&hub_model(), &machine.config).unwrap(), folder);
    // Written as the log advises.
    assert_eq!(obtain(&hub_model_at("refs/pr/7", Vec::new()), &machine.offline()).unwrap().path, folder.path);
}

#[test]
fn main_is_followed_again_once_it_has_safetensors() {
    let (hub, machine) = hub_with(repository(), &[bot_request(7)]);
    obtain(&hub_model(), &machine.config).unwrap();
    hub.set_file("model.safetensors", b"merged".to_vec());
    let folder = obtain(&hub_model(), &machine.config).unwrap();
    assert_eq!(folder.revision.as_deref(), Some(COMMIT));
    assert_eq!(obtain(&hub_model(), &machine.offline()).unwrap(), folder);
}

#[test]
fn a_moved_main_is_compared_anew() {
    let (hub, machine) = hub_with(repository(), &[bot_request(7)]);
    hub.move_main_after_first_look();
    obtain(&hub_model(), &machine.config).unwrap();
    // New pickles at the next commit: the old conversion is of other weights.
    hub.set_file("pytorch_model.bin", b"\x80\x04retrained".to_vec());
    let why = cause(&hub_model(), &machine.config).to_string();
    assert!(why.contains("changes pytorch_model.bin"), "{why}");
    assert!(hub.asked().iter().any(|asked| asked.path.contains(NEXT_COMMIT)));
}

#[test]
fn what_is_not_the_bots_open_request_is_not_taken() {
    let mut no_author = bot_request(7);
    no_author["author"] = Value::Null;
    let mut discussion = bot_request(7);
    discussion["isPullRequest"] = json!(false);
    let impostors = [
        request(7, "SFconvertbot2", TITLE, "open"),
        request(7, "sfconvertbot", TITLE, "open"),
        request(7, "SFc\u{43e}nvertbot", TITLE, "open"),
        request(7, BOT, "Adding `safetensors` variant of this model, really", "open"),
        request(7, BOT, TITLE, "closed"),
        request(7, BOT, TITLE, "merged"),
        request(7, BOT, TITLE, "draft"),
        no_author,
        discussion,
    ];
    for impostor in impostors {
        let (hub, machine) = hub_with(repository(), std::slice::from_ref(&impostor));
        let message = refusal(&hub, &machine.config);
        assert!(message.contains("no open pull request"), "{impostor}: {message}");
        assert!(!hub.asked().iter().any(|asked| asked.path.contains("refs%2Fpr")), "{impostor}");
    }
    let (hub, machine) = hub_with(repository(), &[]);
    refusal(&hub, &machine.config);
}

#[test]
fn a_request_that_changes_more_than_weights_is_refused() {
    let changed = |name: &str| {
        let mut files = repository();
        files.insert(name.to_owned(), b"{\"changed\": true}".to_vec());
        files
    };
    // The pickle stands for the weights that were converted.
    for name in
        ["config.json", "tokenizer.json", "1_Pooling/config.json", "sentence_bert_config.json", "pytorch_model.bin"]
    {
        let (hub, machine) = hub_with(changed(name), &[bot_request(7)]);
        let message = refusal(&hub, &machine.config);
        assert!(message.contains(&format!("pull request 7 of the conversion bot changes {name}")), "{message}");
    }
    // A file that main lacks, one that main has, and another chain of modules.
    let added = changed("special_tokens_map.json");
    let mut removed = repository();
    removed.remove("sentence_bert_config.json");
    let mut other_modules = repository();
    let modules = br#"[{"idx":0,"name":"0","path":"","type":"s.Transformer"}]"#;
    other_modules.insert("modules.json".to_owned(), modules.to_vec());
    for files in [added, removed, other_modules] {
        let (hub, machine) = hub_with(files, &[bot_request(7)]);
        let message = refusal(&hub, &machine.config);
        assert!(message.contains("has other files than main"), "{message}");
    }
    // What is no part of the model may differ: main's description went on.
    let (_hub, machine) = hub_with(changed("README.md"), &[bot_request(7)]);
    obtain(&hub_model(), &machine.config).unwrap();
}

#[test]
fn a_request_without_weights_is_of_no_use_and_an_older_one_may_be() {
    let (hub, machine) = hub_with(pickled(), &[bot_request(7)]);
    let message = refusal(&hub, &machine.config);
    assert!(message.contains("pull request 7 of the conversion bot is of no use"), "{message}");

    let (hub, machine) = hub_with(repository(), &[bot_request(7), bot_request(9)]);
    hub.branch("refs/pr/9", NEXT_COMMIT, pickled());
    assert_eq!(obtain(&hub_model(), &machine.config).unwrap().revision.as_deref(), Some(REQUEST_COMMIT));
}

#[test]
fn sharded_conversions_bring_their_index() {
    let mut files = repository();
    let whole = files.remove("model.safetensors").unwrap();
    let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    files.insert("model.safetensors.index.json".to_owned(), index.as_bytes().to_vec());
    files.insert("model-00001-of-00002.safetensors".to_owned(), whole[..90_000].to_vec());
    files.insert("model-00002-of-00002.safetensors".to_owned(), whole[90_000..].to_vec());
    let (_hub, machine) = hub_with(files.clone(), &[bot_request(7)]);
    let folder = obtain(&hub_model(), &machine.config).unwrap();
    for name in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
        assert_eq!(fs::read(folder.path.join(name)).unwrap(), files[name]);
    }
    assert_eq!(obtain(&hub_model(), &machine.offline()).unwrap(), folder);
}

// U-05: instructor and LaBSE on older revisions.
#[test]
fn a_dense_module_with_a_pickle_follows_the_same_rule() {
    let with_dense = |weights: &str| {
        let mut files = repository();
        let modules = br#"[{"path":"","type":"s.Transformer"},{"path":"1_Pooling","type":"s.Pooling"},
            {"path":"2_Dense","type":"s.Dense"}]"#;
        files.insert("modules.json".to_owned(), modules.to_vec());
        files.insert("2_Dense/config.json".to_owned(), b"{}".to_vec());
        files.insert(format!("2_Dense/{weights}"), b"dense".to_vec());
        files
    };
    let hub = FakeHub::start(with_dense("pytorch_model.bin"));
    hub.discussions(&list(&[]));
    let machine = Machine::new(&hub.endpoint());
    let message = cause(&hub_model(), &machine.config).to_string();
    assert!(message.contains("2_Dense/pytorch_model.bin is never opened") && message.contains(".save("), "{message}");
    assert!(hub.asked_for("GET 2_Dense/pytorch_model.bin").is_empty());

    let mut converted = with_dense("pytorch_model.bin");
    converted.insert("2_Dense/model.safetensors".to_owned(), b"dense".to_vec());
    hub.branch("refs/pr/3", REQUEST_COMMIT, converted.clone());
    hub.discussions(&list(&[bot_request(3)]));
    let folder = obtain(&hub_model(), &machine.config).unwrap();
    assert_eq!(fs::read(folder.path.join("2_Dense/model.safetensors")).unwrap(), b"dense");

    // Other dense weights than those of main.
    converted.insert("2_Dense/pytorch_model.bin".to_owned(), b"other".to_vec());
    hub.branch("refs/pr/3", NEXT_COMMIT, converted);
    let machine = Machine::new(&hub.endpoint());
    let message = cause(&hub_model(), &machine.config).to_string();
    assert!(message.contains("changes 2_Dense/pytorch_model.bin"), "{message}");
}

#[test]
fn conversions_are_looked_for_on_main_only_and_can_be_switched_off() {
    let (hub, machine) = hub_with(repository(), &[bot_request(7)]);
    let config = SourceConfig { conversion_revision: false, ..machine.config.clone() };
    let message = refusal(&hub, &config);
    assert!(message.contains("--no-conversion-revision"), "{message}");
    hub.branch("v1", NEXT_COMMIT, pickled());
    for revision in ["v1", COMMIT] {
        let message = cause(&hub_model_at(revision, Vec::new()), &machine.config).to_string();
        assert!(message.contains("on main only"), "{message}");
    }
    assert!(hub.asked_for("GET discussions").is_empty());
    // What was chosen before is not served once it is forbidden.
    obtain(&hub_model(), &machine.config).unwrap();
    let offline = SourceConfig { conversion_revision: false, ..machine.offline() };
    assert!(matches!(cause(&hub_model(), &offline), Cause::Offline { .. }));
}

#[test]
fn a_hub_that_lists_no_requests_is_told_from_one_that_fails() {
    // A mirror: no such page.
    let hub = FakeHub::start(pickled());
    let machine = Machine::new(&hub.endpoint());
    let message = refusal(&hub, &machine.config);
    assert!(message.contains("does not list pull requests (404)"), "{message}");
    hub.discussions("[]");
    assert!(matches!(cause(&hub_model(), &machine.config), Cause::Protocol { .. }));
    hub.discussions(&list(&[bot_request(7)]));
    hub.branch("refs/pr/7", REQUEST_COMMIT, repository());
    hub.script("GET discussions", [Script::Status(500)]);
    obtain(&hub_model(), &machine.config).unwrap();
}

// D-03 for a conversion.
#[test]
fn a_damaged_conversion_is_fetched_again() {
    let (hub, machine) = hub_with(repository(), &[bot_request(7)]);
    let folder = obtain(&hub_model(), &machine.config).unwrap();
    let weights = fs::canonicalize(folder.path.join("model.safetensors")).unwrap();
    fs::write(&weights, b"damaged").unwrap();
    assert!(matches!(cause(&hub_model(), &machine.offline()), Cause::Damaged { .. }));
    assert_eq!(obtain(&hub_model(), &machine.config).unwrap(), folder);
    assert_eq!(fs::read(folder.path.join("model.safetensors")).unwrap(), repository()["model.safetensors"]);
    assert_eq!(hub.asked_for("GET model.safetensors").len(), 2);
    // The note itself: nonsense in it is as if it were not there.
    fs::write(machine.repository().join(".embedserve-conversion.json"), b"{\"commit\": \"../../x\"}").unwrap();
    assert!(matches!(cause(&hub_model(), &machine.offline()), Cause::Offline { .. }));
    assert_eq!(obtain(&hub_model(), &machine.config).unwrap(), folder);
}
