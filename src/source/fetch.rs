//! One file under policy: ranges, resume, size, deadline, retries.
//!
//! Bytes are appended to a part that outlives the process, in ranges of 16 MiB: a cut, stalled or killed transfer goes
//! on where it ended. Every answer's status, type, range and length is checked before a byte is kept, so an error page
//! never becomes part of a file. Between attempts the pause doubles, and `Retry-After` (in seconds) is honoured.

use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use http::{Method, Uri};
use indicatif::MultiProgress;

use crate::catalog::ModelSpec;
use crate::config::SourceConfig;
use crate::observe::progress::LoadProgress;
use crate::source::Judge;
use crate::source::cache::{ensure_file_size, ensure_space, pause, remove};
use crate::source::client::{Answer, Ask, Client, Follow};
use crate::source::error::Cause;
use crate::source::fault;
use crate::source::meter::Meter;

/// What every source needs to know while it works.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context<'c> {
    pub config: &'c SourceConfig,
    pub progress: &'c LoadProgress,
    pub stop: &'c AtomicBool,
    /// Where bars are drawn, if they are wanted: one per file under way.
    pub bars: Option<&'c MultiProgress>,
    pub spec: &'c ModelSpec,
    /// Asked before weights are.
    pub judge: Judge,
    /// Whether some source has a complete copy on this machine already: then no server is worth waiting for.
    pub cached: bool,
}

/// One file to bring here.
#[derive(Debug)]
pub(super) struct Transfer<'t> {
    pub url: Uri,
    pub name: &'t str,
    /// As announced; the transfer ends with exactly this many bytes.
    pub size: u64,
    pub part: &'t Path,
}

/// How long and how often to try.
#[derive(Debug)]
pub(super) struct Patience {
    attempts: u32,
    /// Attempts while no server answered at all.
    silent_attempts: u32,
    backoff: Duration,
    begun: Instant,
    time: Duration,
}

// === impl Patience ===

impl Patience {
    /// For files of a server that has answered before.
    pub(super) fn for_file(config: &SourceConfig) -> Self {
        Self {
            attempts: config.attempts,
            silent_attempts: config.attempts,
            backoff: config.backoff,
            begun: Instant::now(),
            time: config.file_timeout,
        }
    }

    /// For a first question: a server that is not there gets one more chance, or none where a copy can serve instead.
    pub(super) fn for_first_contact(context: &Context<'_>) -> Self {
        let silent_attempts = if context.cached { 1 } else { context.config.attempts.min(2) };
        Self { silent_attempts, ..Self::for_file(context.config) }
    }

    /// Repeats what may succeed a moment later. An attempt that answers `Ok` has moved things forward.
    pub(super) fn retry<T>(
        &self,
        what: &str,
        stop: &AtomicBool,
        mut once: impl FnMut() -> Result<T, Cause>,
    ) -> Result<T, Cause> {
        let mut failures = 0;
        loop {
            let cause = match once() {
                Ok(done) => return Ok(done),
                Err(cause) => cause,
            };
            failures += 1;
            let silent = matches!(cause, Cause::Unreachable { .. } | Cause::Stalled { .. });
            let allowed = if silent { self.silent_attempts } else { self.attempts };
            if !cause.is_transient() || failures >= allowed {
                return Err(cause);
            }
            let wait = self.wait(failures, &cause);
            if self.begun.elapsed() + wait >= self.time {
                tracing::warn!(file = what, %cause, "no time left for another attempt");
                return Err(Cause::Deadline { what: what.to_owned(), after: self.begun.elapsed() });
            }
            tracing::warn!(file = what, %cause, attempt = failures, wait_ms = wait.as_millis(), "will try again");
            pause(wait, stop)?;
        }
    }

    fn wait(&self, failures: u32, cause: &Cause) -> Duration {
        let doubled = self.backoff.saturating_mul(1 << (failures - 1).min(16)).min(MAX_BACKOFF);
        if let Cause::Status { retry_after: Some(asked), .. } = cause {
            return doubled.max(*asked);
        }
        doubled
    }

    fn check(&self, what: &str) -> Result<(), Cause> {
        let after = self.begun.elapsed();
        if after >= self.time {
            return Err(Cause::Deadline { what: what.to_owned(), after });
        }
        Ok(())
    }
}

