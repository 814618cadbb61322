//! Files on our own disk: written whole or not at all, locked, checked, and set aside when damaged.
//!
//! A file appears under its final name only by `publish`: complete, flushed, then renamed, then its folder flushed. A
//! crash at any moment leaves either the old state or the new one, and at most a part that the next run resumes.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::catalog::id::RelPath;
use crate::small_file;
use crate::source::error::Cause;
use crate::source::fault;
use crate::source::layout::{Listing, MAX_SMALL_BYTES};

/// An exclusive lock between processes. The operating system releases it when its holder dies, so none is ever stale.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// A folder of model files, as `plan` sees it. Links may lead to the folders in `inside` and nowhere else.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    inside: Vec<PathBuf>,
}

/// A scratch folder near the final one, removed whatever happens. The lock's holder is its only user, so what lies
/// there at the beginning is the rest of a run that was killed.
#[derive(Debug)]
pub(super) struct Staging {
    path: PathBuf,
}

// === impl Lock ===

impl Lock {
    /// Waits for the lock; another process may be downloading for an hour.
    pub(super) fn wait(path: &Path, stop: &AtomicBool) -> Result<Self, Cause> {
        create_parent(path)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(Cause::io("open lock", path))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::Error(error)) => return Err(Cause::io("lock", path)(error)),
                Err(TryLockError::WouldBlock) => {}
            }
            if !told {
                tracing::info!(lock = %path.display(), "waiting for another process that fetches the same file");
                told = true;
            }
            pause(LOCK_POLL, stop)?;
        }
    }
}

// === impl Folder ===

impl Folder {
    /// A folder in which every file must lie below `root` itself or one of `more`.
    pub(super) fn open(root: &Path, more: &[PathBuf]) -> Result<Self, Cause> {
        let real = root.canonicalize().map_err(Cause::io("open", root))?;
        let inside = more.iter().filter_map(|folder| folder.canonicalize().ok()).chain([real]).collect();
        Ok(Self { root: root.to_owned(), inside })
    }

    /// Where the file really lies.
    pub(super) fn locate(&self, file: &RelPath) -> Result<PathBuf, Cause> {
        let path = file.within(&self.root);
        let real = path.canonicalize().map_err(Cause::io("open", &path))?;
        if self.inside.iter().any(|folder| real.starts_with(folder)) {
            return Ok(real);
        }
        Err(Cause::Escape { file: file.to_string() })
    }
}

impl Listing for Folder {
    fn has(&self, file: &RelPath) -> bool {
        // A link that leaves the folder is reported when the file is used, not taken for absent.
        file.within(&self.root).is_file()
    }

    fn read(&mut self, file: &RelPath) -> Result<Vec<u8>, Cause> {
        read_small(&self.locate(file)?, file.as_str())
    }

    fn names(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(&self.root) else { return Vec::new() };
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).take(MAX_LISTED).collect()
    }
}

// === impl Staging ===

