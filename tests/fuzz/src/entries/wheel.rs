//! A wheel as an archive of data. U-05, U-06, D-09

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use embedserve::catalog::id::RelPath;
use embedserve::source::{Cause, fuzzing};

use super::Verdict;
use super::message;

/// Of one file; all of them together may have twice as much.
const LIMIT: u64 = 1 << 20;

pub fn check(data: &[u8]) -> Verdict {
    let root = tempfile::tempdir().expect("a temporary folder");
    let (archive, into) = (root.path().join("x.whl"), root.path().join("unpacked"));
    std::fs::write(&archive, data).expect("room for it");
    let folder = RelPath::parse("pkg/model").expect("a plain name");
    let result = fuzzing::unpack(&archive, &folder, LIMIT, &into, &AtomicBool::new(false));

    let mut written = files_below(root.path());
    written.retain(|path| *path != archive);
    assert!(written.iter().all(|path| path.starts_with(&into)), "files beside the folder: {written:?}");
    let bytes: u64 = written.iter().map(|path| path.metadata().map_or(0, |file| file.len())).sum();
    assert!(bytes <= 2 * LIMIT, "{bytes} bytes were unpacked");
    match result {
        Ok(files) => {
            let mut expected: Vec<PathBuf> = files.iter().map(|file| file.within(&into)).collect();
            expected.sort();
            assert_eq!(written, expected, "exactly what is announced is written");
            Ok(())
        }
        // A path is named whole: it is what an operator looks for.
        Err(error @ Cause::Io { .. }) => Err(error.to_string()),
        Err(error) => Err(message::checked(error.to_string(), data)),
    }
}

/// Everything that is no folder, sorted.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                _ => found.push(entry.path()),
            }
        }
    }
    found.sort();
    found
}