/// Completes the part. On an error the part keeps what was received, for the next run to resume; only a disk that takes
/// no more bytes gets back those it has.
pub(super) fn download(client: &Client, transfer: &Transfer<'_>, context: &Context<'_>) -> Result<(), Cause> {
    let result = receive(client, transfer, context);
    if matches!(result, Err(Cause::Io { action: WRITE, .. })) {
        remove(transfer.part)?;
    }
    result
}

fn receive(client: &Client, transfer: &Transfer<'_>, context: &Context<'_>) -> Result<(), Cause> {
    let Transfer { name, size, part, .. } = *transfer;
    if size > context.spec.max_file_bytes {
        return Err(Cause::TooLarge { file: name.to_owned(), size, limit: context.spec.max_file_bytes });
    }
    ensure_file_size(part, size)?;
    fault::point("before_create");
    let mut file =
        OpenOptions::new().create(true).truncate(false).write(true).open(part).map_err(Cause::io("create", part))?;
    let have = file.metadata().map_err(Cause::io("examine", part))?.len();
    if have > size {
        // Cannot be a part of this file.
        restart(&mut file, part)?;
    } else if have > 0 {
        tracing::info!(file = name, bytes = have, "resuming an earlier download");
    }
    let folder = part.parent().unwrap_or(part);
    ensure_space(folder, size.saturating_sub(have))?;
    let patience = Patience::for_file(context.config);
    let mut meter = Meter::start(context.progress, name, size, context.bars);
    // The place the endpoint redirects to; asked again when it stops answering, since such addresses expire.
    let mut direct = None;
    loop {
        let have = file.seek(SeekFrom::End(0)).map_err(Cause::io("read", part))?;
        meter.at(have);
        if have == size {
            return Ok(());
        }
        // A whole range begins a new count of failures.
        patience.retry(name, context.stop, || {
            let mut range = Range { client, transfer, context, patience: &patience, meter: &mut meter };
            let result = range.fetch(&mut file, direct.take());
            result.map(|url| direct = Some(url))
        })?;
    }
}

/// One range of one file.
struct Range<'r, 'p> {
    client: &'r Client,
    transfer: &'r Transfer<'r>,
    context: &'r Context<'p>,
    patience: &'r Patience,
    meter: &'r mut Meter<'p>,
}

impl Range<'_, '_> {
    /// Appends the next range, and says where it came from.
    fn fetch(&mut self, file: &mut File, direct: Option<Uri>) -> Result<Uri, Cause> {
        let Transfer { name, size, part, .. } = *self.transfer;
        let start = file.seek(SeekFrom::End(0)).map_err(Cause::io("read", part))?;
        let end = size.min(start.saturating_add(RANGE_BYTES));
        if start >= end {
            return Ok(self.transfer.url.clone());
        }
        let was_direct = direct.as_ref().is_some_and(|url| *url != self.transfer.url);
        let ask = Ask {
            method: Method::GET,
            url: direct.unwrap_or_else(|| self.transfer.url.clone()),
            range: Some((start, end - 1)),
            follow: Follow::All,
            what: name.to_owned(),
        };
        let mut answer = self.client.send(&ask, self.context.stop)?;
        if was_direct && matches!(answer.status, 401 | 403 | 404 | 410) {
            // The address has expired: ask the endpoint for a new one.
            answer = self.client.send(&Ask { url: self.transfer.url.clone(), ..ask }, self.context.stop)?;
        }
        let expected = match answer.status {
            206 => partial_length(&answer, &(start..end), size)?,
            200 => {
                // The server knows no ranges: from the beginning, then.
                let announced = answer.header("content-length").and_then(|text| text.parse().ok());
                if let Some(found) = announced.filter(|found| *found != size) {
                    return Err(Cause::Size { file: name.to_owned(), expected: size, found });
                }
                restart(file, part)?;
                size
            }
            416 => {
                restart(file, part)?;
                return Err(answer.status_error());
            }
            _ => return Err(answer.status_error()),
        };
        if answer.header("content-type").is_some_and(|kind| kind.trim_start().starts_with("text/html")) {
            return Err(answer.protocol("it sent a web page instead of a file"));
        }
        let url = answer.url.clone();
        self.append(file, &mut answer, expected)?;
        Ok(url)
    }

