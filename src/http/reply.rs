//! Answers as bytes: one buffer per body, exact length, sent in slices so that a client that leaves is noticed.
//!
//! Vectors are written as the shortest decimal that reads back to the same `f32`, or as base64 of their little-endian
//! bytes. Only finite rows reach this module, so no `null` can stand in an array.

use std::convert::Infallible;
use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::body::{Frame, SizeHint};
use serde::Serialize;

use crate::engine::EmbeddedRow;
use crate::http::id;
use crate::observe::metrics;

/// How vectors are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Encoding {
    #[default]
    Float,
    Base64,
}

impl Encoding {
    /// The value of `encoding_format`; `None` for one that does not exist.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "float" => Some(Self::Float),
            "base64" => Some(Self::Base64),
            _ => None,
        }
    }
}

/// About the size of an answer with so many rows and values.
pub const fn size_bytes(n_rows: usize, n_values: usize, encoding: Encoding) -> usize {
    let per_value = match encoding {
        Encoding::Float => FLOAT_CHARS,
        Encoding::Base64 => BASE64_CHARS,
    };
    n_values.saturating_mul(per_value).saturating_add(n_rows.saturating_mul(ROW_CHARS))
}

/// The body of an embeddings answer. `model` is the name as it was requested.
pub fn embeddings(model: &str, rows: &[EmbeddedRow], encoding: Encoding) -> Vec<u8> {
    let values: usize = rows.iter().map(|row| row.vector.as_slice().len()).sum();
    let mut body = Vec::with_capacity(size_bytes(rows.len(), values, encoding) + model.len() + 256);
    body.extend_from_slice(b"{\"object\":\"list\",\"id\":\"");
    body.extend_from_slice(id::unique("embd-").as_bytes());
    put(&mut body, format_args!("\",\"created\":{},\"model\":", metrics::unix_time().as_secs()));
    put_string(&mut body, model);
    body.extend_from_slice(b",\"data\":[");
    let mut scratch = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        put(&mut body, format_args!("{{\"object\":\"embedding\",\"index\":{index},\"embedding\":"));
        match encoding {
            Encoding::Float => put_floats(&mut body, row.vector.as_slice()),
            Encoding::Base64 => put_base64(&mut body, row.vector.as_slice(), &mut scratch),
        }
        if let Some(cut) = row.cut {
            body.extend_from_slice(b",\"truncated\":true");
            if let Some(tokens) = cut.original_tokens {
                put(&mut body, format_args!(",\"original_tokens\":{tokens}"));
            }
        }
        body.push(b'}');
    }
    let tokens: usize = rows.iter().map(|row| row.tokens).sum();
    put(&mut body, format_args!("],\"usage\":{{\"prompt_tokens\":{tokens},\"total_tokens\":{tokens}}}}}"));
    body
}

/// A 200 with a JSON body.
pub fn json<T: Serialize>(value: &T) -> Response {
    // Our answers hold strings and integers only: nothing that could fail to be written.
    body(serde_json::to_vec(value).unwrap_or_default(), "application/json")
}

/// A 200 with this body.
pub fn body(bytes: Vec<u8>, content_type: &'static str) -> Response {
    body_holding((), bytes, content_type)
}

/// A 200 with this body, which keeps `held` until its last slice has been written, or given up.
pub fn body_holding<H: Send + 'static>(held: H, bytes: Vec<u8>, content_type: &'static str) -> Response {
    let left = Bytes::from_owner(Held { bytes, _held: held });
    let mut response = Response::new(Body::new(Slices { left }));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// An answer in memory, and what it takes as long as any slice of it is there: room in a budget, a place among its key's
/// requests.
#[derive(Debug)]
struct Held<H> {
    bytes: Vec<u8>,
    _held: H,
}

impl<H> AsRef<[u8]> for Held<H> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Bytes handed to the connection a slice at a time.
#[derive(Debug)]
struct Slices {
    left: Bytes,
}

impl hyper::body::Body for Slices {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        let n = self.left.len().min(SLICE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.left.split_to(n)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}

fn put(body: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // A `Vec` takes whatever is written.
    let _ = body.write_fmt(text);
}

fn put_string(body: &mut Vec<u8>, text: &str) {
    let _ = serde_json::to_writer(body, text);
}

fn put_floats(body: &mut Vec<u8>, values: &[f32]) {
    let mut buffer = zmij::Buffer::new();
    body.push(b'[');
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(buffer.format_finite(*value).as_bytes());
    }
    body.push(b']');
}

fn put_base64(body: &mut Vec<u8>, values: &[f32], scratch: &mut Vec<u8>) {
    scratch.clear();
    scratch.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    let start = body.len() + 1;
    body.push(b'"');
    body.resize(start + scratch.len().div_ceil(3) * 4, 0);
    let written = STANDARD.encode_slice(&*scratch, &mut body[start..]).unwrap_or_default();
    body.truncate(start + written);
    body.push(b'"');
}

/// Typical length of a float with its comma.
const FLOAT_CHARS: usize = 14;
/// Four bytes are five and a third.
const BASE64_CHARS: usize = 6;
/// What stands around a vector.
const ROW_CHARS: usize = 96;
/// Small enough that a slow client holds little more than its socket's buffer, large enough to cost nothing.
const SLICE_BYTES: usize = 128 * 1024;

#[cfg(test)]
mod tests;
