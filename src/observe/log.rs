//! Logging: `tracing` events to standard error, as text for people or as one JSON object per line.
//!
//! What a client sent is escaped: no control character of a value reaches a terminal or breaks a line. A standard error that
//! is closed, or that nobody reads, loses log lines and nothing else: a thread of its own writes them, and what does not fit
//! its queue is dropped. Inputs, vectors, keys and tokens are never logged, at any level;
//! that is the duty of whoever writes an event.

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Lines that may wait for whoever reads standard error: some megabytes.
const WAITING_LINES: usize = 16_384;

/// The process's logger.
static LOGGER: Mutex<Option<Logger>> = Mutex::new(None);

#[derive(Debug)]
struct Logger {
    format: LogFormat,
    dropped: ErrorCounter,
    /// Ends the writing thread.
    writer: Option<WorkerGuard>,
}

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// What to log and how.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Directives as `RUST_LOG` has them.
    pub filter: String,
    pub format: LogFormat,
    /// Colours, for a terminal.
    pub color: bool,
}

/// Installs the logger of the process; only the first call has an effect. Directives that cannot be read are left
/// out and named in a warning.
pub fn init(config: &LogConfig) {
    let (directives, unreadable) = readable(&config.filter);
    let filter = EnvFilter::builder().parse_lossy(directives);
    let lines = tracing_subscriber::fmt::layer().log_internal_errors(false).with_target(true);
    let registry = tracing_subscriber::registry().with(filter);
    let (queue, writer) = NonBlockingBuilder::default()
        .buffered_lines_limit(WAITING_LINES)
        .lossy(true)
        .thread_name("log")
        .finish(io::stderr());
    let dropped = queue.error_counter();
    let installed = match config.format {
        LogFormat::Text => {
            let stderr = Lines { queue, escape_sequences: config.color };
            registry.with(lines.with_ansi(config.color).with_writer(stderr)).try_init()
        }
        LogFormat::Json => {
            let stderr = Lines { queue, escape_sequences: false };
            registry.with(lines.with_ansi(false).json().flatten_event(true).with_writer(stderr)).try_init()
        }
    };
    // A logger that is already there belongs to a test or to a program that embeds us: it stays.
    if installed.is_ok() {
        *logger() = Some(Logger { format: config.format, dropped, writer: Some(writer) });
        if !unreadable.is_empty() {
            tracing::warn!(directives = unreadable, "log filter not understood; ignored");
        }
    }
}

fn logger() -> MutexGuard<'static, Option<Logger>> {
    // Nothing that can panic runs under this lock.
    LOGGER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How the process's logger writes, if there is one.
pub fn format() -> Option<LogFormat> {
    logger().as_ref().map(|logger| logger.format)
}

/// Lines that were dropped because nobody read standard error.
pub fn dropped_lines() -> u64 {
    logger().as_ref().map_or(0, |logger| logger.dropped.dropped_lines() as u64)
}

/// What is still waiting to be written when the process ends. Dropping it writes that, for a second at most, and nothing is
/// logged any more.
#[derive(Debug)]
pub struct Unwritten;

impl Drop for Unwritten {
    fn drop(&mut self) {
        let writer = logger().as_mut().and_then(|logger| logger.writer.take());
        drop(writer);
    }
}

/// The directives that parse, and those that do not.
fn readable(filter: &str) -> (String, String) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for part in filter.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match directive(part) {
            Some(directive) => good.push(directive),
            None => bad.push(part),
        }
    }
    let good = if good.is_empty() { "info".to_owned() } else { good.join(",") };
    (good, bad.join(","))
}

/// One directive as the filter reads it; `None` if it is none. A bare word is a level: the filter would take any other
/// for the name of a module, and a misspelt level would silence all of them.
fn directive(part: &str) -> Option<String> {
    if part.contains(['=', '[', ':']) {
        return EnvFilter::try_new(part).is_ok().then(|| part.to_owned());
    }
    // Other languages' names of levels, as they stand in environments that several programs share.
    let level = match part.to_ascii_lowercase().as_str() {
        "warning" => LevelFilter::WARN,
        "critical" | "fatal" => LevelFilter::ERROR,
        level => level.parse().ok()?,
    };
    Some(level.to_string())
}

/// Standard error, one event per write.
#[derive(Debug, Clone)]
struct Lines {
    queue: NonBlocking,
    /// Whether ESC may pass, because the formatter itself writes colours.
    escape_sequences: bool,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self::Writer {
        self.clone()
    }
}

impl Write for Lines {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.queue.write_all(&escaped(event, self.escape_sequences))?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One event as one line: every control character but the final newline is spelt out.
fn escaped(event: &[u8], escape_sequences: bool) -> Cow<'_, [u8]> {
    let (text, end) = event.strip_suffix(b"\n").map_or((event, &b""[..]), |text| (text, &b"\n"[..]));
    // Most events have none, and pass as they are.
    if !text.iter().any(u8::is_ascii_control) {
        return Cow::Borrowed(event);
    }
    let mut line = Vec::with_capacity(event.len());
    for byte in text {
        match byte {
            0x1b if escape_sequences => line.push(*byte),
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\r' => line.extend_from_slice(b"\\r"),
            b'\t' => line.extend_from_slice(b"\\t"),
            0..=0x1f | 0x7f => line.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
            _ => line.push(*byte),
        }
    }
    line.extend_from_slice(end);
    Cow::Owned(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_stays_on_its_line() {
        assert_eq!(escaped(b"a\nb\x1b[2Jc\x07\n", false).as_ref(), b"a\\nb\\x1b[2Jc\\x07\n");
        assert_eq!(escaped(b"\x1b[32mINFO\x1b[0m x\r\n", true).as_ref(), b"\x1b[32mINFO\x1b[0m x\\r\n");
        assert_eq!(escaped("é\n".as_bytes(), false).as_ref(), "é\n".as_bytes());
    }

    #[test]
    fn an_unreadable_directive_is_named_and_left_out() {
        assert_eq!(readable("info,hyper=warn"), ("info,hyper=warn".to_owned(), String::new()));
        assert_eq!(readable("debug,a=b=c"), ("debug".to_owned(), "a=b=c".to_owned()));
        assert_eq!(readable(""), ("info".to_owned(), String::new()));
        assert_eq!(readable("verbose"), ("info".to_owned(), "verbose".to_owned()));
        assert_eq!(readable("WARNING, hyper=Debug"), ("warn,hyper=Debug".to_owned(), String::new()));
        assert_eq!(readable("Fatal"), ("error".to_owned(), String::new()));
        assert_eq!(readable("off"), ("off".to_owned(), String::new()));
    }
}
