//! hyper's own answers to heads it cannot parse, and ours in their place.

use crate::http::error;
use crate::http::id;
use crate::http::stream::StreamLimits;

/// The status of an answer that hyper wrote by itself; `None` for ours, which always carry a request id.
pub(super) fn status(written: &[u8]) -> Option<u16> {
    let head = written.strip_prefix(b"HTTP/1.1 4")?;
    let text = std::str::from_utf8(head.strip_suffix(b"\r\n\r\n")?).ok()?;
    let (status, rest) = text.split_once(' ')?;
    let mut headers = rest.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    let ours = headers.any(|(name, _)| name.eq_ignore_ascii_case("x-request-id"));
    let status: u16 = status.parse().ok()?;
    (!ours).then_some(400 + status)
}

/// The same status with our headers and our envelope; the connection closes after it.
pub(super) fn replacement(status: u16, limits: StreamLimits) -> Vec<u8> {
    let too_large = || error::headers_too_large(limits.max_header_bytes, limits.max_headers);
    let (reason, message, code) = match status {
        414 => ("URI Too Long", too_large(), Some("request_too_large")),
        431 => ("Request Header Fields Too Large", too_large(), Some("request_too_large")),
        _ => ("Bad Request", "The request is not valid HTTP/1.1.".to_owned(), None),
    };
    let body = error::wire_error(&message, code);
    let mut answer = format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nx-request-id: {}\r\n\
         connection: close\r\n\r\n",
        body.len(),
        id::unique("req_")
    )
    .into_bytes();
    answer.extend_from_slice(&body);
    answer
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_answers_without_a_request_id_are_replaced() {
        let automatic = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(status(automatic), Some(431));
        assert_eq!(status(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n"), Some(400));
        assert_eq!(status(b"HTTP/1.1 404 Not Found\r\nX-Request-Id: a\r\n\r\n"), None);
        assert_eq!(status(b"HTTP/1.1 404 Not Found\r\nx-request-id: a\r\n\r\n{\"error\":1}"), None);
        assert_eq!(status(b"HTTP/1.1 200 OK\r\n\r\n"), None);
        let limits = StreamLimits { write_timeout: Duration::ZERO, max_header_bytes: 65536, max_headers: 100 };
        let ours = String::from_utf8(replacement(431, limits)).unwrap();
        assert!(ours.starts_with("HTTP/1.1 431 "), "{ours}");
        assert!(ours.contains("Request headers exceed 65536 bytes, or are more than 100."), "{ours}");
        assert_eq!(status(ours.as_bytes()), None);
    }
}
