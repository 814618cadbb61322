//! Holds up the loading of a model: one of its files becomes a pipe that nobody has written to yet.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};

/// While it exists, whoever reads the folder's `config.json` waits.
pub struct Gate {
    path: PathBuf,
    content: Vec<u8>,
    pipe: File,
}

impl Gate {
    pub fn close(folder: &Path) -> Self {
        let path = folder.join("config.json");
        let content = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        // Open at both ends, so that opening it does not wait, and reading it does.
        let pipe = File::options().read(true).write(true).open(&path).unwrap();
        Self { path, content, pipe }
    }

    /// Whoever waits reads on; whoever comes later finds the file as it was.
    pub fn open(self) {
        let Self { path, content, mut pipe } = self;
        let beside = path.with_extension("new");
        std::fs::write(&beside, &content).unwrap();
        std::fs::rename(&beside, &path).unwrap();
        pipe.write_all(&content).unwrap();
    }
}
