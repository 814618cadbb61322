//! The small files of a model folder: its layout, `modules.json` and what that names, prompts and limits. U-02, U-06, U-08
//!
//! The bytes are files one after the other, each behind a line `=== name`.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use embedserve::catalog::id::RelPath;
use embedserve::catalog::{ModelSpec, SourceSpec};
use embedserve::kernel::{Isa, Precision};
use embedserve::load::describe::describe;
use embedserve::load::modules::{Modules, StepModule};
use embedserve::observe::progress::LoadProgress;
use embedserve::source::{self, Cause, SourceError};

use super::Verdict;
use super::bundle::source_config;
use super::message;
use crate::support::served::{requests, spec};

const MAX_FILES: usize = 40;

pub fn check(data: &[u8]) -> Verdict {
    let root = tempfile::tempdir().expect("a temporary folder");
    let folder = root.path().join("model");
    std::fs::create_dir(&folder).expect("an empty folder");
    for (name, bytes) in files(data) {
        let path = name.within(&folder);
        // Names may be files and folders at once; the first one wins.
        if std::fs::create_dir_all(path.parent().unwrap_or(&folder)).is_ok() && !path.is_dir() {
            std::fs::write(path, bytes).expect("room for it");
        }
    }
    let checked = |error: String| message::checked(error, data);

    let sources = vec![SourceSpec::Directory { path: folder.clone() }];
    let spec = ModelSpec { sources, ..spec(&folder) };
    let (progress, stop) = (LoadProgress::default(), AtomicBool::new(false));
    let obtained = source::obtain(&spec, |_, _| Ok(()), &source_config(root.path()), &progress, &stop);
    let complete = match &obtained {
        Ok(found) => {
            assert_eq!(found.path, folder);
            Ok(())
        }
        Err(SourceError::Unavailable { attempts, .. }) => {
            let quoting_a_path = attempts.iter().any(|attempt| matches!(attempt.cause, Cause::Io { .. }));
            let message = obtained.as_ref().map_err(ToString::to_string).err().unwrap_or_default();
            Err(if quoting_a_path { message } else { checked(message) })
        }
        Err(SourceError::Stopped) => panic!("nobody stopped it"),
    };
    let modules = Modules::read(&folder, None, None).map_err(|error| checked(error.to_string()))?;
    check_modules(&modules, &folder);
    let described = |dtype| {
        let spec = ModelSpec { dtype: Some(dtype), ..spec.clone() };
        describe(&spec, &folder, &requests(), Isa::Portable).map_err(|error| checked(error.to_string()))
    };
    let [exact, half, small] = Precision::ON_CPUS.map(described);
    let (description, half, small) = (exact?, half?, small?);
    assert!(half.weight_bytes <= description.weight_bytes && small.weight_bytes <= half.weight_bytes);
    assert!(description.limits.max_tokens > 0 && description.limits.max_input_bytes > 0);
    complete
}

fn check_modules(modules: &Modules, folder: &Path) {
    assert!(!modules.pooling.is_empty() && modules.max_tokens != Some(0), "{modules:?}");
    for step in &modules.steps {
        let weights = match step {
            StepModule::Dense(dense) => &dense.weights,
            StepModule::LayerNorm(norm) => &norm.weights,
            StepModule::Normalize => continue,
        };
        let below = weights.strip_prefix(folder).expect("modules lie in the model's folder");
        RelPath::parse(below.to_str().expect("it was text")).expect("and below it");
    }
}

/// Names that are no plain relative ones are left out: what writes a folder checks them elsewhere.
fn files(data: &[u8]) -> Vec<(RelPath, Vec<u8>)> {
    let mut files: Vec<(RelPath, Vec<u8>)> = Vec::new();
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        let name = line.strip_prefix(b"=== ").and_then(|name| std::str::from_utf8(name).ok());
        match name.map(|name| RelPath::parse(name.trim_end())) {
            Some(Ok(name)) if files.len() < MAX_FILES => files.push((name, Vec::new())),
            Some(_) => {}
            None => {
                if let Some((_, bytes)) = files.last_mut() {
                    bytes.extend_from_slice(line);
                }
            }
        }
    }
    files
}
