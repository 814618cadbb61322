//! A directory as a source: read in place, never written.

use std::path::{Path, PathBuf};

use crate::source::cache::Folder;
use crate::source::error::Cause;
use crate::source::layout;

/// Checks that the directory holds a whole model and that none of its files lies elsewhere.
pub(super) fn obtain(path: &Path) -> Result<PathBuf, Cause> {
    let mut folder = Folder::open(path, &link_targets(path))?;
    for file in layout::plan(&mut folder)?.all() {
        folder.locate(file)?;
    }
    Ok(path.to_owned())
}

/// A snapshot inside a Hub cache consists of links to the blobs beside it: that one way out is allowed.
fn link_targets(path: &Path) -> Vec<PathBuf> {
    let Ok(path) = std::path::absolute(path) else { return Vec::new() };
    let parent = path.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"));
    parent.and_then(Path::parent).map(|repository| repository.join("blobs")).into_iter().collect()
}
