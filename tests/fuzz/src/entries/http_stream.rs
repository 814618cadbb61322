//! Exact bytes to a socket of the real server. W-01, W-05, W-09, W-15
//!
//! Whatever is sent, what comes back is a sequence of whole answers, no more of them than requests could be read out of
//! the bytes, and the connection ends. Refused: no good answer came back.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::Verdict;
use super::request_json::envelope;
use super::server;

/// Closes a connection on which everything before it was a whole request.
const LAST: &[u8] = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
/// After that long without an answer the request is taken for incomplete, and its end is announced.
const PATIENCE: Duration = Duration::from_millis(20);
/// Far beyond every timeout of the server.
const HANG: Duration = Duration::from_secs(20);
const STATUSES: [u16; 12] = [100, 200, 400, 401, 403, 404, 405, 408, 413, 414, 415, 431];

pub fn check(data: &[u8]) -> Verdict {
    let mut stream = TcpStream::connect(server::serving().address).expect("the server listens");
    stream.set_nodelay(true).expect("a socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    // A server that closes early is an answer, too.
    let sent = stream.write_all(data).and_then(|()| stream.write_all(LAST));
    let answers = read_all(&mut stream);
    let requests = data.windows(7).filter(|window| window.eq_ignore_ascii_case(b"HTTP/1.")).count() + 1;
    let statuses = parse(&answers, data);
    let finals = statuses.iter().filter(|status| **status != 100).count();
    assert!(finals <= requests, "{finals} answers to {requests} requests");
    let good = statuses.iter().filter(|status| **status == 200).count();
    // The last one is ours.
    if sent.is_ok() && good > 1 && statuses.iter().all(|status| matches!(status, 100 | 200)) {
        return Ok(());
    }
    Err(format!("{statuses:?}"))
}

/// Everything until the server closes.
fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let (mut answers, mut block) = (Vec::new(), [0; 16 << 10]);
    let mut ended = false;
    loop {
        match stream.read(&mut block) {
            Ok(0) => return answers,
            Ok(n) => answers.extend_from_slice(&block[..n]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                assert!(!ended, "the server neither answers nor closes");
                ended = true;
                // It may have closed in between.
                let _ = stream.shutdown(Shutdown::Write);
                stream.set_read_timeout(Some(HANG)).expect("a socket");
            }
            Err(_) => return answers,
        }
    }
}

/// The status of each answer. A reset may cut the last one.
fn parse(mut bytes: &[u8], data: &[u8]) -> Vec<u16> {
    let mut statuses = Vec::new();
    while let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
        let head = std::str::from_utf8(&bytes[..end]).expect("heads are text");
        bytes = &bytes[end + 4..];
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.")).and_then(|line| line.get(2..5));
        let status: u16 = status.and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no answer: {head}"));
        assert!(STATUSES.contains(&status), "{head}");
        statuses.push(status);
        if status == 100 {
            continue;
        }
        let length =
            lines.filter_map(|line| line.split_once(':')).find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let length: usize =
            length.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or_else(|| panic!("no length: {head}"));
        // Answers to HEAD announce a length and send nothing.
        if bytes.is_empty() || bytes.starts_with(b"HTTP/1.") {
            continue;
        }
        let Some((body, rest)) = bytes.split_at_checked(length) else { return statuses };
        bytes = rest;
        if status != 200 {
            envelope(std::str::from_utf8(body).expect("bodies are text"), data);
        }
    }
    statuses
}
