//! embedserve: an OpenAI-compatible embeddings server.
//!
//! # The data path is the tree
//!
//! ```text
//! http ─► auth, limits ─► request ─► model by name ─► tokenize ─► batch ─► runner ─► arch/kernel ─► pool ─► reply
//!         key, size,      parsed,    closed            text to     queue    thread    packed        cls,    float or
//!         deadline        valid      catalogue         ids         (each    (each     tokens,       mean,   base64
//!                                                                  model)   model)    no padding    norm
//! ```
//!
//! # One request
//!
//! [`http::server`] accepts the connection, [`http`] checks key, size and type and parses the JSON, and
//! [`request::EmbedRequest::parse`] makes a value of it: whatever exists as an `EmbedRequest` is valid. Then
//! [`engine::Served::embed`] is the whole of it: the [`tokenize::Tokenizer`] turns texts into ids on its worker
//! threads, the [`batch::Queue`] accepts all rows or refuses them at once, the device thread of [`runner`] packs rows
//! of any requests into one batch, [`arch`] and [`kernel`] compute it without padding, [`pool::Head`] makes one finite
//! vector per row, and the reply is written straight into one buffer.
//!
//! # Before the first request
//!
//! [`cli`] says what was typed, [`config`] what it means, [`catalog`] which models exist under which names. [`app`]
//! binds the socket first; then [`source`] obtains each model's files and verifies them, and [`load`] turns a folder
//! into a serving model after a self-test. Where more models are served than fit in memory, [`engine`] decides which one
//! comes and which one goes, and the same loading thread does it.
//!
//! # Invariants
//!
//! * Only [`http`] knows OpenAI's JSON and HTTP status codes.
//! * Only [`source`] opens outbound sockets, starts programs or writes files, and no request can cause it to. (The
//!   commands `health` and `bench` are clients: they speak to the server that they are pointed at.)
//! * Only the device thread calls an encoder; tensors never leave it, plain rows do. Before it has one, the loading thread
//!   computes known texts, in a turn like everybody's.
//! * [`batch::plan`] is pure; every queue and channel is bounded; every queued row is answered exactly once.
//! * A row's vector, and its failure, do not depend on its neighbours: on the CPU bit for bit.
//! * No value leaves [`pool`] that is not finite.
//! * `unsafe` lives in [`kernel`] and [`weights`] alone.
//!
//! Tests enforce each of them; `tests/it/tidy.rs` checks the arrows between modules.

pub mod app;
pub mod cli;
pub mod config;

pub mod http;

pub mod request;

pub mod engine;

pub mod tokenize;

pub mod batch;

pub mod runner;

pub mod arch;
pub mod kernel;
pub mod pool;

pub mod catalog;
pub mod excerpt;
pub mod load;
pub mod small_file;
pub mod source;
pub mod weights;

pub mod observe;
pub mod threads;
