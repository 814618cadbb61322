//! What the process asks of the kernel: its system calls, as strace sees them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use super::{BODY, needs};
use crate::downloads::pull;
use crate::server::{Server, embedserve, run, through, wait_for};
use crate::support::fake_hub::FakeHub;
use crate::support::sources::NEEDED;
use crate::support::tiny_model::TinyModel;

/// The command with its system calls written to a file, each with its time.
fn traced(calls: &str, file: &Path, command: &Command) -> Command {
    needs("strace", "strace");
    let (calls, file) = (format!("trace={calls}"), file.to_str().unwrap());
    through(&["strace", "-D", "-f", "-qq", "-ttt", "-e", &calls, "-o", file], command)
}

/// System calls since then, in seconds of the epoch: all but their process and time.
fn calls(file: &Path, since: f64) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap();
    let call = |line: &str| {
        let mut parts = line.split_whitespace();
        let (_process, time) = (parts.next()?, parts.next()?.parse::<f64>().ok()?);
        let call = parts.collect::<Vec<_>>().join(" ");
        // Signals and ends are told as well.
        (time >= since && !call.starts_with(['+', '-'])).then_some(call)
    };
    text.lines().filter_map(call).collect()
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

const FILES: &str = "open,openat,openat2,creat,execve,stat,newfstatat,statx,readlink,unlink,rename,connect";

//
#[test]
fn requests_open_no_file_and_no_connection() {
    let here = tempfile::tempdir().unwrap();
    let (folder, trace) = (TinyModel::default().write(), here.path().join("trace"));
    let choice = format!("dir:{}", folder.path().display());
    let server =
        Server::spawn(traced(FILES, &trace, &embedserve(&["--model", &choice, "--served-model-name", "tiny"])));
    server.wait_until_ready();
    assert_eq!(server.embed(BODY).0, 200);
    let opened = |call: &String| call.contains("model.safetensors");
    wait_for("a trace", || calls(&trace, 0.0).iter().any(opened).then_some(()));
    let begin = now();
    for name in ["tiny", "../../etc/passwd", "/etc/passwd", "http://169.254.169.254/latest", "BAAI/bge-m3", "a\0b"] {
        let body = serde_json::json!({"model": name, "input": ["x", "/etc/passwd", "file:///etc/passwd"]});
        assert_eq!(server.embed(&body.to_string()).0, if name == "tiny" { 200 } else { 404 }, "{name:?}");
        server.get(&format!("/v1/models/{}", name.replace('/', "%2F").replace('\0', "%00")));
        server.get(&format!("/{}", name.replace('\0', "%00")));
    }
    drop(server);
    let after = calls(&trace, begin);
    assert_eq!(after, Vec::<String>::new());
}

// D-10
#[test]
fn offline_nothing_is_connected_and_nothing_is_started() {
    let tiny = TinyModel::default().write();
    let files: BTreeMap<String, Vec<u8>> =
        NEEDED.map(|name| (name.to_owned(), std::fs::read(tiny.path().join(name)).unwrap())).into();
    let hub = FakeHub::start(files);
    let here = tempfile::tempdir().unwrap();
    let cache = here.path().join("cache");
    let with_hub = |mut command: Command| {
        command.env("HF_ENDPOINT", hub.endpoint());
        command
    };
    let (online, offline) = (here.path().join("online"), here.path().join("offline"));
    let calls_of = "socket,connect,execve,sendto,sendmsg";
    let pulled = run(&mut traced(calls_of, &online, &with_hub(pull(&cache, "o/n", &[]))));
    assert_eq!(pulled.code, Some(0), "{}", pulled.stderr);
    let outward = |call: &String| call.starts_with("connect(") && call.contains("AF_INET");
    wait_for("a trace", || calls(&online, 0.0).iter().any(outward).then_some(()));

    let serve = embedserve(&[
        "--model",
        "o/n",
        "--served-model-name",
        "tiny",
        "--offline",
        "--cache-dir",
        cache.to_str().unwrap(),
    ]);
    let server = Server::spawn(traced(calls_of, &offline, &with_hub(serve)));
    server.wait_until_ready();
    assert_eq!(server.embed(BODY).0, 200);
    drop(server);
    let found = calls(&offline, 0.0);
    let started = found.iter().filter(|call| call.starts_with("execve(")).count();
    assert_eq!(started, 1, "itself alone: {found:#?}");
    assert!(!found.iter().any(|call| call.starts_with("connect(")), "{found:#?}");
}
