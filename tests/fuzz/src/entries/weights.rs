//! `config.json` and safetensors to an encoder. U-01, U-02, N-08
//!
//! The bytes are the configuration, a line `---`, and the weight file.

use embedserve::arch;
use embedserve::arch::packed::PackedBatch;
use embedserve::kernel::{Compute, Isa, Precision, Target};
use embedserve::load::memory;
use embedserve::threads::Threads;
use embedserve::weights::Weights;
use serde_json::Value;

use super::Verdict;
use super::message;

const SEPARATOR: &[u8] = b"\n---\n";
/// Larger files find nothing that smaller ones do not.
const MAX_BYTES: usize = 1 << 20;
/// What an encoder may take in memory beyond its file: tables that are computed.
const MAX_COMPUTED: u64 = 1 << 30;

pub fn check(data: &[u8]) -> Verdict {
    let split = data.windows(SEPARATOR.len()).position(|window| window == SEPARATOR);
    let split = split.filter(|_| data.len() <= MAX_BYTES).ok_or("not two files of moderate size")?;
    let (config, stored) = (&data[..split], &data[split + SEPARATOR.len()..]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, stored).expect("room for it");
    let checked = |error: String| message::checked(error, data);

    let estimate = memory::estimate(folder.path(), Precision::F32).map_err(|error| checked(error.to_string()));
    let files = [path];
    let opened = Weights::open(&files, str::to_owned).map_err(|error| checked(error.to_string()));
    if let Ok(weights) = &opened {
        if let Err(error) = weights.refuse_unread(|_| true) {
            checked(error.to_string());
        }
        for name in ["embeddings.word_embeddings.weight", "x"] {
            if let Err(error) = weights.take(name, &[1, 2]) {
                checked(error.to_string());
            }
        }
        assert!(estimate.is_ok(), "what can be opened can be estimated: {estimate:?}");
    }
    let config: Value = serde_json::from_slice(config).map_err(|error| checked(error.to_string()))?;
    let threads = Threads::new(1).expect("one thread");
    let loaded = arch::load(&config, &files, &Target::Cpu, Compute::exact(Isa::detect()), threads.pool())
        .map_err(|error| checked(error.to_string()))?;
    opened?;
    assert!(loaded.weight_bytes <= 8 * stored.len() as u64 + MAX_COMPUTED, "{} bytes", loaded.weight_bytes);
    let (mut encoder, hidden) = (loaded.encoder, loaded.spec.hidden_size);
    assert_eq!(encoder.hidden_size(), hidden);
    let states = encoder.forward(&PackedBatch::new([&[0_u32][..]])).map_err(|error| checked(error.to_string()))?;
    assert_eq!(states.dims(), [1, hidden]);
    Ok(())
}
