//! Starts the executable on a free port, reads its log, speaks HTTP to it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

/// A wait that only a hang exceeds.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The executable with a clean environment: nothing of the developer's own settings reaches it.
pub fn embedserve(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_embedserve"));
    let kept = ["PATH", "TMPDIR", "LLVM_PROFILE_FILE"].map(|name| (name, std::env::var_os(name)));
    command.env_clear().args(arguments).stdin(Stdio::null());
    for (name, value) in kept {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    // A home that does not exist: no cache, no token, unless a test brings its own.
    command.env("HOME", "/nonexistent-home");
    command
}

/// The same program with the same environment, started by another one.
pub fn through(starter: &[&str], command: &Command) -> Command {
    let mut other = Command::new(starter[0]);
    other.args(&starter[1..]).arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    other.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    other
}

/// What a finished process left.
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

/// Keeps what a process wrote for `.ci/scan-logs`, where `EMBEDSERVE_TEST_LOGS` names a folder.
fn keep(bytes: &[u8]) {
    static KEPT: LazyLock<Option<File>> = LazyLock::new(|| {
        let folder = PathBuf::from(std::env::var_os("EMBEDSERVE_TEST_LOGS")?);
        Some(File::create(folder.join(format!("process-{}.log", std::process::id()))).unwrap())
    });
    if let Some(mut kept) = KEPT.as_ref() {
        kept.write_all(bytes).unwrap();
    }
}

/// Runs to the end.
pub fn run(command: &mut Command) -> Finished {
    let start = Instant::now();
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    keep(&output.stdout);
    keep(&output.stderr);
    Finished {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
        took: start.elapsed(),
    }
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// Serves the model in `folder` under the name `tiny` and waits until it listens.
    pub fn start(folder: &Path, arguments: &[&str]) -> Self {
        let choice = format!("dir:{}", folder.display());
        Self::spawn(embedserve(&[&["--model", &choice, "--served-model-name", "tiny"], arguments].concat()))
    }

    /// On a free port, unless the command says otherwise, and quick to drain.
    pub fn spawn(mut command: Command) -> Self {
        command.env("PORT", "0").env("EMBEDSERVE_DRAIN_DELAY", "100ms");
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, copy) = (child.stderr.take().unwrap(), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                keep(format!("{line}\n").as_bytes());
                let mut log = copy.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut server = Self { child, address: ([127, 0, 0, 1], 0).into(), log };
        let line = server.wait_for_log("listening");
        server.address = address_in(&line).unwrap_or_else(|| panic!("no address in {line}"));
        server
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The first log line that contains `text`.
    pub fn wait_for_log(&mut self, text: &str) -> String {
        let Self { child, log, .. } = self;
        wait_for(&format!("{text} in the log"), || {
            let ended = child.try_wait().unwrap();
            let log = log.lock().unwrap();
            let found = log.lines().find(|line| line.contains(text)).map(str::to_owned);
            assert!(found.is_some() || ended.is_none(), "the process ended: {log}");
            found
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn wait_until_ready(&self) {
        wait_for("readiness", || (self.get("/readyz").0 == 200).then_some(()));
    }

    /// Resident memory, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.status("VmRSS:").trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// The most that was ever resident, in bytes.
    pub fn peak_bytes(&self) -> u64 {
        self.status("VmHWM:").trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// A line of the kernel's account of the process.
    fn status(&self, name: &str) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
    }

    /// Processor time used so far, in hundredths of a second.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// Processor time, in hundredths of a second, that the process uses in a while: the first of a few that is `enough`, or
    /// the best of them. On a crowded machine the same work takes longer.
    pub fn fewest_ticks_in(&self, time: Duration, enough: u64) -> u64 {
        let mut fewest = u64::MAX;
        for _ in 0..5 {
            let (start, before) = (Instant::now(), self.cpu_ticks());
            wait_for("the end of a while", || (start.elapsed() > time).then_some(()));
            fewest = fewest.min(self.cpu_ticks() - before);
            if fewest <= enough {
                break;
            }
        }
        fewest
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    pub fn wait(&mut self) -> ExitStatus {
        wait_for("the end of the process", || self.child.try_wait().unwrap())
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        exchange(self.address, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
    }

    /// The sum of a metric's samples.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").1;
        let values = text.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit(' ').next());
        values.map(|value| value.parse::<f64>().unwrap()).sum()
    }

    pub fn embed(&self, body: &str) -> (u16, String) {
        self.embed_with(body, "")
    }

    /// With further header lines, each ending in CR LF.
    pub fn embed_with(&self, body: &str, headers: &str) -> (u16, String) {
        let length = body.len();
        exchange(
            self.address,
            &format!(
                "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                 content-length: {length}\r\n{headers}connection: close\r\n\r\n{body}"
            ),
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends bytes, reads to the end, splits status and body. Status 0: no connection or no answer.
pub fn exchange(address: SocketAddr, request: &str) -> (u16, String) {
    let Ok(mut stream) = TcpStream::connect(address) else { return (0, String::new()) };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = Vec::new();
    if stream.write_all(request.as_bytes()).is_err() || stream.read_to_end(&mut answer).is_err() {
        return (0, String::new());
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}

/// Polls until there is a value.
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn address_in(line: &str) -> Option<SocketAddr> {
    let start = line.find("http://")? + "http://".len();
    let end = line[start..].find(|c: char| !(c.is_ascii_digit() || ".:[]".contains(c))).unwrap_or(line.len() - start);
    line[start..start + end].parse().ok()
}
