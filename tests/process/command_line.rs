//! What a person sees who types something wrong, and the commands that do not serve.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::server::{Server, embedserve, run};
use crate::support::tiny_model::TinyModel;

// L-04
#[test]
fn usage_errors_exit_64_with_one_line() {
    let cases: [(&[&str], &str); 7] = [
        (&["--no-such-flag"], "--no-such-flag"),
        (&["--port", "70000"], "70000"),
        (&["--model", "bge-enormous"], "bge-enormous"),
        (&["--device", "cuda"], "CPU only"),
        (&["--host", "0.0.0.0"], "--api-key"),
        (&["--catalog", "/no/such/file.toml"], "/no/such/file.toml: No such file"),
        (&["model", "list"], "`embedserve models list`"),
    ];
    for (arguments, mentions) in cases {
        let finished = run(&mut embedserve(arguments));
        assert_eq!(finished.code, Some(64), "{arguments:?}: {}", finished.stderr);
        assert!(finished.stderr.contains(mentions), "{arguments:?}: {}", finished.stderr);
        assert!(!finished.stderr.contains("panicked") && !finished.stderr.contains("backtrace"), "{}", finished.stderr);
        assert!(finished.took < Duration::from_secs(5));
    }
}

// Where the log is JSON, so is the reason why there will be no more of it.
#[test]
fn a_log_of_json_ends_in_json() {
    for (arguments, code) in [(&["--host", "0.0.0.0"][..], 64), (&["--model", "dir:/no/such/model", "--port", "0"], 1)]
    {
        let finished = run(embedserve(arguments).env("LOG_FORMAT", "json"));
        assert_eq!(finished.code, Some(code), "{}", finished.stderr);
        let last: Value = serde_json::from_str(finished.stderr.trim_end().lines().last().unwrap()).unwrap();
        assert!(last["level"] == "ERROR" && last["error"].is_string(), "{last}");
        // Nobody would hear of it under this filter.
        let silent = run(embedserve(arguments).env("LOG_FORMAT", "json").env("RUST_LOG", "off"));
        assert!(silent.stderr.starts_with("embedserve: "), "{}", silent.stderr);
    }
}

// L-04
#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let finished = run(&mut embedserve(&["--port", &port]));
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains(&port), "{}", finished.stderr);
}

// L-04
#[test]
fn a_model_that_cannot_be_loaded_ends_the_process() {
    let finished = run(&mut embedserve(&["--model", "dir:/no/such/model", "--port", "0"]));
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("/no/such/model"), "{}", finished.stderr);
    // A relative folder without `./` is the name of a repository, and the message knows better.
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(home.path().join("models/mine")).unwrap();
    let mut command = embedserve(&["models/mine", "--offline", "--port", "0"]);
    let finished = run(command.current_dir(home.path()));
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("write ./models/mine"), "{}", finished.stderr);
}

// L-08
#[test]
fn print_config_masks_secrets_and_exits() {
    let finished = run(embedserve(&["--print-config", "--api-key", "a-very-secret-key", "--port", "1234"])
        .env("HF_TOKEN", "hf_secret-token"));
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    for expected in ["1234", "***", "all-MiniLM-L6-v2", "hub_cache"] {
        assert!(finished.stdout.contains(expected), "{expected} in {}", finished.stdout);
    }
    for secret in ["a-very-secret-key", "hf_secret-token"] {
        assert!(!finished.stdout.contains(secret) && !finished.stderr.contains(secret));
    }
}

// L-07
#[test]
fn help_teaches() {
    let finished = run(&mut embedserve(&["--help"]));
    assert_eq!(finished.code, Some(0));
    for expected in
        ["Examples:", "EMBEDSERVE_MAX_BODY_BYTES", "models", "--api-key-file", "HF_HUB_OFFLINE", "70 a device failed"]
    {
        assert!(finished.stdout.contains(expected), "{expected}");
    }
}

