//! The only constructors of what becomes part of a path or a URL: `RepoId`, `Revision`, `RelPath`, `Etag`, `Sha256`.
//!
//! Everything that a catalogue, a Hub answer, an archive or a repository's own files name goes through here before
//! it is joined to a path. The fields are private, each type has one fallible constructor, and a value that exists
//! cannot leave the folder it is joined to.

use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::excerpt::excerpt;

/// A name that was refused. The value is escaped and cut, so that the message is safe to print.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{kind} {reason}: {value}")]
pub struct IdError {
    kind: &'static str,
    reason: &'static str,
    value: String,
}

/// A repository on the Hub: `owner/name`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RepoId(String);

/// A branch, tag, pull-request reference or commit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Revision(String);

/// A plain relative file name with `/` between its parts, which stays inside whatever folder it is joined to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelPath(String);

/// An entity tag, unquoted; the Hub cache uses it as the name of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Etag(String);

/// A SHA-256, 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sha256(String);

impl IdError {
    fn new(kind: &'static str, reason: &'static str, value: &str) -> Self {
        Self { kind, reason, value: excerpt(value) }
    }
}

/// Ends of lines and paragraphs, and changes of direction: what makes a name look like another one.
const fn turns_text(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

// === impl RepoId ===

impl RepoId {
    /// # Errors
    /// Anything but `owner/name` of letters, digits, `-`, `_` and `.`, without `..` and `--`.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let refuse = |reason| Err(IdError::new("repository id", reason, text));
        let Some((owner, name)) = text.split_once('/') else {
            return refuse("is not written owner/name");
        };
        for part in [owner, name] {
            if part.is_empty() || part.len() > MAX_REPO_PART {
                return refuse("has an empty or over-long part");
            }
            if !part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
                return refuse("has a character that is not a letter, a digit, `-`, `_` or `.`");
            }
            if part.starts_with(['.', '-']) || part.ends_with(['.', '-']) {
                return refuse("has a part that begins or ends with `.` or `-`");
            }
            // `--` separates owner and name in the cache's folder names.
            if part.contains("..") || part.contains("--") {
                return refuse("contains `..` or `--`");
            }
        }
        Ok(Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// === impl Revision ===

impl Revision {
    /// # Errors
    /// Empty, over-long, or with anything that a path or URL could take for more than a name.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let refuse = |reason| Err(IdError::new("revision", reason, text));
        if text.is_empty() || text.len() > MAX_REVISION {
            return refuse("is empty or too long");
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/')) {
            return refuse("has a character that is not a letter, a digit, `-`, `_`, `.` or `/`");
        }
        for part in text.split('/') {
            if part.is_empty() || part.starts_with(['.', '-']) || part.ends_with('.') || part.contains("..") {
                return refuse("has a part that is empty or begins with `.` or `-`, or contains `..`");
            }
        }
        Ok(Self(text.to_owned()))
    }

    /// Whether this is a full commit hash, which never moves.
    pub fn is_commit(&self) -> bool {
        self.0.len() == 40 && self.0.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// === impl RelPath ===

impl RelPath {
    /// # Errors
    /// Absolute paths, drive letters, `.`, `..`, backslashes, control characters, marks of lines and directions, empty and
    /// over-long parts.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let refuse = |reason| Err(IdError::new("file name", reason, text));
        if text.is_empty() || text.len() > MAX_PATH {
            return refuse("is empty or too long");
        }
        if text.starts_with('/') {
            return refuse("is absolute");
        }
        if text.chars().any(|c| c.is_control() || turns_text(c)) {
            return refuse("has a control character or one that turns or breaks lines");
        }
        // A backslash separates and a colon names a drive or a stream on other systems: never part of an honest name.
        if text.contains(['\\', ':']) {
            return refuse("has a backslash or a colon");
        }
        for part in text.split('/') {
            if part.is_empty() || part.len() > MAX_NAME {
                return refuse("has an empty or over-long part");
            }
            if matches!(part, "." | "..") {
                return refuse("has a part that is `.` or `..`");
            }
        }
        Ok(Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// This file in `folder`.
    pub fn within(&self, folder: &Path) -> PathBuf {
        folder.join(&self.0)
    }

    /// Number of folders above the file.
    pub fn depth(&self) -> usize {
        self.0.matches('/').count()
    }

    /// The rest of this path below `folder`, if it lies there.
    pub fn below(&self, folder: &Self) -> Option<Self> {
        let rest = self.0.strip_prefix(folder.as_str())?.strip_prefix('/')?;
        (!rest.is_empty()).then(|| Self(rest.to_owned()))
    }
}

// === impl Etag ===

impl Etag {
    /// Accepts the header's value as sent: quoted, weak or bare.
    ///
    /// # Errors
    /// Anything but 1 to 128 letters, digits, `-` and `_`.
    pub fn parse(header: &str) -> Result<Self, IdError> {
        let tag = header.strip_prefix("W/").unwrap_or(header).trim_matches('"');
        if tag.is_empty() || tag.len() > MAX_ETAG {
            return Err(IdError::new("entity tag", "is empty or too long", header));
        }
        // No dot: `.incomplete` and `.lock` are our own endings.
        if !tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
            return Err(IdError::new(
                "entity tag",
                "has a character that is not a letter, a digit, `-` or `_`",
                header,
            ));
        }
        Ok(Self(tag.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// === impl Sha256 ===

impl Sha256 {
    /// # Errors
    /// Anything but 64 hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(IdError::new("sha256", "is not 64 hexadecimal digits", text));
        }
        Ok(Self(text.to_ascii_lowercase()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Etag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The Hub's own limit of a repository's or owner's name.
const MAX_REPO_PART: usize = 96;
/// Far above any real reference, below every file system's limit for one name.
const MAX_REVISION: usize = 200;
/// Below every file system's limit for a whole path once it is joined to a cache folder.
const MAX_PATH: usize = 512;
/// Leaves room for `.incomplete` and `.lock` within the usual 255 bytes.
const MAX_NAME: usize = 230;
/// Twice a SHA-256 in hexadecimal.
const MAX_ETAG: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_their_folder_do_not_exist() {
        let long = "a/".repeat(300) + "b";
        let bad = [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../x",
            "a/../b",
            "a/..",
            ".",
            "./a",
            "a//b",
            "a/",
            "a\\b",
            "C:\\x",
            "C:x",
            "a\0b",
            "a\nb",
            "\u{1b}[2J",
            "a\u{2028}b",
            "gpj\u{202e}.exe",
            "a\u{2066}b",
            long.as_str(),
        ];
        for text in bad {
            assert!(RelPath::parse(text).is_err(), "{text:?}");
        }
        for text in ["config.json", "1_Pooling/config.json", ".gitattributes", "a b/..c", "モデル.json"] {
            assert_eq!(RelPath::parse(text).map(|p| p.to_string()), Ok(text.to_owned()));
        }
        let folder = RelPath::parse("pkg/model").unwrap();
        assert_eq!(RelPath::parse("pkg/model/a/b").unwrap().below(&folder), RelPath::parse("a/b").ok());
        assert_eq!(RelPath::parse("pkg/models/a").unwrap().below(&folder), None);
    }

    #[test]
    fn repository_ids_are_two_plain_names() {
        for text in ["BAAI/bge-m3", "sentence-transformers/all-MiniLM-L6-v2", "a/b_c.d"] {
            assert!(RepoId::parse(text).is_ok(), "{text}");
        }
        for text in
            ["", "a", "a/", "/b", "a/b/c", "../b", "a/..", "a/b..c", "a--b/c", "a/b c", "a/b\0", "http://h/x", ".a/b"]
        {
            assert!(RepoId::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn revisions_are_names_and_commits_are_recognised() {
        for text in ["main", "refs/pr/12", "v1.0", "feature/x_y"] {
            assert!(!Revision::parse(text).unwrap().is_commit(), "{text}");
        }
        assert!(Revision::parse(&"a1".repeat(20)).unwrap().is_commit());
        for text in ["", "..", "a/../b", "/main", "main/", "a//b", "-x", "a b", "a?b", "a#b", "a%2e"] {
            assert!(Revision::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn entity_tags_lose_their_quotes_and_nothing_else() {
        assert_eq!(Etag::parse("W/\"abc-1\"").unwrap().as_str(), "abc-1");
        let long = "x".repeat(5_000);
        for text in ["", "\"\"", "../../x", "a/b", "a.lock", "a\0", long.as_str()] {
            assert!(Etag::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn refusals_show_an_escaped_and_cut_value() {
        let error = RelPath::parse(&format!("\u{1b}[2J\n{}", "x".repeat(9_000))).unwrap_err().to_string();
        assert!(!error.contains('\u{1b}') && !error.contains('\n'), "{error:?}");
        assert!(error.len() < 400, "{}", error.len());
    }
}
