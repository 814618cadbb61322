//! A client's socket as hyper sees it, with what hyper does not do: a clock per phase, a limit on writes that make no
//! progress, an error body for requests that are not HTTP, and a patient end.
//!
//! hyper answers a malformed or oversized head by itself, with a status and an empty body. Those answers are
//! recognised on their way out (ours always carry a request id) and replaced by the same status in our envelope.

mod automatic;
mod pulse;

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

pub use pulse::{Expired, Patience, Pulse};

/// The limits that a stream enforces or names.
#[derive(Debug, Clone, Copy)]
pub struct StreamLimits {
    /// Time in which the client takes what hyper hands over at once, 128 KiB or so.
    pub write_timeout: Duration,
    /// For the message of 431.
    pub max_header_bytes: usize,
    /// The most headers, for the same message.
    pub max_headers: usize,
}

/// The socket.
#[derive(Debug)]
pub struct ClientStream {
    stream: TcpStream,
    pulse: Arc<Pulse>,
    limits: StreamLimits,
    /// Set from when a write waits for the client until all that lies ready is written.
    stuck: Option<Pin<Box<Sleep>>>,
    /// Our own answer in place of one of hyper's, and how much of it is sent.
    replacement: Vec<u8>,
    sent: usize,
    ending: Ending,
}

/// How far the end of a connection has come.
#[derive(Debug, Default)]
enum Ending {
    #[default]
    Open,
    /// Our side is closed; what the client still sends is read and forgotten for a moment. Closing a socket with
    /// unread data makes the kernel reset it, and the client might never see the answer that is on its way.
    Lingering {
        until: Pin<Box<Sleep>>,
        left_bytes: usize,
    },
    Closed,
}

/// Long enough for an answer to arrive and for a client to notice it.
const LINGER: Duration = Duration::from_secs(1);
/// Twice the usual body limit: a client that reads only after it has written everything still sees its 413.
const LINGER_BYTES: usize = 64 * 1024 * 1024;

impl ClientStream {
    pub fn new(stream: TcpStream, pulse: Arc<Pulse>, limits: StreamLimits) -> Self {
        let (replacement, ending) = (Vec::new(), Ending::Open);
        Self { stream, pulse, limits, stuck: None, replacement, sent: 0, ending }
    }

    /// Passes a write's outcome on, and gives up on a client that does not take it in time. A byte now and then is no
    /// progress: it would keep a large answer in memory for as long as the client likes.
    fn watch(&mut self, context: &mut Context<'_>, wrote: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if wrote.is_ready() {
            return wrote;
        }
        let timeout = self.limits.write_timeout;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(stuck.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }

    fn poll_replacement(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.replacement.len() {
            let wrote = Pin::new(&mut self.stream).poll_write(context, &self.replacement[self.sent..]);
            match ready!(self.watch(context, wrote))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.sent += n,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Read for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // hyper's cursor can only be filled by copying unless one writes unsafe code; a copy of 16 KiB costs a
        // microsecond, far less than reading it from the kernel.
        let mut chunk = [MaybeUninit::uninit(); READ_BYTES];
        let room = cursor.remaining().min(READ_BYTES);
        let mut chunk = ReadBuf::uninit(&mut chunk[..room]);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut chunk))?;
        self.pulse.received(chunk.filled());
        cursor.put_slice(chunk.filled());
        Poll::Ready(Ok(()))
    }
}

/// Read from the socket at once.
const READ_BYTES: usize = 16 * 1024;

impl Write for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_replacement(context))?;
        if let Some(status) = automatic::status(bytes) {
            self.replacement = automatic::replacement(status, self.limits);
            self.sent = 0;
            self.pulse.linger();
            // hyper's bytes count as sent; ours follow when it flushes.
            return Poll::Ready(Ok(bytes.len()));
        }
        let wrote = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, wrote)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_replacement(context))?;
        // hyper flushes when it has written all that it had.
        self.stuck = None;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.ending {
                Ending::Open => {
                    ready!(this.poll_replacement(context))?;
                    ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
                    this.ending = if this.pulse.lingers() {
                        this.pulse.answering();
                        Ending::Lingering { until: Box::pin(sleep(LINGER)), left_bytes: LINGER_BYTES }
                    } else {
                        Ending::Closed
                    };
                }
                Ending::Lingering { until, left_bytes } => {
                    let mut chunk = [MaybeUninit::uninit(); READ_BYTES];
                    let mut chunk = ReadBuf::uninit(&mut chunk);
                    let over = match Pin::new(&mut this.stream).poll_read(context, &mut chunk) {
                        Poll::Ready(Ok(())) => {
                            let n = chunk.filled().len();
                            *left_bytes = left_bytes.saturating_sub(n);
                            n == 0 || *left_bytes == 0
                        }
                        Poll::Ready(Err(_)) => true,
                        Poll::Pending => {
                            ready!(until.as_mut().poll(context));
                            true
                        }
                    };
                    if over {
                        this.ending = Ending::Closed;
                    }
                }
                Ending::Closed => return Poll::Ready(Ok(())),
            }
        }
    }
}