#[test]
fn models_list_shows_the_catalogue() {
    let cache = tempfile::tempdir().unwrap();
    let finished = run(&mut embedserve(&["models", "list", "--cache-dir", cache.path().to_str().unwrap()]));
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let line = finished.stdout.lines().find(|line| line.contains("sentence-transformers/all-MiniLM-L6-v2"));
    let cells: Vec<&str> = line.unwrap_or_else(|| panic!("{}", finished.stdout)).split_whitespace().collect();
    assert_eq!(cells[1..], ["bert", "f32", "384", "256", "apache-2.0", "-", "no"]);
}

// As in `embedserve models list | head -1`.
#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = embedserve(&["models", "list"]);
    let ended = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!((ended.status.code(), ended.stderr.as_slice()), (Some(141), &b""[..]));
}

/// A catalogue of one tiny model in a folder.
fn catalogue(folder: &Path, more: &str) -> (TempDir, String) {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("models.toml");
    let source = format!("source = [{{ kind = \"directory\", path = {:?} }}]", folder.to_str().unwrap());
    std::fs::write(&path, format!("[[model]]\nid = \"tiny/one\"\n{more}\n{source}\n")).unwrap();
    let text = path.to_str().unwrap().to_owned();
    (home, text)
}

#[test]
fn models_list_prints_json_for_programs() {
    let folder = TinyModel::default().write();
    let (_home, catalog) = catalogue(folder.path(), "dimensions = 32\nlicense = \"mit\"");
    let finished = run(&mut embedserve(&["models", "list", "--json", "--catalog", &catalog]));
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let models: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!((&models[0]["id"], &models[0]["dimensions"]), (&json!("tiny/one"), &json!(32)));
    assert_eq!((&models[0]["license"], &models[0]["max_tokens"]), (&json!("mit"), &Value::Null));
    let weights = std::fs::metadata(folder.path().join("model.safetensors")).unwrap().len();
    let bytes = models[0]["cached"]["bytes"].as_u64().unwrap();
    assert!(
        models[0]["cached"]["source"] == "directory" && bytes > weights && bytes < 2 * weights + 100_000,
        "{models}"
    );
}

#[test]
fn models_show_tells_what_would_be_served() {
    let folder = TinyModel::default().write();
    let keys = "architecture = \"bert\"\nmax_tokens = 48\nlicense = \"mit\"\nprompts = { query = \"q: \" }\n\
                matryoshka_dimensions = [32, 16]";
    let (_home, catalog) = catalogue(folder.path(), keys);
    let finished = run(&mut embedserve(&["models", "show", "one", "--catalog", &catalog]));
    assert_eq!(finished.code, Some(0), "{}{}", finished.stdout, finished.stderr);
    for expected in [
        "tiny/one",
        "mit",
        "32, 16",
        "query = \"q: \"",
        "bert, pooling mean, vectors of length 1",
        "32 values, or shorter",
        "48 tokens at most",
        "for the weights",
        "\"input_type\": \"query\"",
    ] {
        assert!(finished.stdout.contains(expected), "{expected} in {}", finished.stdout);
    }
    // What would be refused at start is refused here.
    let (_home, catalog) = catalogue(folder.path(), "dimensions = 31");
    let refused = run(&mut embedserve(&["models", "show", "tiny/one", "--catalog", &catalog]));
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    assert!(
        refused.stdout.contains("cannot be served") && refused.stdout.contains("dimensions = 31"),
        "{}",
        refused.stdout
    );
    // A model that is not here is shown all the same.
    let cache = tempfile::tempdir().unwrap();
    let absent = run(&mut embedserve(&["models", "show", "bge-m3", "--cache-dir", cache.path().to_str().unwrap()]));
    assert_eq!(absent.code, Some(0), "{}", absent.stderr);
    for expected in ["xlm-roberta", "8192", "hub BAAI/bge-m3@main", "cached", "Michael Jackson"] {
        assert!(absent.stdout.contains(expected), "{expected} in {}", absent.stdout);
    }
    assert_eq!(run(&mut embedserve(&["models", "show", "bge-enormous"])).code, Some(64));
    let nowhere = run(&mut embedserve(&["models", "show", "./no-such-folder"]));
    assert!(nowhere.code == Some(1) && nowhere.stdout.contains("the folder is not there"), "{}", nowhere.stdout);
}

