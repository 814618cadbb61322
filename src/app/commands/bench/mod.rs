//! `bench`: what the server does on this machine, in about a minute.
//!
//! The real server is started in this process on a loopback port and asked over HTTP, or a running one is asked at its
//! URL. Measured are, in this order: the machine's own peak, one request alone, clients that wait for their answers, and
//! requests that come by the clock below and above what the server carries. Progress goes to stderr, the result to
//! stdout. Everything is seeded: two runs ask the same.

mod client;
mod closed;
mod machine;
mod meter;
mod open;
mod remote;
mod report;
mod samples;
mod table;
mod texts;

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::app::serve;
use crate::cli::{BenchArgs, ServeArgs};
use crate::config::{Config, ConfigError, Environment};
use crate::engine::SlotState;
use crate::load::describe;
use crate::load::work::Work;
use crate::observe::progress::LoadProgress;
use crate::source;
use client::{Connection, EMBEDDINGS, Target};
use closed::Closed;
use machine::Machine;
use meter::{CLIENT_THREAD, Everybody, Meter};
use open::Open;
use report::{Alone, Figures, Kind, Report, Start, Waiting};
use texts::{Payload, Random, Texts};

/// The lengths of texts that are told apart: a query, a paragraph, a page.
const LENGTHS: [usize; 3] = [16, 128, 512];
/// The load of requests by the clock, over what the server carries.
const FACTORS: [f64; 5] = [0.5, 0.8, 1.0, 2.0, 10.0];
/// Clients of the two measurements of what the server carries, with short texts and with long ones: enough to have the
/// next batch waiting, and no more than get their first answer in reasonable time.
const MANY_CLIENTS: usize = 32;
const FEW_CLIENTS: usize = 8;
/// Texts of more tokens are long.
const SHORT_TOKENS: usize = 64;
/// Texts of one large request, and how many clients send them: enough to have one waiting while others are computed.
const LARGE_REQUEST: usize = 32;
const LARGE_CLIENTS: usize = 4;
/// Different requests of one kind, sent in turn.
const VARIETY: usize = 64;

/// The server that is measured.
#[derive(Debug)]
struct Subject {
    target: Target,
    texts: Texts,
    meter: Meter,
}

