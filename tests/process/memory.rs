//! What attackers send must not stay in memory.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use crate::server::{PATIENCE, Server};
use crate::support::tiny_model::TinyModel;

/// Sends 8 MiB of one header, as far as the server reads it, and returns the status line.
fn flood(server: &Server) -> String {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\nx-flood: ").unwrap();
    let piece = vec![b'a'; 64 * 1024];
    for _ in 0..128 {
        // The server has answered and closed: the rest of the header has no reader.
        if stream.write_all(&piece).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

/// Whether the last of these sizes, taken after equal work each, is still what it was three rounds before.
fn settled(sizes: &[u64]) -> bool {
    matches!(sizes, [.., first, _, _, last] if *last <= first + (1 << 20))
}

/// Fails unless the memory of the server stops growing while `work` is repeated. The allocator keeps what it needed once:
/// memory is measured when it has stopped growing, and then over three rounds. Anything that stayed behind would grow in
/// every one, however many rounds there are; what a crowded machine does at the same time delays the end.
pub fn settles(server: &Server, mut work: impl FnMut()) {
    let mut sizes = Vec::new();
    for _ in 0..40 {
        work();
        sizes.push(server.resident_bytes());
        if settled(&sizes) {
            return;
        }
    }
    panic!("memory keeps growing: {sizes:?}");
}

// M-02: the detector is not one that never finds anything.
#[test]
fn a_leak_of_a_kilobyte_per_request_does_not_pass() {
    // Three rounds of a thousand requests, in bytes, on a process that has warmed up; pages come in fours of kilobytes.
    let round = |leak: u64| (0..10).map(move |round| (80 << 20) + round * 1000 * leak / 4096 * 4096);
    let passes = |sizes: Vec<u64>| (1..=sizes.len()).any(|n| settled(&sizes[..n]));
    assert!(passes(round(0).collect()));
    assert!(!passes(round(1024).collect()));
}

// W-05
#[test]
fn endless_headers_are_refused_and_leave_nothing_in_memory() {
    let folder = TinyModel::default().write();
    let server = Server::start(folder.path(), &[]);
    server.wait_until_ready();
    let mut refused = 0;
    // The last three rounds are 960 MiB of headers.
    settles(&server, || {
        for _ in 0..40 {
            let status = flood(&server);
            // A reset may overtake the answer; what must never come is success.
            assert!(status.is_empty() || status.contains("431"), "{status}");
            refused += usize::from(status.contains("431"));
        }
    });
    assert!(refused > 0, "no answer arrived at all");
}
