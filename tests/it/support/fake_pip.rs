//! A stand-in for pip: a shell script that records how it was started and then does what the test wants.

use std::io::{Cursor, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// What the script does after recording. All but the last run in the shell.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Behaviour<'b> {
    /// Leaves this wheel where it was told to.
    Ok(&'b [u8]),
    /// Any shell text; `$dest` is the folder, `$record` the folder of records, `$wheel` the wheel to leave.
    Shell(&'b str),
}

#[derive(Debug)]
pub(crate) struct FakePip {
    folder: TempDir,
}

impl FakePip {
    pub(crate) fn new(behaviour: Behaviour<'_>) -> Self {
        let pip = Self { folder: tempfile::tempdir().unwrap() };
        pip.behave(behaviour);
        pip
    }

    pub(crate) fn behave(&self, behaviour: Behaviour<'_>) {
        let text = match behaviour {
            Behaviour::Ok(wheel) => {
                std::fs::write(self.path("x.whl"), wheel).unwrap();
                "cp \"$wheel\" \"$dest/\""
            }
            Behaviour::Shell(text) => text,
        };
        let record = self.folder.path().display();
        let script = format!(
            "record='{record}'; wheel=\"$record/x.whl\"\n\
             echo started >> \"$record/starts\"\n\
             printf '%s\\n' \"$@\" > \"$record/args\"\n\
             env > \"$record/env\"\n\
             while [ $# -gt 0 ]; do\n\
               case \"$1\" in --dest) dest=\"$2\" ;; -r) cp \"$2\" \"$record/requirements\" ;; esac\n\
               shift\n\
             done\n\
             {text}\n"
        );
        std::fs::write(self.path("pip.sh"), script).unwrap();
    }

    /// The command to configure: a shell that reads the script, so that no file written here is executed itself.
    pub(crate) fn command(&self) -> Vec<std::ffi::OsString> {
        vec!["/bin/sh".into(), self.path("pip.sh").into_os_string()]
    }

    pub(crate) fn starts(&self) -> usize {
        self.record("starts").lines().count()
    }

    /// What was recorded under this name; empty if it never ran.
    pub(crate) fn record(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Whether a process with this id is still there and not merely waiting to be reaped.
pub(crate) fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.trim()).join("stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim_start().starts_with('Z'))
}

/// Zips members as a wheel.
pub(crate) fn wheel(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in members {
        writer.start_file(*name, SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// A wheel with a member of any name: one of equal length is written and replaced in both of its headers.
pub(crate) fn wheel_with_raw_name(members: &[(&str, &[u8])], raw: &[u8]) -> Vec<u8> {
    let placeholder = "z".repeat(raw.len());
    let mut all = members.to_vec();
    all.push((&placeholder, b"hostile"));
    let mut bytes = wheel(&all);
    let mut replaced = 0;
    for at in 0..=bytes.len() - raw.len() {
        if bytes[at..].starts_with(placeholder.as_bytes()) {
            bytes[at..at + raw.len()].copy_from_slice(std::ffi::OsStr::from_bytes(raw).as_bytes());
            replaced += 1;
        }
    }
    assert_eq!(replaced, 2, "the placeholder stands in the local and in the central header");
    bytes
}
