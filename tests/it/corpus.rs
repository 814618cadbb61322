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

use crate::support::random::Random;

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

// W-15, V-04, Q-06, D-09, U-01, U-02, U-03, U-04, U-06, U-07, U-08
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

/// The parsers that take microseconds.
const QUICK: [&str; 6] = ["ids", "keys_toml", "models_toml", "planner", "request_json", "token_arrays"];

/// A seed with a few bytes changed, doubled or left out, or with a piece of another one in it.
fn mutated(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(data.len() + 1);
        let end = at + random.below((data.len() - at).min(16) + 1);
        match random.below(4) {
            0 => drop(data.drain(at..end)),
            1 => {
                let twice = data[at..end].repeat(2);
                drop(data.splice(at..end, twice));
            }
            2 => data[at..end].iter_mut().for_each(|byte| *byte ^= 1 << random.below(8)),
            _ => {
                let other = &seeds[random.below(seeds.len())];
                let start = random.below(other.len() + 1);
                let piece = &other[start..start + random.below((other.len() - start).min(32) + 1)];
                drop(data.splice(at..end, piece.iter().copied()));
            }
        }
    }
    data
}

// W-15, V-04, Q-06, D-09, U-07: the neighbourhood of the seeds, the same in every run.
#[test]
fn neighbours_of_the_seeds_keep_the_promises() {
    for Entry { name, check } in ENTRIES.iter().filter(|entry| QUICK.contains(&entry.name)) {
        let seeds = names(&corpus().join(name));
        let seeds: Vec<Vec<u8>> =
            seeds.iter().map(|seed| std::fs::read(corpus().join(name).join(seed)).unwrap()).collect();
        let mut random = Random::new(17);
        for round in 0..1000 {
            let data = mutated(&mut random, &seeds);
            let kept = catch_unwind(AssertUnwindSafe(|| check(&data)));
            assert!(kept.is_ok(), "{name}, round {round}: {}", data.escape_ascii());
        }
    }
}
