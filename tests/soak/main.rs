//! The executable under everything at once for as long as one likes: `cargo soak --minutes 60`.
//!
//! The release build serves real all-MiniLM-L6-v2 and two tiny models, of which two of three fit in memory. Clients of
//! every kind share it: short and long texts, large requests, malformed ones, ones that leave, that dawdle, that lie
//! about their length. Every vector is compared, bit for bit, with the one that the quiet server gave, which is within
//! 1e-5 of sentence-transformers' own. Then memory, descriptors, threads and latency are held to what they were after the
//! warm-up, the server has to come to rest, and to end on SIGTERM in the middle of the traffic.
//!
//! `--leak` is the control: connections that nobody closes pile up, and the run succeeds only if that is found out.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a broken harness ends the run")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the report goes to stdout, progress to stderr")]
#![expect(
    clippy::disallowed_methods,
    reason = "it starts a program, writes models and waits; the product does so in one place each"
)]
#![expect(dead_code, reason = "the support modules serve other tests too")]
#![expect(unreachable_pub, reason = "support modules are public to their siblings")]

mod answers;
mod clients;
mod report;
mod watch;

#[path = "../process/server.rs"]
mod server;

/// The in-process tests' tools, as far as they need no library.
#[path = "../it/support"]
mod support {
    pub mod random;
    pub mod raw;
    pub mod tiny_model;
}

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;

use answers::Answers;
use clients::{Client, Tally};
use report::Report;
use server::{Server, embedserve};
use support::tiny_model::TinyModel;
use watch::Watch;

/// Serves for a long time under mixed traffic and compares the end with the beginning.
#[derive(Debug, Parser)]
struct Arguments {
    /// Minutes of traffic; the first fifth is the warm-up
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// Minutes of rest after it [default: a sixth of the traffic]
    #[arg(long)]
    rest: Option<f64>,
    /// Clients at once
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Folder with the files of all-MiniLM-L6-v2 [default: obtained as the server does it]
    #[arg(long)]
    model: Option<String>,
    /// Number format of the real model; vectors other than f32 are compared with the quiet server's alone
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// What the clients do, in which order
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Let connections pile up: the run succeeds if the growth is found out
    #[arg(long)]
    leak: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let models = tempfile::tempdir().unwrap();
    for (seed, name) in (1..).zip(TINY) {
        let folder = models.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        TinyModel { seed, ..TinyModel::default() }.write_to(&folder);
    }
    let mut server = start(&arguments, models.path());
    server.wait_until_ready();
    let answers = Answers::of_quiet(&server, arguments.dtype == "f32");
    eprintln!("soak: {} texts known, {} MiB resident", answers.len(), server.resident_bytes() >> 20);

    let time = Duration::from_secs_f64(60.0 * arguments.minutes);
    let rest = arguments.rest.map_or(time / 6, |minutes| Duration::from_secs_f64(60.0 * minutes));
    let (stop, ending) = (AtomicBool::new(false), AtomicBool::new(false));
    let (watch, tallies, resting, end) = std::thread::scope(|scope| {
        let run = |seed: u64| {
            let client = Client::new(server.address, &answers, seed, (&stop, &ending));
            scope.spawn(move || client.run(Tally::new(time)))
        };
        let clients: Vec<_> = (0..arguments.clients as u64).map(|n| run(arguments.seed + n)).collect();
        let mut watch = Watch::new(&server, time);
        watch.run(arguments.leak);
        stop.store(true, Ordering::Relaxed);
        let mut tallies: Vec<Tally> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        let resting = watch.rest(rest);
        // Traffic again, and the end in the middle of it.
        stop.store(false, Ordering::Relaxed);
        let clients: Vec<_> = (0..arguments.clients as u64).map(|n| run(arguments.seed + 1000 + n)).collect();
        std::thread::sleep(Duration::from_secs(1));
        ending.store(true, Ordering::SeqCst);
        server.signal("TERM");
        let begin = Instant::now();
        tallies.extend(clients.into_iter().map(|client| client.join().unwrap()));
        (watch.into_samples(), tallies, resting, begin)
    });
    let code = server.wait().code();
    let report = Report { time, watch, tally: Tally::sum(tallies), resting, exit: (code, end.elapsed()) };
    println!("{report}");
    let faults = report.faults();
    if arguments.leak {
        let found = faults.iter().any(|fault| fault.starts_with(report::MEMORY));
        println!("\nA leak {} found out.", if found { "was" } else { "was NOT" });
        return if found { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    for fault in &faults {
        println!("\nFAULT: {fault}");
    }
    if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The models that are loaded and unloaded all the time.
const TINY: [&str; 2] = ["tiny-a", "tiny-b"];

fn start(arguments: &Arguments, tiny: &Path) -> Server {
    let real = arguments.model.as_ref().map_or(answers::MODEL.to_owned(), |folder| format!("dir:{folder}"));
    let mut flags = vec!["--model".to_owned(), real, "--dtype".to_owned(), arguments.dtype.clone()];
    for name in TINY {
        flags.extend(["--model".to_owned(), format!("dir:{}", tiny.join(name).display())]);
    }
    flags.extend(["--served-model-name", "real", "--max-loaded-models", "2"].map(str::to_owned));
    if arguments.leak {
        flags.extend(["--max-connections", "1000000", "--idle-timeout", "10h"].map(str::to_owned));
    }
    let quiet = ["--log-level", "warn,embedserve::app::serve=info"].map(str::to_owned);
    flags.extend(quiet);
    let mut command = embedserve(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    // The real model comes from the user's own cache, or gets there.
    for name in ["HOME", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "PIP_INDEX_URL", "PIP_CONFIG_FILE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    Server::spawn(command)
}
