//! The house rules that a machine can check: arrows between modules, file length, where `unsafe`, channels, sockets
//! and the environment may appear, and that every flag and metric is documented.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use embedserve::cli::Cli;
use embedserve::observe::metrics::Metrics;

const MAX_LINES: usize = 400;

/// A source file: its path below `src/`, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The top-level module: `http` for `http/wire.rs`, `pool` for `pool.rs`.
    fn module(&self) -> &str {
        let first = self.path.split('/').next().unwrap();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// Lines outside comments, before the unit tests.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate().map(|(index, line)| (index + 1, line));
        let is_test_file = self.path.ends_with("tests.rs");
        lines
            .take_while(move |(_, line)| !is_test_file && !line.starts_with("#[cfg(test)]"))
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// `file:line: text` of every code line that contains one of `words`.
    fn lines_with(&self, words: &[&str]) -> String {
        let mut found = String::new();
        for (number, line) in self.code().filter(|(_, line)| words.iter().any(|word| line.contains(word))) {
            writeln!(found, "{}:{number}: {}", self.path, line.trim()).unwrap();
        }
        found
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    collect(&root().join("src"), &mut files);
    assert!(files.len() > 40, "the source tree was not found");
    files
}

fn collect(folder: &Path, files: &mut Vec<Source>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let relative = path.strip_prefix(root().join("src")).unwrap().to_str().unwrap().to_owned();
            files.push(Source { path: relative, text: std::fs::read_to_string(&path).unwrap() });
        }
    }
}

fn check(what: &str, findings: impl IntoIterator<Item = String>) {
    let findings: String = findings.into_iter().collect();
    assert!(findings.is_empty(), "{what}:\n{findings}");
}

/// Which modules each module may use. What is missing here is an arrow that the design does not have.
const ARROWS: [(&str, &[&str]); 21] = [
    ("main", &["app", "cli", "config"]),
    ("lib", &[]),
    ("cli", &[]),
    ("config", &["catalog", "cli", "kernel", "observe", "pool", "request", "small_file", "threads"]),
    (
        "app",
        &[
            "catalog", "cli", "config", "engine", "excerpt", "http", "kernel", "load", "observe", "runner", "source",
            "threads", "tokenize",
        ],
    ),
    ("http", &["batch", "catalog", "config", "engine", "observe", "pool", "request", "runner", "tokenize"]),
    ("engine", &["batch", "catalog", "observe", "pool", "request", "runner", "tokenize"]),
    ("request", &[]),
    ("tokenize", &["excerpt", "observe", "request", "small_file"]),
    ("batch", &["observe", "pool", "request"]),
    ("runner", &["arch", "batch", "observe", "pool", "request", "threads"]),
    ("pool", &["arch", "kernel", "request"]),
    ("arch", &["excerpt", "kernel", "weights"]),
    ("kernel", &[]),
    ("weights", &["excerpt"]),
    ("excerpt", &[]),
    ("small_file", &[]),
    ("threads", &[]),
    (
        "load",
        &[
            "arch",
            "batch",
            "catalog",
            "config",
            "engine",
            "excerpt",
            "kernel",
            "observe",
            "pool",
            "request",
            "runner",
            "small_file",
            "source",
            "threads",
            "tokenize",
            "weights",
        ],
    ),
    ("catalog", &["excerpt", "kernel", "observe", "pool", "request", "small_file"]),
    ("source", &["catalog", "config", "excerpt", "observe", "small_file"]),
];

#[test]
fn modules_use_only_what_their_arrows_point_to() {
    let mut findings = Vec::new();
    for source in sources() {
        let allowed = match source.module() {
            "observe" => &[][..],
            module => ARROWS.iter().find(|(name, _)| *name == module).expect(module).1,
        };
        for (number, line) in source.code() {
            for used in line.split("crate::").skip(1) {
                let used: String = used.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                if !used.is_empty() && used != source.module() && !allowed.contains(&used.as_str()) {
                    findings.push(format!("{}:{number}: {} -> {used}\n", source.path, source.module()));
                }
            }
        }
    }
    check("arrows that the design does not have", findings);
}

#[test]
fn files_have_one_subject_and_a_module_doc() {
    let too_long = |source: &Source| {
        let lines = source.text.lines().count();
        (lines > MAX_LINES).then(|| format!("{}: {lines} lines\n", source.path))
    };
    let undocumented = |source: &Source| {
        (!source.text.starts_with("//!")).then(|| format!("{}: no module documentation\n", source.path))
    };
    check("files to split", sources().iter().filter_map(too_long));
    check("files to introduce", sources().iter().filter_map(undocumented));
}

// Invariant 1
#[test]
fn only_the_wire_knows_json_shapes_and_status_codes() {
    let outside = sources().into_iter().filter(|source| source.module() != "http");
    check(
        "HTTP outside the wire",
        outside.map(|source| source.lines_with(&["StatusCode", "derive(Serialize", "Serialize)", "axum::"])),
    );
}

