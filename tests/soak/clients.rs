//! Who comes: most want vectors and check every one of them, the others are what a public port sees.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::TINY;
use crate::answers::{Answers, Known, wrong};
use crate::support::random::Random;
use crate::support::raw::{RawAnswer, RawClient, get, post};

/// What happened to whom.
#[derive(Default)]
pub struct Tally {
    /// Requests by kind.
    pub kinds: BTreeMap<&'static str, u64>,
    /// Vectors compared.
    pub vectors: u64,
    /// Refused because the server was too busy, or was ending.
    pub refused: u64,
    /// What should not have happened; the first of them, and how many.
    pub faults: Vec<String>,
    pub n_faults: u64,
    /// Of one short text: when, in seconds since the start, and how long it took.
    pub latencies: Vec<(f64, f64)>,
    start: Option<Instant>,
    time: Duration,
}

/// One client.
pub struct Client<'a> {
    address: SocketAddr,
    answers: &'a Answers,
    random: Random,
    connection: Option<RawClient>,
    /// To be gone now.
    stop: &'a AtomicBool,
    /// The server has been told to end: it may refuse, and close what it has not begun to answer.
    ending: &'a AtomicBool,
}

/// Kept of the faults of each client.
const FAULTS: usize = 5;

impl<'a> Client<'a> {
    pub fn new(
        address: SocketAddr,
        answers: &'a Answers,
        seed: u64,
        (stop, ending): (&'a AtomicBool, &'a AtomicBool),
    ) -> Self {
        Self { address, answers, random: Random::new(seed), connection: None, stop, ending }
    }

    /// Comes again and again until it is told to stop, or the server is gone.
    pub fn run(mut self, mut tally: Tally) -> Tally {
        while !self.stop.load(Ordering::Relaxed) {
            let (kind, outcome) = self.visit(&mut tally);
            *tally.kinds.entry(kind).or_default() += 1;
            let ending = self.ending.load(Ordering::SeqCst);
            if let Err(fault) = &outcome
                // What was sent when the server was told to end may be lost with its connection, but not answered wrongly.
                && !(ending && fault == UNANSWERED)
            {
                tally.fault(format!("{kind}: {fault}"));
            }
            if (ending || outcome.is_err()) && TcpStream::connect(self.address).is_err() {
                break;
            }
        }
        tally
    }

    fn visit(&mut self, tally: &mut Tally) -> (&'static str, Result<(), String>) {
        match self.random.below(100) {
            0..45 => ("one text", self.texts(1, tally)),
            45..65 => {
                let n = 2 + self.random.below(31);
                ("several texts", self.texts(n, tally))
            }
            65..67 => ("256 texts", self.texts(256, tally)),
            67..72 => ("another model", self.other_model(tally)),
            72..80 => ("malformed body", self.malformed_body()),
            80..85 => ("malformed stream", self.malformed_stream()),
            85..91 => {
                self.leave();
                ("client that leaves", Ok(()))
            }
            91..93 => ("slow body", self.slow_body(tally)),
            93..95 => ("endless header", self.endless_header()),
            95..97 => ("body too large", self.too_large()),
            _ => ("other route", self.other_route()),
        }
    }

    fn texts(&mut self, n: usize, tally: &mut Tally) -> Result<(), String> {
        let answers = self.answers;
        let texts: Vec<&Known> = (0..n).map(|_| self.pick(answers.real())).collect();
        let begin = Instant::now();
        let outcome = self.embed("real", &texts, tally);
        // The short ones alone are comparable.
        if n == 1 && texts[0].tokens <= 16 && outcome.is_ok() {
            let since = tally.start.map_or(0.0, |start| begin.duration_since(start).as_secs_f64());
            tally.latencies.push((since, begin.elapsed().as_secs_f64()));
        }
        outcome
    }

