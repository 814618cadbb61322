//! Whether what the configuration allows fits the memory that the process may use: refused at start with the numbers,
//! instead of being killed later without a word.
//!
//! On GPUs, weights and batches lie in their memory and count for nothing here.
//!
//! What is added up: the weights and the tokenizers that may be in memory at once, the intermediate values of one full batch of
//! each loaded model, full queues, and the process itself. Request bodies and answers have bounds of their own and are rarely all
//! there at once: they count for the warning alone.

use std::path::Path;

use crate::config::Config;
use crate::engine::{Engine, Memory, SlotState};

/// The process without models: code, runtime, allocator.
const PROCESS_BYTES: u64 = 64 << 20;
/// A waiting row beside its ids: its place in the queue, its part of the answer.
const ROW_BYTES: u64 = 256;
const ID_BYTES: u64 = 4;
/// Where the kernel says which control group this process is in, and what such a group may use.
const MEMBERSHIP: &str = "proc/self/cgroup";
const GROUPS: &str = "sys/fs/cgroup";

/// What all models need together, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Need {
    weights: u64,
    tokenizers: u64,
    scratch: u64,
    queues: u64,
}

/// Memory that the process may use: as configured, or what its control group may.
pub(super) fn limit(config: &Config) -> Option<u64> {
    match config.residency.memory_limit {
        Some(0) => None,
        Some(limit) => Some(limit),
        None => group_limit(Path::new("/")),
    }
}

/// Fails with the numbers when the models known so far cannot be in memory as planned.
///
/// # Errors
/// What is needed, of what, and what to do.
pub(super) fn check(engine: &Engine, config: &Config, limit: Option<u64>) -> Result<(), String> {
    let need = Need::of(engine, config);
    match limit {
        Some(limit) if need.total() > limit => Err(format!(
            "{} MiB are needed (weights {}, tokenizers {}, batches {}, queues {}, process {}) and {} MiB may be used: serve fewer or \
             smaller models, lower --max-loaded-models, --max-batch-tokens or --queue-tokens, or set --memory-limit",
            need.total() >> 20,
            need.weights >> 20,
            need.tokenizers >> 20,
            need.scratch >> 20,
            need.queues >> 20,
            PROCESS_BYTES >> 20,
            limit >> 20,
        )),
        _ => Ok(()),
    }
}

/// One line for the operator: what the models in memory need together; and a second one when that is nearly too much.
pub(super) fn report(engine: &Engine, config: &Config, limit: Option<u64>) {
    let (mut weights, mut scratch, mut loaded) = (0, 0, 0);
    for slot in engine.slots() {
        if let (SlotState::Ready(_), Some(memory)) = (slot.state(), slot.memory()) {
            (weights, scratch, loaded) = (weights + memory.weight_bytes, scratch + memory.scratch_bytes, loaded + 1);
        }
    }
    let need = Need::of(engine, config);
    tracing::info!(
        models = engine.slots().len(),
        loaded,
        weights_mib = weights >> 20,
        scratch_mib = scratch >> 20,
        total_mib = (weights + scratch) >> 20,
        bound_mib = need.total() >> 20,
        limit_mib = limit.map(|limit| limit >> 20),
        "memory"
    );
    let bodies = (config.http.max_bodies_bytes as u64).saturating_add(config.http.max_answers_bytes as u64);
    let most = need.total().saturating_add(bodies);
    if let Some(limit) = limit.filter(|limit| most > limit / 10 * 9) {
        let (most_mib, bodies_mib, limit_mib) = (most >> 20, bodies >> 20, limit >> 20);
        tracing::warn!(
            most_mib,
            bodies_mib,
            limit_mib,
            "full queues, request bodies and answers may use up the memory limit"
        );
    }
}

