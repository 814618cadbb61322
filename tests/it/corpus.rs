//! Every file of `tests/corpus` through its parser: seeds made by hand, and whatever fuzzing has found. W-15, V-04, D-09,
//! U-01 to U-04, U-07
//!
//! `good-*` must be accepted, `bad-*` refused; what is called otherwise (findings) has to keep the promises only. The same
//! functions are fuzzed: see `tests/fuzz/src/lib.rs`.

#[path = "../fuzz/src/entries/mod.rs"]
mod entries;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use entries::{ENTRIES, Entry};

/// Thousands of times what the slowest seed needs: only what grows without bound misses it.
const PATIENCE: Duration = Duration::from_secs(20);

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn every_parser_has_a_corpus_and_a_target() {
    let parsers: BTreeSet<String> = ENTRIES.iter().map(|entry| entry.name.to_owned()).collect();
    assert_eq!(names(&corpus()), parsers);
    let targets: BTreeSet<String> = parsers.iter().map(|name| format!("{name}.rs")).collect();
    assert_eq!(names(&corpus().join("../fuzz/fuzz_targets")), targets);
    for Entry { name, .. } in ENTRIES {
        let seeds = names(&corpus().join(name));
        assert!(seeds.iter().any(|seed| seed.starts_with("good-")), "{name} has no input that is accepted");
    }
}

#[test]
fn seeds_are_judged_as_they_are_called() {
    let (mut replayed, mut wrong) = (0, Vec::new());
    for Entry { name, check } in ENTRIES {
        for seed in names(&corpus().join(name)) {
            let data = std::fs::read(corpus().join(name).join(&seed)).unwrap();
            let begun = Instant::now();
            let verdict = catch_unwind(AssertUnwindSafe(|| check(&data)));
            if begun.elapsed() > PATIENCE {
                wrong.push(format!("{name}/{seed} took {:?}", begun.elapsed()));
            }
            match (seed.split('-').next(), verdict) {
                (_, Err(_)) => wrong.push(format!("{name}/{seed} breaks a promise")),
                (Some("good"), Ok(Err(reason))) => wrong.push(format!("{name}/{seed} is refused: {reason}")),
                (Some("bad"), Ok(Ok(()))) => wrong.push(format!("{name}/{seed} is accepted")),
                _ => replayed += 1,
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(replayed > 100, "{replayed} seeds: the corpus was not found");
}
