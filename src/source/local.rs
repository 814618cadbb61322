//! A directory as a source: read in place, never written.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::source::cache::Folder;
use crate::source::error::Cause;
use crate::source::layout;

/// Checks that the directory holds a whole model and that none of its files lies elsewhere.
pub(super) fn obtain(path: &Path) -> Result<PathBuf, Cause> {
    let mut folder = Folder::open(path, &link_targets(path))?;
    for file in layout::plan(&mut folder)?.all() {
        if is_pointer(&folder.locate(file)?) {
            return Err(Cause::Pointer { file: file.to_string() });
        }
    }
    Ok(path.to_owned())
}

/// Whether `git clone` left a pointer to the file in its place. What cannot be read is complained of by its reader.
fn is_pointer(path: &Path) -> bool {
    let mut start = [0; POINTER.len()];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == *POINTER
}

/// How the pointers of Git LFS begin.
const POINTER: &[u8; 35] = b"version https://git-lfs.github.com/";

/// A snapshot inside a Hub cache consists of links to the blobs beside it: that one way out is allowed.
fn link_targets(path: &Path) -> Vec<PathBuf> {
    let Ok(path) = std::path::absolute(path) else { return Vec::new() };
    let parent = path.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"));
    parent.and_then(Path::parent).map(|repository| repository.join("blobs")).into_iter().collect()
}