    fn append(&mut self, file: &mut File, answer: &mut Answer, expected: u64) -> Result<(), Cause> {
        let Transfer { name, size, part, .. } = *self.transfer;
        let mut received = 0;
        while received < expected {
            self.patience.check(name)?;
            let block = match answer.block(self.context.stop) {
                Ok(Some(block)) => block,
                Ok(None) | Err(Cause::Cut { .. }) => {
                    return Err(Cause::Cut { what: name.to_owned(), received, expected });
                }
                Err(cause) => return Err(cause),
            };
            received += block.len() as u64;
            if received > expected {
                // More than was announced: nothing of it can be trusted.
                restart(file, part)?;
                return Err(Cause::Size { file: name.to_owned(), expected, found: received });
            }
            file.write_all(&block).map_err(Cause::io(WRITE, part))?;
            fault::point("chunk");
            let have = file.stream_position().map_err(Cause::io("write", part))?;
            self.meter.at(have.min(size));
        }
        Ok(())
    }
}

/// Length of a 206 answer whose range is the one that was asked for, or begins like it.
fn partial_length(answer: &Answer, asked: &std::ops::Range<u64>, size: u64) -> Result<u64, Cause> {
    let header = answer.header("content-range").unwrap_or_default();
    let Some(range) = parse_content_range(header) else {
        return Err(answer.protocol("the range it sent cannot be read"));
    };
    if range.total.is_some_and(|total| total != size) {
        let found = range.total.unwrap_or_default();
        return Err(Cause::Size { file: answer.what().to_owned(), expected: size, found });
    }
    if range.first != asked.start || range.last < range.first || range.last >= asked.end {
        return Err(answer.protocol("it sent another range than the one asked for"));
    }
    Ok(range.last - range.first + 1)
}

#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    first: u64,
    last: u64,
    total: Option<u64>,
}

/// `bytes 0-9/100` or `bytes 0-9/*`.
fn parse_content_range(header: &str) -> Option<ContentRange> {
    let (range, total) = header.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?;
    let total = if total == "*" { None } else { Some(number(total)?) };
    Some(ContentRange { first: number(first)?, last: number(last)?, total })
}

fn restart(file: &mut File, part: &Path) -> Result<(), Cause> {
    file.set_len(0).and_then(|()| file.rewind()).map_err(Cause::io("empty", part))
}

const WRITE: &str = "write";
/// One request's worth: large enough to cost nothing in round trips, small enough that a lost one is soon repeated.
const RANGE_BYTES: u64 = 16 << 20;
/// Longer pauses help no server and look like a hang.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_exactly() {
        let range = |first, last, total| Some(ContentRange { first, last, total });
        assert_eq!(parse_content_range("bytes 0-9/100"), range(0, 9, Some(100)));
        assert_eq!(parse_content_range("bytes 5-5/*"), range(5, 5, None));
        for bad in [
            "",
            "bytes */100",
            "bytes 0-9",
            "items 0-9/10",
            "bytes -9/10",
            "bytes +1-9/10",
            "bytes 0-9/+10",
            "bytes 0-99999999999999999999/1",
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn pauses_double_up_to_a_limit_and_respect_the_server() {
        let patience = Patience {
            attempts: 5,
            silent_attempts: 5,
            backoff: Duration::from_secs(1),
            begun: Instant::now(),
            time: Duration::from_hours(1),
        };
        let cut = Cause::Cut { what: String::new(), received: 0, expected: 1 };
        let waits: Vec<u64> = [1, 2, 3, 4, 10, 60].map(|n| patience.wait(n, &cut).as_secs()).to_vec();
        assert_eq!(waits, [1, 2, 4, 8, 30, 30]);
        let asked = |seconds| Cause::Status {
            host: String::new(),
            status: 429,
            what: String::new(),
            retry_after: Some(Duration::from_secs(seconds)),
        };
        assert_eq!(patience.wait(1, &asked(17)).as_secs(), 17);
        assert_eq!(patience.wait(4, &asked(2)).as_secs(), 8);
    }
}
