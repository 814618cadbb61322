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

// W-05
#[test]
fn endless_headers_are_refused_and_leave_nothing_in_memory() {
    let folder = TinyModel::default().write();
    let server = Server::start(folder.path(), &[]);
    server.wait_until_ready();
    let mut refused = 0;
    let mut flood_all = || {
        for _ in 0..40 {
            let status = flood(&server);
            // A reset may overtake the answer; what must never come is success.
            assert!(status.is_empty() || status.contains("431"), "{status}");
            refused += usize::from(status.contains("431"));
        }
    };
    // The allocator keeps what it needed once: memory is measured when it has stopped growing, and then over 960 MiB of
    // headers. Anything that stayed behind would grow in every round.
    let mut sizes = Vec::new();
    for _ in 0..10 {
        flood_all();
        sizes.push(server.resident_bytes());
        if let [.., first, _, _, last] = sizes[..]
            && last <= first + (1 << 20)
        {
            assert!(refused > 0, "no answer arrived at all");
            return;
        }
    }
    panic!("memory keeps growing: {sizes:?}");
}
