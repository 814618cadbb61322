//! Files that are read whole: configurations, vocabularies, tokens.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// The bytes of a file of at most `limit` bytes. What it says of its own size is not believed: a device or a pipe says 0.
///
/// # Errors
/// The file's own, and [`ErrorKind::FileTooLarge`] as soon as it has given one byte more.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if File::open(path)?.take(limit + 1).read_to_end(&mut bytes)? as u64 > limit {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("it has more than {limit} bytes")));
    }
    Ok(bytes)
}

/// The same of a file that is text.
///
/// # Errors
/// Those of [`read`], and [`ErrorKind::InvalidData`] when it is not UTF-8.
pub fn read_to_string(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(read(path, limit)?).map_err(|_| Error::new(ErrorKind::InvalidData, "it is not UTF-8"))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "scratch files of tests")]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_limit_and_not_one_byte_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "four").unwrap();
        assert_eq!(read(&path, 4).unwrap(), b"four");
        assert_eq!(read(&path, 3).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(read_to_string(&path, 4).unwrap(), "four");
        std::fs::write(&path, b"\xff").unwrap();
        assert_eq!(read_to_string(&path, 4).unwrap_err().kind(), ErrorKind::InvalidData);
        // It has no size and no end.
        assert_eq!(read(Path::new("/dev/zero"), 1 << 20).unwrap_err().kind(), ErrorKind::FileTooLarge);
    }
}
