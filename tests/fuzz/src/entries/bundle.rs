//! Models in one file. U-05, U-06, D-09
//!
//! Bytes that begin with `{` are a manifest, around which an archive is built with the contents that [`content`] knows;
//! all others are the archive itself.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use embedserve::config::{Proxies, SourceConfig};
use embedserve::source::Cause;
use embedserve::source::bundle::{self, BundleError, Import};
use serde_json::Value;

use super::Verdict;
use super::message;
use super::wheel::files_below;

const BLOCK: usize = 512;
const MAX_MEMBERS: usize = 64;

pub fn check(data: &[u8]) -> Verdict {
    let root = tempfile::tempdir().expect("a temporary folder");
    let file = root.path().join("models.bundle");
    let archive = if data.first() == Some(&b'{') { around(data) } else { data.to_vec() };
    std::fs::write(&file, archive).expect("room for it");
    let config = source_config(root.path());
    let stop = AtomicBool::new(false);
    let result = bundle::import(Import { bundle: &file, sha256: None, catalogue: &[], config: &config, stop: &stop });

    let mut written = files_below(root.path());
    written.retain(|path| *path != file && path.extension().is_none_or(|ending| ending != "lock"));
    let caches = [&config.hub_cache, &config.wheel_cache];
    assert!(written.iter().all(|path| caches.iter().any(|cache| path.starts_with(cache))), "{written:?}");
    match result {
        Ok(bundle) => {
            for model in &bundle.models {
                assert!(model.path.starts_with(&config.hub_cache) && model.path.is_dir(), "{model:?}");
            }
            Ok(())
        }
        Err(error) => {
            assert!(written.is_empty(), "a refused bundle leaves files behind: {written:?}: {error}");
            if matches!(error, BundleError::Cause(Cause::Io { .. })) {
                return Err(error.to_string());
            }
            Err(message::checked(error.to_string(), data))
        }
    }
}

/// A machine that is offline and keeps everything below `root`.
pub fn source_config(root: &Path) -> SourceConfig {
    SourceConfig {
        hub_cache: root.join("hub"),
        wheel_cache: root.join("wheels"),
        endpoint: "http://127.0.0.1:9".to_owned(),
        token: None,
        proxies: Proxies::default(),
        ca_file: None,
        offline: true,
        stall_timeout: Duration::from_secs(1),
        file_timeout: Duration::from_secs(1),
        parallel_files: 1,
        conversion_revision: false,
        attempts: 1,
        backoff: Duration::from_millis(1),
        progress_bars: false,
        pip: vec!["/nonexistent/pip".into()],
    }
}

/// The archive that a manifest describes, as far as it can be read.
fn around(manifest: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    member(&mut out, "manifest.json", manifest);
    let parsed: Value = serde_json::from_slice(manifest).unwrap_or_default();
    let models = parsed["models"].as_array().map(Vec::as_slice).unwrap_or_default();
    let files = models.iter().enumerate().flat_map(|(index, model)| {
        let files = model["files"].as_array().map(Vec::as_slice).unwrap_or_default();
        files.iter().map(move |file| (index, file["name"].as_str().unwrap_or_default()))
    });
    for (index, name) in files.take(MAX_MEMBERS) {
        member(&mut out, &format!("{index}/{name}"), content(name));
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    out
}

/// What every file of such a bundle holds; seeds announce these sizes and hashes.
fn content(name: &str) -> &'static [u8] {
    match name {
        "config.json" => b"{\"hidden_size\": 32}",
        "tokenizer.json" => b"hello\n",
        "model.safetensors" => b"weights",
        "modules.json" => b"[{\"path\":\"1_Pooling\",\"type\":\"s.Pooling\"}]",
        "1_Pooling/config.json" => b"{}",
        _ => b"",
    }
}

/// The header that the product writes for short names, and the bytes in whole blocks.
fn member(out: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    let mut header = [0_u8; BLOCK];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, &name.as_bytes()[..name.len().min(100)]);
    put(100, b"0000644\x000000000\x000000000\0");
    put(124, format!("{:011o}\x0000000000000\0        ", bytes.len()).as_bytes());
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}
