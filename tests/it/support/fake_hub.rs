//! A model hub on loopback: enough of the protocol for downloads, with a script per file for all that can go wrong.
//!
//! It counts connections and keeps every request, so that tests can say what must not be asked and who must not see a
//! token. Requests are answered on plain threads; dropping the hub closes its listener and every connection.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::support::sources::hex;

/// The commit that `main` means until a test moves it.
pub(crate) const COMMIT: &str = "1111111111111111111111111111111111111111";
pub(crate) const NEXT_COMMIT: &str = "2222222222222222222222222222222222222222";

/// How one request is answered.
#[derive(Debug, Clone)]
pub(crate) enum Script {
    Ok,
    /// With a body that must never end up in a file.
    Status(u16),
    RetryAfter(u16, u64),
    /// So many bytes of the body, then the connection ends.
    Cut(usize),
    /// The head, then nothing.
    Stall,
    /// One byte of the body is another.
    Flip(usize),
    /// `Content-Length` (or the announced size, for HEAD) is this.
    Length(u64),
    Redirect(String),
    Html,
    /// Ranges are ignored.
    Whole,
    /// A chunked body that never ends.
    Endless,
    ContentRange(String),
    Etag(String),
    /// Says that the file is of another commit.
    Commit(String),
}

#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// Listed in the repository's description only.
    extra_names: Vec<String>,
    main: String,
    /// Revisions other than `main`, as they stand in an address: their commit and their own files.
    branches: BTreeMap<String, (String, BTreeMap<String, Vec<u8>>)>,
    /// What the list of pull requests says; without it there is no such list.
    discussions: Option<String>,
    /// After the description is given once, `main` becomes this.
    moves_to: Option<String>,
    scripts: BTreeMap<String, VecDeque<Script>>,
    always: BTreeMap<String, Script>,
    asked: Vec<Asked>,
    connections: usize,
    sockets: Vec<TcpStream>,
}

#[derive(Debug)]
pub(crate) struct FakeHub {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    closing: Arc<AtomicBool>,
}