// L-08
#[test]
fn models_verify_compares_with_a_second_implementation() {
    let folder = TinyModel::default().write();
    let verified = run(&mut embedserve(&["models", "verify", &format!("dir:{}", folder.path().display())]));
    assert_eq!(verified.code, Some(0), "{}{}", verified.stdout, verified.stderr);
    assert!(verified.stdout.contains("12 texts") && verified.stdout.contains("ok  (candle"), "{}", verified.stdout);
}

#[test]
fn health_tells_by_its_exit_code() {
    let folder = TinyModel::default().write();
    let server = Server::start(folder.path(), &[]);
    server.wait_until_ready();
    let port = server.address.port().to_string();
    let healthy = run(&mut embedserve(&["health", "--port", &port]));
    assert_eq!(healthy.code, Some(0), "{}", healthy.stderr);
    drop(server);
    assert_eq!(run(&mut embedserve(&["health", "--port", &port])).code, Some(1));
}

// L-07
#[test]
fn every_flag_can_come_from_the_environment() {
    let folder = TinyModel::default().write();
    let mut command = embedserve(&[]);
    command.env("EMBEDSERVE_MODEL", format!("dir:{}", folder.path().display()));
    command.env("EMBEDSERVE_SERVED_MODEL_NAME", "from-environment").env("EMBEDSERVE_MAX_INPUTS", "2");
    let server = Server::spawn(command);
    server.wait_until_ready();
    let (status, body) = server.embed(r#"{"model":"from-environment","input":["a","b"]}"#);
    assert_eq!(status, 200, "{body}");
    let (status, body) = server.embed(r#"{"model":"from-environment","input":["a","b","c"]}"#);
    assert!(status == 400 && body.contains("2 or less"), "{body}");
}

// L-07: `${KEY:-}` of a compose file sets a variable to nothing.
#[test]
fn an_empty_variable_is_not_set_and_what_is_typed_wins() {
    let shown = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut command = embedserve(&[arguments, &["--print-config"]].concat());
        let finished = run(command.envs(variables.iter().copied()));
        assert_eq!(finished.code, Some(0), "{arguments:?} {variables:?}: {}", finished.stderr);
        finished.stdout
    };
    let usual = shown(&[], &[]);
    for name in
        ["API_KEY", "MODEL", "PORT", "HOST", "THREADS", "KEYS_FILE", "QUEUE_TIMEOUT", "SERVED_MODEL_NAME", "DTYPE"]
    {
        let name = format!("EMBEDSERVE_{name}");
        assert_eq!(shown(&[], &[(&name, "")]), usual, "{name}");
        assert_eq!(shown(&["serve"], &[(&name, "")]), usual, "serve, {name}");
    }
    let one = |text: &str| text.lines().filter(|line| line.starts_with("model ")).count() == 1;
    let typed = shown(&["BAAI/bge-m3"], &[("EMBEDSERVE_MODEL", "BAAI/bge-base-en-v1.5")]);
    assert!(typed.contains("= BAAI/bge-m3 (default)") && one(&typed), "{typed}");
    let listed = shown(&[], &[("EMBEDSERVE_MODEL", "BAAI/bge-m3, BAAI/bge-base-en-v1.5")]);
    assert!(listed.contains("= BAAI/bge-m3 (default)") && listed.contains("= BAAI/bge-base-en-v1.5"), "{listed}");
    let both = run(&mut embedserve(&["BAAI/bge-m3", "--model", "BAAI/bge-base-en-v1.5"]));
    assert!(both.code == Some(64) && both.stderr.contains("cannot be used with"), "{}", both.stderr);
}
