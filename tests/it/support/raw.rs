//! A client that sends exact bytes: what no HTTP library would send, at any pace.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// Longer than any timeout that a test configures.
const PATIENCE: Duration = Duration::from_secs(20);

/// A blocking connection; tests call it from `spawn_blocking` or accept that it blocks one of several threads.
pub struct RawClient {
    stream: TcpStream,
    pending: Vec<u8>,
}

/// One answer, as bytes say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawAnswer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl RawAnswer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The code inside the error envelope.
    pub fn code(&self) -> Option<String> {
        let body: serde_json::Value = serde_json::from_str(&self.body).ok()?;
        body["error"]["code"].as_str().map(str::to_owned)
    }
}

impl RawClient {
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).unwrap())
    }

    pub fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, pending: Vec::new() }
    }

    /// Sends as much as the server takes; a server that closes early is an outcome, not a failure.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// The same connection for a second thread, which sends while the first one reads.
    pub fn sender(&self) -> Self {
        Self { stream: self.stream.try_clone().unwrap(), pending: Vec::new() }
    }

    /// Says that nothing more will be sent.
    pub fn half_close(&self) {
        // The server may have closed already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Reads some bytes and forgets them; false when there will be none any more.
    pub fn read_some(&mut self, n_bytes: usize) -> bool {
        let mut bytes = vec![0; n_bytes];
        self.stream.read(&mut bytes).is_ok_and(|n| n > 0)
    }

    /// The next answer; `None` when the connection is closed before one is complete.
    pub fn answer(&mut self) -> Option<RawAnswer> {
        let head_end = loop {
            if let Some(end) = self.pending.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            self.read_more()?;
        };
        let head = String::from_utf8(self.pending.drain(..head_end).collect()).unwrap();
        let mut lines = head.split("\r\n");
        let status: u16 = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let answer = RawAnswer { status, headers, body: String::new() };
        if status == 100 {
            return Some(answer);
        }
        let length: usize = answer.header("content-length").unwrap().parse().unwrap();
        while self.pending.len() < length {
            self.read_more()?;
        }
        let body = String::from_utf8(self.pending.drain(..length).collect()).unwrap();
        Some(RawAnswer { body, ..answer })
    }

    /// Whether the server closes the connection without another byte.
    pub fn is_closed(&mut self) -> bool {
        self.pending.is_empty() && self.read_more().is_none() && self.pending.is_empty()
    }

    /// Reads until the server closes the connection.
    pub fn wait_for_end(&mut self) {
        while self.read_more().is_some() {}
    }

    fn read_more(&mut self) -> Option<()> {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => None,
            Ok(n) => {
                self.pending.extend_from_slice(&chunk[..n]);
                Some(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("the server neither answered nor closed within {PATIENCE:?}")
            }
            Err(_) => None,
        }
    }
}

/// A `POST /v1/embeddings` with a length.
pub fn post(body: &str) -> String {
    format!("POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// A `GET`.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")
}