impl Staging {
    pub(super) fn create(path: PathBuf) -> Result<Self, Cause> {
        remove(&path)?;
        create_folder(&path)?;
        Ok(Self { path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(cause) = remove(&self.path) {
            tracing::warn!(%cause, "temporary files remain; the next download removes them");
        }
    }
}

/// Reads a file that is small, or fails before it fills memory.
pub(super) fn read_small(path: &Path, name: &str) -> Result<Vec<u8>, Cause> {
    let too_large = || Cause::TooLarge { file: name.to_owned(), size: MAX_SMALL_BYTES + 1, limit: MAX_SMALL_BYTES };
    small_file::read(path, MAX_SMALL_BYTES).map_err(|error| {
        if error.kind() == ErrorKind::FileTooLarge { too_large() } else { Cause::io("read", path)(error) }
    })
}

/// Moves a complete file to its final name, so that either both its bytes and its name survive a crash, or neither.
pub(super) fn publish(part: &Path, done: &Path) -> Result<(), Cause> {
    fault::point("before_fsync");
    sync(part)?;
    fault::point("before_rename");
    std::fs::rename(part, done).map_err(Cause::io("rename", done))?;
    fault::point("after_rename");
    sync_parent(done)
}

/// Writes a small file whole, by way of `part`, which lies on the same file system.
pub(super) fn write_atomic(part: &Path, path: &Path, bytes: &[u8]) -> Result<(), Cause> {
    create_parent(path)?;
    let mut file = create(part)?;
    file.write_all(bytes).map_err(Cause::io("write", part))?;
    drop(file);
    publish(part, path)
}

/// A relative link, put in place in one step even over a dangling one.
pub(super) fn link_atomic(target: &Path, link: &Path) -> Result<(), Cause> {
    create_parent(link)?;
    fault::point("before_link");
    let part = beside(link, "link");
    remove(&part)?;
    std::os::unix::fs::symlink(target, &part).map_err(Cause::io("link", &part))?;
    std::fs::rename(&part, link).map_err(Cause::io("rename", link))?;
    sync_parent(link)
}

/// Creates a file, or empties an existing one.
pub(super) fn create(path: &Path) -> Result<File, Cause> {
    fault::point("before_create");
    OpenOptions::new().create(true).truncate(true).write(true).open(path).map_err(Cause::io("create", path))
}

/// Sets a damaged file or folder aside, where it can be examined and is never read again. One is kept.
pub(super) fn quarantine(path: &Path) -> Result<(), Cause> {
    let aside = beside(path, "corrupt");
    remove(&aside)?;
    std::fs::rename(path, &aside).map_err(Cause::io("set aside", path))?;
    tracing::warn!(file = %aside.display(), "a damaged file was set aside");
    Ok(())
}

/// Removes a file, link or folder, whatever it is; absent is fine.
pub(super) fn remove(path: &Path) -> Result<(), Cause> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Cause::io("examine", path)(error)),
        Ok(kind) if kind.is_dir() => std::fs::remove_dir_all(path).map_err(Cause::io("remove", path)),
        Ok(_) => std::fs::remove_file(path).map_err(Cause::io("remove", path)),
    }
}

/// Fails before a transfer that cannot end well begins.
pub(super) fn ensure_space(folder: &Path, needed: u64) -> Result<(), Cause> {
    let stat = rustix::fs::statvfs(folder).map_err(|error| Cause::io("examine", folder)(error.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < needed {
        return Err(Cause::Space { path: folder.to_owned(), needed, free });
    }
    Ok(())
}

/// Fails before a file is begun that the process may not write to its end.
pub(super) fn ensure_file_size(path: &Path, needed: u64) -> Result<(), Cause> {
    match rustix::process::getrlimit(rustix::process::Resource::Fsize).current {
        Some(limit) if needed > limit => Err(Cause::FileLimit { path: path.to_owned(), needed, limit }),
        _ => Ok(()),
    }
}

pub(super) fn create_folder(path: &Path) -> Result<(), Cause> {
    std::fs::create_dir_all(path).map_err(Cause::io("create folder", path))
}

pub(super) fn create_parent(path: &Path) -> Result<(), Cause> {
    path.parent().map_or(Ok(()), create_folder)
}

/// Flushes a file's bytes, or a folder's entries, to the disk.
pub(super) fn sync(path: &Path) -> Result<(), Cause> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Cause::io("flush", path))
}

pub(super) fn sync_parent(path: &Path) -> Result<(), Cause> {
    path.parent().map_or(Ok(()), sync)
}

/// `path` with one more ending.
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

/// Waits, unless told to stop.
pub(super) fn pause(time: Duration, stop: &AtomicBool) -> Result<(), Cause> {
    let end = Instant::now() + time;
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(Cause::Stopped);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        // Parking may end early for no reason; the loop looks at the clock again.
        std::thread::park_timeout(left.min(STOP_POLL));
    }
}

/// How soon `stop` is seen while waiting.
pub(super) const STOP_POLL: Duration = Duration::from_millis(50);
const LOCK_POLL: Duration = Duration::from_millis(100);
/// Names are listed only for an error message.
const MAX_LISTED: usize = 1_000;