    fn other_model(&mut self, tally: &mut Tally) -> Result<(), String> {
        // Each of them has its time, so that loading one pushes the other out now and then.
        let turn = tally.start.map_or(0, |start| start.elapsed().as_secs() / 2 % 2);
        let index = usize::from(turn == 1);
        let answers = self.answers;
        let texts: Vec<&Known> = (0..=self.random.below(4)).map(|_| self.pick(answers.tiny(index))).collect();
        self.embed(TINY[index], &texts, tally)
    }

    fn pick(&mut self, known: &'a [Known]) -> &'a Known {
        &known[self.random.below(known.len())]
    }

    fn body(&mut self, model: &str, texts: &[&Known]) -> String {
        let format = ["float", "base64"][self.random.below(2)];
        let texts: Vec<&str> = texts.iter().map(|known| known.text.as_str()).collect();
        json!({"model": model, "input": texts, "encoding_format": format}).to_string()
    }

    fn embed(&mut self, model: &str, texts: &[&Known], tally: &mut Tally) -> Result<(), String> {
        let body = self.body(model, texts);
        let answer = self.exchange(&post(&body))?;
        Self::judge(&answer, texts, tally)
    }

    fn judge(answer: &RawAnswer, texts: &[&Known], tally: &mut Tally) -> Result<(), String> {
        if answer.status == 503 {
            tally.refused += 1;
            return if answer.header("retry-after").is_some() { Ok(()) } else { Err("503 without a delay".to_owned()) };
        }
        if answer.status != 200 {
            return Err(format!("status {}: {}", answer.status, beginning(&answer.body)));
        }
        tally.vectors += texts.len() as u64;
        wrong(answer, texts).map_or(Ok(()), Err)
    }

    fn malformed_body(&mut self) -> Result<(), String> {
        let body = &self.answers.malformed[self.random.below(self.answers.malformed.len())];
        let mut bytes =
            format!("POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
        // Some of them are no text.
        let mut connection = self.connect()?;
        let mut request = std::mem::take(&mut bytes).into_bytes();
        request.extend(body);
        connection.send(request);
        self.refusal(&connection.answer().ok_or(UNANSWERED)?)
    }

    fn malformed_stream(&mut self) -> Result<(), String> {
        let stream = &self.answers.streams[self.random.below(self.answers.streams.len())];
        let mut connection = self.connect()?;
        connection.send(stream);
        connection.half_close();
        // Closed without an answer is right as well: whoever speaks no HTTP would not understand one.
        match connection.answer() {
            Some(answer) if answer.status < 400 => Err(format!("status {} for {}", answer.status, escaped(stream))),
            _ => Ok(()),
        }
    }

    /// Goes while the answer is computed, or before the request is complete.
    fn leave(&mut self) {
        let answers = self.answers;
        let texts: Vec<&Known> = (0..8).map(|_| self.pick(answers.real())).collect();
        let request = post(&self.body("real", &texts));
        let part = if self.random.below(2) == 0 { request.len() } else { self.random.below(request.len()) };
        let Ok(mut stream) = TcpStream::connect(self.address) else { return };
        let _ = stream.write_all(&request.as_bytes()[..part]);
        std::thread::sleep(Duration::from_millis(self.random.below(20) as u64));
    }

    /// Half a second for a body, in ten pieces.
    fn slow_body(&mut self, tally: &mut Tally) -> Result<(), String> {
        let answers = self.answers;
        let texts: Vec<&Known> = (0..4).map(|_| self.pick(answers.real())).collect();
        let request = post(&self.body("real", &texts));
        let mut connection = self.connect()?;
        for piece in request.as_bytes().chunks(request.len().div_ceil(10)) {
            connection.send(piece);
            std::thread::sleep(Duration::from_millis(50));
        }
        let answer = connection.answer().ok_or(UNANSWERED)?;
        Self::judge(&answer, &texts, tally)
    }

    fn endless_header(&mut self) -> Result<(), String> {
        let mut connection = self.connect()?;
        connection.send("GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx-flood: ");
        let piece = vec![b'a'; 64 * 1024];
        let _ = (0..16).all(|_| connection.send(&piece));
        // A reset may overtake the answer.
        match connection.answer() {
            Some(answer) if answer.status != 431 => Err(format!("status {}", answer.status)),
            _ => Ok(()),
        }
    }

    fn too_large(&mut self) -> Result<(), String> {
        let mut connection = self.connect()?;
        connection.send("POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99000000\r\n\r\n{");
        match connection.answer() {
            Some(answer) if answer.status == 413 => Ok(()),
            Some(answer) => self.unless_ending(format!("status {}", answer.status)),
            None => Err(UNANSWERED.to_owned()),
        }
    }

    fn other_route(&mut self) -> Result<(), String> {
        let (path, expected) =
            [("/v1/models", 200), ("/livez", 200), ("/readyz", 200), ("/metrics", 200), ("/nowhere", 404)]
                [self.random.below(5)];
        let answer = self.exchange(&get(path))?;
        if answer.status == expected { Ok(()) } else { self.unless_ending(format!("{path}: status {}", answer.status)) }
    }

    /// What a malformed request has to get.
    fn refusal(&self, answer: &RawAnswer) -> Result<(), String> {
        if (400..500).contains(&answer.status) && answer.body.starts_with(r#"{"error":{"#) {
            Ok(())
        } else {
            self.unless_ending(format!("status {}: {}", answer.status, beginning(&answer.body)))
        }
    }

    fn unless_ending(&self, fault: String) -> Result<(), String> {
        if self.ending.load(Ordering::SeqCst) { Ok(()) } else { Err(fault) }
    }

    /// Over the connection that is kept, or a new one where the server has closed it.
    fn exchange(&mut self, request: &str) -> Result<RawAnswer, String> {
        if let Some(mut kept) = self.connection.take()
            && kept.send(request)
            && let Some(answer) = kept.answer()
        {
            self.connection = Some(kept);
            return Ok(answer);
        }
        let mut fresh = self.connect()?;
        fresh.send(request);
        let answer = fresh.answer().ok_or(UNANSWERED)?;
        self.connection = Some(fresh);
        Ok(answer)
    }

    fn connect(&self) -> Result<RawClient, String> {
        TcpStream::connect(self.address).map(RawClient::over).map_err(|_| UNANSWERED.to_owned())
    }
}

/// A connection that ended without an answer.
const UNANSWERED: &str = "no answer";

impl Tally {
    /// Of a client that starts now.
    pub fn new(time: Duration) -> Self {
        Self { start: Some(Instant::now()), time, ..Self::default() }
    }

    fn fault(&mut self, fault: String) {
        self.n_faults += 1;
        if self.faults.len() < FAULTS {
            self.faults.push(fault);
        }
    }

    pub fn sum(tallies: Vec<Self>) -> Self {
        let mut sum = Self::default();
        for tally in tallies {
            for (kind, n) in tally.kinds {
                *sum.kinds.entry(kind).or_default() += n;
            }
            sum.vectors += tally.vectors;
            sum.refused += tally.refused;
            sum.faults.extend(tally.faults);
            sum.n_faults += tally.n_faults;
            sum.latencies.extend(tally.latencies);
            sum.time = tally.time;
        }
        sum
    }

    /// The percentile of the latencies within these shares of the time, in seconds.
    pub fn latency(&self, percent: usize, from: f64, to: f64) -> f64 {
        let time = self.time.as_secs_f64();
        let within = self.latencies.iter().filter(|(at, _)| (from * time..to * time).contains(at));
        let mut sorted: Vec<f64> = within.map(|(_, took)| *took).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }
}

fn beginning(body: &str) -> String {
    body.chars().take(300).collect()
}

fn escaped(bytes: &[u8]) -> String {
    beginning(&bytes.escape_ascii().to_string())
}