impl Need {
    fn of(engine: &Engine, config: &Config) -> Self {
        let models: Vec<Memory> = engine.slots().iter().map(|slot| slot.needed()).collect();
        let (residency, on_host) = (&config.residency, config.batch.device_choice.is_cpu());
        let queue = (config.batch.queue_tokens as u64).saturating_mul(ID_BYTES);
        let queue = queue.saturating_add((config.batch.queue_rows as u64).saturating_mul(ROW_BYTES));
        let n_loaded = residency.max_models.unwrap_or(models.len()).min(models.len());
        let most = |bytes: fn(&Memory) -> u64| largest(models.iter().map(bytes).collect(), n_loaded);
        let here = |bytes: fn(&Memory) -> u64| if on_host { most(bytes) } else { 0 };
        let weights = here(|model| model.weight_bytes);
        Self {
            weights: residency.max_bytes.map_or(weights, |limit| weights.min(limit)),
            tokenizers: most(|model| model.tokenizer_bytes),
            scratch: here(|model| model.scratch_bytes),
            queues: queue.saturating_mul(n_loaded as u64),
        }
    }

    const fn total(&self) -> u64 {
        let models = self.weights.saturating_add(self.tokenizers).saturating_add(self.scratch);
        models.saturating_add(self.queues).saturating_add(PROCESS_BYTES)
    }
}

/// The sum of the `n` largest values.
fn largest(mut values: Vec<u64>, n: usize) -> u64 {
    values.sort_unstable_by(|a, b| b.cmp(a));
    values.into_iter().take(n).fold(0, u64::saturating_add)
}

/// The smallest limit of the control groups that this process is in, of either version. Inside a container the group's
/// own path may not be visible: the nearest ancestor that is, counts.
fn group_limit(root: &Path) -> Option<u64> {
    let membership = std::fs::read_to_string(root.join(MEMBERSHIP)).ok()?;
    membership.lines().filter_map(|line| line_limit(root, line)).min()
}

/// `0::/path` in version 2, `4:memory:/path` in version 1.
fn line_limit(root: &Path, line: &str) -> Option<u64> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    let (folder, file) = match controllers {
        "" => (root.join(GROUPS), "memory.max"),
        _ if controllers.split(',').any(|name| name == "memory") => {
            (root.join(GROUPS).join("memory"), "memory.limit_in_bytes")
        }
        _ => return None,
    };
    let own = Path::new(path.trim_start_matches('/'));
    let read = |group: &Path| std::fs::read_to_string(folder.join(group).join(file)).ok();
    let limits = own.ancestors().filter_map(read).filter_map(|text| parse(&text));
    limits.min()
}

/// `max`, and in version 1 a number that no machine has, mean that there is none.
fn parse(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes < 1 << 60)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests write the files that a kernel shows")]
mod tests {
    use super::*;

    /// A file system with these files.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    // M-05
    #[test]
    fn the_limit_is_that_of_the_group_or_of_one_above_it() {
        const V2: &str = "sys/fs/cgroup/pod/app/memory.max";
        const ABOVE: &str = "sys/fs/cgroup/pod/memory.max";
        const V1: &str = "sys/fs/cgroup/memory/pod/memory.limit_in_bytes";
        const UNLIMITED: &str = "9223372036854771712\n";
        type Files = &'static [(&'static str, &'static str)];
        let table: [(Files, Option<u64>); 8] = [
            (&[], None),
            (&[(MEMBERSHIP, "0::/pod/app\n"), (V2, "1000\n")], Some(1000)),
            (&[(MEMBERSHIP, "0::/pod/app\n"), (V2, "max\n"), (ABOVE, "2000\n")], Some(2000)),
            (&[(MEMBERSHIP, "0::/pod/app\n"), (V2, "3000\n"), (ABOVE, "2000\n")], Some(2000)),
            (&[(MEMBERSHIP, "0::/\n"), ("sys/fs/cgroup/memory.max", "5\n")], Some(5)),
            (&[(MEMBERSHIP, "9:name=systemd:/\n4:cpu,memory:/pod\n0::/\n"), (V1, "4000\n")], Some(4000)),
            (&[(MEMBERSHIP, "4:memory:/pod\n"), (V1, UNLIMITED)], None),
            (&[(MEMBERSHIP, "4:cpuset:/pod\n"), (V1, "4000\n")], None),
        ];
        for (files, expected) in table {
            assert_eq!(group_limit(machine(files).path()), expected, "{files:?}");
        }
    }

    // M-05
    #[test]
    fn the_largest_models_that_may_be_loaded_together_count() {
        assert_eq!(largest(vec![1, 5, 3], 2), 8);
        assert_eq!(largest(vec![1, 5, 3], 3), 9);
        assert_eq!(largest(vec![u64::MAX, 5], 2), u64::MAX);
    }
}