impl FakeHub {
    pub(crate) fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { files, main: COMMIT.to_owned(), ..State::default() }));
        let closing = Arc::new(AtomicBool::new(false));
        let (shared, stop) = (Arc::clone(&state), Arc::clone(&closing));
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                // Head and body are written apart: without this each answer would wait for an acknowledgement.
                socket.set_nodelay(true).unwrap();
                let mut state = shared.lock().unwrap();
                state.connections += 1;
                state.sockets.push(socket.try_clone().unwrap());
                drop(state);
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || while answer_one(&socket, &shared).is_some() {});
            }
        });
        Self { address, state, closing }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next answers to `METHOD file` (or `GET info`), in order; `Ok` afterwards.
    pub(crate) fn script(&self, what: &str, scripts: impl IntoIterator<Item = Script>) {
        self.state().scripts.entry(what.to_owned()).or_default().extend(scripts);
    }

    /// The answer to every `METHOD file` that no script is left for.
    pub(crate) fn always(&self, what: &str, script: Script) {
        self.state().always.insert(what.to_owned(), script);
    }

    pub(crate) fn set_file(&self, name: &str, bytes: Vec<u8>) {
        self.state().files.insert(name.to_owned(), bytes);
    }

    pub(crate) fn list_also(&self, name: &str) {
        self.state().extra_names.push(name.to_owned());
    }

    /// Another revision (`refs/pr/1`) with files of its own.
    pub(crate) fn branch(&self, revision: &str, commit: &str, files: BTreeMap<String, Vec<u8>>) {
        self.state().branches.insert(revision.replace('/', "%2F"), (commit.to_owned(), files));
    }

    pub(crate) fn discussions(&self, json: &str) {
        self.state().discussions = Some(json.to_owned());
    }

    pub(crate) fn move_main_after_first_look(&self) {
        self.state().moves_to = Some(NEXT_COMMIT.to_owned());
    }

    /// Ends every connection that is open now.
    pub(crate) fn hang_up(&self) {
        for socket in self.state().sockets.drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn connections(&self) -> usize {
        self.state().connections
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state().asked.clone()
    }

    /// Requests whose `METHOD file` is this.
    pub(crate) fn asked_for(&self, what: &str) -> Vec<Asked> {
        let (method, file) = what.split_once(' ').unwrap();
        self.asked().into_iter().filter(|a| a.method == method && subject_of(&a.path) == file).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        for socket in &self.state().sockets {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// The entity tag the hub gives: SHA-256 for weights, git's hash where the test knows it, else nothing verifiable.
pub(crate) fn etag(name: &str, bytes: &[u8]) -> String {
    let hash = hex(bytes);
    if name.ends_with(".safetensors") {
        hash
    } else if bytes == b"hello\n" {
        "ce013625030ba8dba906f756967f9e9ca394464a".to_owned()
    } else {
        format!("tag-{}", &hash[..20])
    }
}

fn answer_one(socket: &TcpStream, shared: &Mutex<State>) -> Option<()> {
    let asked = read_head(socket)?;
    let mut state = shared.lock().unwrap();
    state.asked.push(asked.clone());
    let file = file_of(&asked.path);
    let what = format!("{} {}", asked.method, subject_of(&asked.path));
    let script = match state.scripts.get_mut(&what).and_then(VecDeque::pop_front) {
        Some(script) => script,
        None => state.always.get(&what).cloned().unwrap_or(Script::Ok),
    };
    let (bytes, commit) = match file {
        Some(file) => {
            let commit = asked.path.split_once("/resolve/")?.1.split('/').next()?.to_owned();
            let branch = state.branches.values().find(|(of_branch, _)| *of_branch == commit);
            let files = branch.map_or(&state.files, |(_, files)| files);
            (files.get(file).cloned(), commit)
        }
        None if subject_of(&asked.path) == "discussions" => {
            (state.discussions.clone().map(String::into_bytes), String::new())
        }
        None => (Some(describe(&mut state, &asked.path)), String::new()),
    };
    drop(state);
    let reply = Reply { socket, asked: &asked, name: file.unwrap_or("info.json"), commit };
    match bytes {
        Some(bytes) => reply.play(&script, &bytes),
        None => reply.simple("404 Not Found", "", b"no such file"),
    }
}

/// The file that a path means; `None` for the repository's description.
fn file_of(path: &str) -> Option<&str> {
    let path = path.split('?').next()?;
    Some(path.split_once("/resolve/")?.1.split_once('/')?.1)
}

/// What is asked for: a file, `discussions`, or `info` about a revision.
fn subject_of(path: &str) -> &str {
    match file_of(path) {
        Some(file) => file,
        None if path.contains("/discussions") => "discussions",
        None => "info",
    }
}

fn describe(state: &mut State, path: &str) -> Vec<u8> {
    let revision = path.split_once("/revision/").map(|(_, revision)| revision).unwrap_or_default();
    if let Some((sha, files)) = state.branches.get(revision) {
        let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        return serde_json::json!({"id": "o/n", "sha": sha, "siblings": siblings}).to_string().into_bytes();
    }
    let sha = state.main.clone();
    if let Some(next) = state.moves_to.take() {
        state.main = next;
    }
    let names = state.files.keys().chain(&state.extra_names);
    let siblings: Vec<_> = names.map(|name| serde_json::json!({"rfilename": name})).collect();
    serde_json::json!({"id": "o/n", "sha": sha, "siblings": siblings}).to_string().into_bytes()
}

fn read_head(socket: &TcpStream) -> Option<Asked> {
    let mut lines = BufReader::new(socket.try_clone().ok()?).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    // No request here has a body, so nothing that a buffered reader swallowed is missed.
    for line in lines {
        let line = line.ok()?;
        if line.is_empty() {
            return Some(Asked { method, path, headers });
        }
        let (name, value) = line.split_once(':')?;
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    None
}

struct Reply<'r> {
    socket: &'r TcpStream,
    asked: &'r Asked,
    name: &'r str,
    commit: String,
}

impl Reply<'_> {
    fn play(&self, script: &Script, bytes: &[u8]) -> Option<()> {
        let whole = bytes.len() as u64;
        let range = self.asked.headers.get("range").and_then(|text| parse_range(text, whole));
        match script {
            Script::Status(code) => {
                self.simple(&format!("{code} Scripted"), "", b"<error>this is an error body</error>")
            }
            Script::RetryAfter(code, seconds) => {
                self.simple(&format!("{code} Scripted"), &format!("retry-after: {seconds}\r\n"), b"later")
            }
            Script::Redirect(to) => {
                let head = format!("location: {to}\r\n{}", self.linked(bytes));
                self.simple("302 Found", &head, b"")
            }
            Script::Html => self.simple("200 OK", "content-type: text/html; charset=utf-8\r\n", b"<html>log in</html>"),
            Script::Etag(tag) => self.content(bytes, None, &format!("etag: {tag}\r\n"), whole),
            Script::Length(length) => {
                let head = self.head(bytes);
                self.content(bytes, range, &head, *length)
            }
            Script::Commit(commit) => {
                let head = format!("etag: \"{}\"\r\nx-repo-commit: {commit}\r\n", etag(self.name, bytes));
                self.content(bytes, None, &head, whole)
            }
            Script::Whole => self.content(bytes, None, &self.head(bytes), whole),
            Script::Flip(at) => {
                let mut flipped = bytes.to_vec();
                flipped[*at] ^= 1;
                let length = range.map_or(whole, |(first, last)| last - first + 1);
                self.content(&flipped, range, &self.head(bytes), length)
            }
            Script::ContentRange(text) => {
                let head =
                    format!("HTTP/1.1 206 Partial Content\r\ncontent-range: {text}\r\ncontent-length: {whole}\r\n\r\n");
                self.write(head.as_bytes())?;
                self.write(bytes)
            }
            Script::Cut(at) => {
                let (first, last) = range.unwrap_or((0, whole - 1));
                self.status_line(bytes, range, &self.head(bytes), last - first + 1)?;
                let body = &bytes[usize::try_from(first).unwrap()..];
                self.write(&body[..body.len().min(*at)])?;
                self.socket.shutdown(Shutdown::Both).ok()?;
                None
            }
            Script::Stall => {
                self.status_line(bytes, range, &self.head(bytes), whole)?;
                // Until the client leaves or the hub is dropped: nothing more is sent.
                read_head(self.socket).map(drop)
            }
            Script::Endless => {
                self.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
                let chunk = [b"10000\r\n".as_slice(), &vec![7; 65_536], b"\r\n"].concat();
                while self.write(&chunk).is_some() {}
                None
            }
            Script::Ok => {
                let length = range.map_or(whole, |(first, last)| last - first + 1);
                self.content(bytes, range, &self.head(bytes), length)
            }
        }
    }

    fn head(&self, bytes: &[u8]) -> String {
        format!("etag: \"{}\"\r\n{}", etag(self.name, bytes), self.commit_line())
    }

    fn commit_line(&self) -> String {
        format!("x-repo-commit: {}\r\n", self.commit)
    }

    fn linked(&self, bytes: &[u8]) -> String {
        let tag = etag(self.name, bytes);
        format!("x-linked-etag: \"{tag}\"\r\nx-linked-size: {}\r\n{}", bytes.len(), self.commit_line())
    }

    fn content(&self, bytes: &[u8], range: Option<(u64, u64)>, head: &str, length: u64) -> Option<()> {
        let (first, last) = range.unwrap_or((0, (bytes.len() as u64).saturating_sub(1)));
        let head =
            if head.contains("x-repo-commit") { head.to_owned() } else { format!("{head}{}", self.commit_line()) };
        self.status_line(bytes, range, &head, length)?;
        if self.asked.method == "HEAD" || bytes.is_empty() {
            return Some(());
        }
        let (first, last) = (usize::try_from(first).unwrap(), usize::try_from(last).unwrap());
        self.write(&bytes[first..=last])
    }

    fn status_line(&self, bytes: &[u8], range: Option<(u64, u64)>, head: &str, length: u64) -> Option<()> {
        let (status, range) = match range {
            Some((first, last)) => {
                ("206 Partial Content", format!("content-range: bytes {first}-{last}/{}\r\n", bytes.len()))
            }
            None => ("200 OK", String::new()),
        };
        self.write(format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{head}{range}\r\n").as_bytes())
    }

    fn simple(&self, status: &str, head: &str, body: &[u8]) -> Option<()> {
        self.write(format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{head}\r\n", body.len()).as_bytes())?;
        if self.asked.method == "HEAD" { Some(()) } else { self.write(body) }
    }

    fn write(&self, bytes: &[u8]) -> Option<()> {
        let mut socket = self.socket;
        socket.write_all(bytes).ok()
    }
}

/// `bytes=a-b` within a file; `None` means that the whole file is sent.
fn parse_range(text: &str, size: u64) -> Option<(u64, u64)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    (first < size).then_some((first, last.min(size - 1)))
}