// Invariant 3
#[test]
fn only_sources_open_sockets_start_programs_or_write_files() {
    // They ask a server that is told to them: `embedserve health` its own, `embedserve bench` the one it measures.
    let clients = ["app/commands/health.rs", "app/commands/bench/client.rs"];
    let outside = |source: &Source| source.module() != "source" && !clients.contains(&source.path.as_str());
    let words = [
        "Command::new",
        "TcpStream::connect",
        "ureq::",
        "hf_hub",
        "fs::write",
        "File::create",
        "create_dir",
        "fs::rename",
        "remove_",
    ];
    check("side effects outside source/", sources().iter().filter(|s| outside(s)).map(|s| s.lines_with(&words)));
}

// Invariant 4
#[test]
fn only_the_device_thread_calls_the_encoder() {
    let elsewhere = sources().into_iter().filter(|source| source.path != "runner/computation.rs");
    check(
        "forward passes elsewhere",
        elsewhere.map(|source| {
            source.lines_with(&["encoder.forward(", "encoder.pooled(", "encoder.submit(", "encoder.collect("])
        }),
    );
}

// Invariant 5
#[test]
fn tensors_and_sockets_do_not_meet() {
    let plain = ["http", "engine", "batch", "tokenize", "request"];
    let compute = ["arch", "kernel", "pool", "weights"];
    check(
        "tensors on the request side",
        sources().iter().filter(|s| plain.contains(&s.module())).map(|s| s.lines_with(&["candle"])),
    );
    check(
        "I/O on the compute side",
        sources().iter().filter(|s| compute.contains(&s.module())).map(|s| s.lines_with(&["tokio", "axum", "hyper"])),
    );
}

// Invariant 6
#[test]
fn the_planner_has_no_clock_and_no_channel() {
    let planner = sources().into_iter().filter(|source| source.path == "batch/plan.rs");
    check(
        "impure planning",
        planner.map(|source| source.lines_with(&["Instant", "SystemTime", "channel", "tokio", "Mutex", "std::fs"])),
    );
}

// Invariant 7
#[test]
fn every_channel_is_bounded() {
    let words = ["unbounded", "mpsc::channel()"];
    check("unbounded channels", sources().iter().map(|source| source.lines_with(&words)));
}

// what has a deadline counts on a clock that nobody sets.
#[test]
fn the_wall_clock_is_for_names_and_logs_alone() {
    let outside = |source: &Source| source.path != "observe/metrics.rs";
    let words = ["SystemTime", "UNIX_EPOCH", "chrono::", "time::OffsetDateTime"];
    check("wall clocks", sources().iter().filter(|s| outside(s)).map(|s| s.lines_with(&words)));
    let date = |source: &Source| ["http/reply.rs", "observe/metrics/model.rs"].contains(&source.path.as_str());
    let others = sources().into_iter().filter(|source| outside(source) && !date(source));
    check("dates elsewhere", others.map(|source| source.lines_with(&["unix_time"])));
}

// S-06: Invariant 11
#[test]
fn unsafe_code_lives_in_kernels_and_weights_only() {
    let outside = |source: &Source| source.module() != "kernel" && source.path != "weights.rs";
    check("unsafe code", sources().iter().filter(|s| outside(s)).map(|s| s.lines_with(&["unsafe {", "unsafe fn"])));
    // Foreign functions of the GPU are counted for themselves: each call is a block of its own.
    let on_gpu = |source: &&Source| source.path.starts_with("kernel/cuda/");
    let words = ["unsafe {", "unsafe fn", "unsafe impl"];
    let all = sources();
    let (gpu, cpu): (Vec<&Source>, Vec<&Source>) = all.iter().partition(on_gpu);
    for (sources, most) in [(cpu, 220), (gpu, 26)] {
        let blocks: usize = sources.iter().map(|s| s.lines_with(&words).lines().count()).sum();
        assert!(blocks > 0 && blocks < most, "{blocks} unsafe blocks: is each still needed?");
    }
}

#[test]
fn nothing_is_left_over() {
    let words = ["todo!", "unimplemented!", "dbg!", "println!", "FIXME", "XXX"];
    check("left-overs", sources().iter().map(|source| source.lines_with(&words)));
}

// L-07
#[test]
fn every_flag_is_in_the_readme() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let command = Cli::command();
    let flags = command.get_arguments().filter_map(|argument| argument.get_long());
    let missing = flags.filter(|flag| !matches!(*flag, "help" | "version") && !readme.contains(&format!("`--{flag}`")));
    check("flags missing from README.md", missing.map(|flag| format!("--{flag}\n")));
}

// O-06
#[test]
fn every_metric_has_help_and_exists_from_the_start() {
    let text = Metrics::new(&["m".to_owned()]).encode();
    let named = |prefix: &str| -> BTreeSet<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
        lines.map(|rest| rest.split(' ').next().unwrap().to_owned()).collect()
    };
    let (helped, typed) = (named("# HELP "), named("# TYPE "));
    assert_eq!(helped, typed);
    assert!(helped.len() > 30, "{} metrics", helped.len());
    for metric in &helped {
        assert!(metric.starts_with("embedserve_") || metric.starts_with("process_"), "{metric}");
        let samples = text.lines().filter(|line| !line.starts_with('#') && line.starts_with(metric.as_str()));
        assert!(samples.count() > 0, "{metric} has no sample before the first request");
    }
}