/// Measures and reports.
pub(in crate::app) fn bench(
    args: &BenchArgs,
    serve: &ServeArgs,
    environment: &Environment,
    stop: &AtomicBool,
) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let time = time(args.seconds)?;
    let report = match &args.url {
        Some(url) => measure_url(args, url, time),
        None => measure_own(args, serve, environment, (time, stop)),
    }?;
    let took = begun.elapsed();
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report.json(took))?)?;
    } else {
        writeln!(out, "{}", table::render(&report, took))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The whole time that was asked for.
fn time(seconds: f64) -> Result<Duration, ConfigError> {
    /// Below a second, nothing but noise is measured; above an hour, nothing more is learned.
    const POSSIBLE: std::ops::RangeInclusive<f64> = 1.0..=3600.0;
    let invalid = || ConfigError::Invalid {
        flag: "--seconds",
        value: seconds.to_string(),
        reason: "expected 1 to 3600".to_owned(),
    };
    if POSSIBLE.contains(&seconds) { Ok(Duration::from_secs_f64(seconds)) } else { Err(invalid()) }
}

fn measure_url(args: &BenchArgs, url: &str, time: Duration) -> anyhow::Result<Report> {
    // The variable is the server's too, which takes several.
    let key = args.api_key.as_deref().and_then(|keys| keys.split(',').next());
    let target = Target::parse(url, key)?;
    let wanted = args.models.model.iter().chain(&args.models.positional).next();
    let machine = machine(time);
    on_client_thread(|| async move {
        let subject = remote::find(target, wanted.cloned()).await?;
        let facts = json!({ "url": url, "model": subject.texts.model, "max_tokens": subject.texts.limit });
        measure(&subject, machine, facts, None, time).await
    })
}

fn measure_own(
    args: &BenchArgs,
    serve: &ServeArgs,
    environment: &Environment,
    (time, stop): (Duration, &AtomicBool),
) -> anyhow::Result<Report> {
    let config = own_config(args, serve, environment)?;
    let [spec] = config.names.models() else {
        let value = config.names.models().iter().map(|model| model.id.as_str()).collect::<Vec<_>>().join(", ");
        let reason = "one model at a time is measured".to_owned();
        return Err(ConfigError::Invalid { flag: "--model", value, reason }.into());
    };
    // Before the clock starts: a download says nothing about the server.
    say(format_args!("files of {}", spec.id));
    let folder = source::obtain(spec, describe::judge, &config.source, &LoadProgress::default(), stop)?;
    let work = Work::of_folder(&folder.path)?;
    let machine = machine(time);
    let mut facts = json!({ "model": spec.id, "revision": folder.revision, "dtype": spec.precision().to_string(),
        "kernels": config.batch.isa.name(), "threads": config.batch.threads });

    say(format_args!("start"));
    let runtime = serve::runtime()?;
    let begun = Instant::now();
    let running = runtime.block_on(async {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
        serve::start(config, listener)
    })?;
    runtime.block_on(running.ready()).map_err(anyhow::Error::msg)?;
    let start = Start { ready: begun.elapsed(), resident: meter::own_memory("VmRSS:") };
    let slot = running.engine.slots().first().context("no model is served")?;
    let SlotState::Ready(served) = slot.state() else { anyhow::bail!("the model is not ready any more") };
    let words = served.tokenizer.whole_words();
    facts["max_tokens"] = json!(served.limits.max_tokens);
    let texts = Texts {
        model: slot.spec.id.clone(),
        words: words.words,
        frame: words.frame,
        limit: served.limits.max_tokens,
        work: Some(work),
        own_server: true,
    };
    let subject = Subject { target: Target::local(running.address), texts, meter: Meter::OwnProcess };
    let report = on_client_thread(|| measure(&subject, machine, facts, Some(start), time));
    drop(served);
    runtime.block_on(running.stop(Duration::ZERO));
    report
}

/// As `serve` would be configured, but for this machine alone: no keys, and a port of its own.
fn own_config(args: &BenchArgs, serve: &ServeArgs, environment: &Environment) -> Result<Config, ConfigError> {
    let mut serve = serve.clone();
    (serve.models, serve.batching, serve.source) = (args.models.clone(), args.batching.clone(), args.source.clone());
    (serve.server.host, serve.server.port) = ("127.0.0.1".to_owned(), Some(0));
    (serve.server.api_key, serve.server.api_key_file, serve.server.keys_file) = (Vec::new(), Vec::new(), None);
    Config::resolve(&serve, environment)
}

fn machine(time: Duration) -> Machine {
    say(format_args!("the machine"));
    Machine::measure(time.mul_f64(0.02))
}

/// Runs the client on a thread of its own, so that its processor time can be told from the server's.
fn on_client_thread<R: Send, F: Future<Output = anyhow::Result<R>>>(
    work: impl FnOnce() -> F + Send,
) -> anyhow::Result<R> {
    std::thread::scope(|scope| {
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(work())
        };
        let thread = std::thread::Builder::new().name(CLIENT_THREAD.to_owned()).spawn_scoped(scope, run)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// One line of progress; a closed stderr is no reason to stop.
fn say(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "bench: {what}");
}

/// Everything that is asked of a server that is ready.
async fn measure(
    subject: &Subject,
    machine: Machine,
    facts: Value,
    start: Option<Start>,
    time: Duration,
) -> anyhow::Result<Report> {
    let (texts, machine_cores) = (&subject.texts, machine.cores);
    anyhow::ensure!(!texts.words.is_empty(), "the tokenizer has no whole words to make texts of");
    check(subject).await?;
    let everybody = Everybody::read();
    let mut lengths = LENGTHS.map(|wanted| texts.length(wanted)).to_vec();
    lengths.dedup();

    let mut figures = Figures::default();
    for &length in &lengths {
        say(format_args!("one request alone: {length} tokens"));
        let payloads = texts.uniform(VARIETY, length);
        let closed = waiting(subject, &payloads, 1, time.mul_f64(0.04)).await?;
        figures.alone.push(Alone { length, closed });
    }
    for (clients, n_texts) in [(1, 1), (8, 1), (32, 1), (LARGE_CLIENTS, LARGE_REQUEST)] {
        say(format_args!("waiting clients: {clients}, texts of mixed lengths, {n_texts} in each request"));
        let closed = waiting(subject, &texts.mixed(n_texts), clients, time.mul_f64(0.05)).await?;
        figures.waiting.push(Waiting { kind: Kind::Mixed, n_texts, closed });
    }
    let kinds = [lengths.first(), lengths.last()].into_iter().flatten().copied();
    let mut kinds: Vec<usize> = kinds.collect();
    kinds.dedup();
    for length in kinds {
        let clients = if length <= SHORT_TOKENS { MANY_CLIENTS } else { FEW_CLIENTS };
        say(format_args!("waiting clients: {clients}, texts of {length} tokens"));
        let payloads = texts.uniform(VARIETY, length);
        let closed = waiting(subject, &payloads, clients, time.mul_f64(0.04)).await?;
        let carried = closed.requests_per_second();
        figures.waiting.push(Waiting { kind: Kind::Tokens(length), n_texts: 1, closed });
        for factor in FACTORS {
            let per_second = factor * carried;
            say(format_args!(
                "by the clock: {per_second:.1} requests/s of {length} tokens, {factor} of what it carries"
            ));
            let open = by_the_clock(subject, &payloads, per_second, time.mul_f64(0.045)).await?;
            figures.by_the_clock.push((length, factor, open));
        }
    }
    let others = everybody.as_ref().zip(Everybody::read()).and_then(|(then, now)| now.others_since(then));
    let (own, here) = (subject.meter == Meter::OwnProcess, subject.target.is_this_machine());
    // Another process's server on this machine would be counted among the others.
    figures.others = others.filter(|_| own || !here);
    figures.memory = subject.meter.memory(&subject.target).await;
    Ok(Report { machine, server_cores: here.then_some(machine_cores), facts, start, figures })
}

/// One request with texts of many lengths: the server answers, and counts the tokens that were meant.
async fn check(subject: &Subject) -> anyhow::Result<()> {
    let lengths: Vec<usize> = (4..=24).chain(LENGTHS).map(|wanted| subject.texts.length(wanted)).collect();
    let payload = subject.texts.payload(&lengths, &mut Random::new(0));
    let answer = Connection::new(&subject.target).json(EMBEDDINGS, Some(payload.body)).await?;
    let vectors = answer["data"].as_array().map_or(0, Vec::len);
    anyhow::ensure!(vectors == lengths.len(), "{} texts were answered with {vectors} vectors", lengths.len());
    let tokens = answer["usage"]["prompt_tokens"].as_u64();
    let meant = payload.n_tokens as u64;
    anyhow::ensure!(tokens == Some(meant), "texts of {meant} tokens were counted as {tokens:?}");
    Ok(())
}

async fn waiting(subject: &Subject, payloads: &[Payload], clients: usize, time: Duration) -> anyhow::Result<Closed> {
    Ok(closed::run(subject, &closed::Plan { payloads, clients, time }).await?)
}

/// For `time`, or longer where that would be too few requests to say anything.
async fn by_the_clock(
    subject: &Subject,
    payloads: &[Payload],
    per_second: f64,
    time: Duration,
) -> anyhow::Result<Open> {
    const ENOUGH: f64 = 20.0;
    const LONGEST: f64 = 2.0;
    let seconds = time.as_secs_f64();
    let time = Duration::from_secs_f64((ENOUGH / per_second).clamp(seconds, LONGEST * seconds));
    open::run(subject, &open::Plan { payloads, per_second, time }).await.context("cannot start a thread")
}
