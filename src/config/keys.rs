//! API keys: what is known of each, what it may do, and where they are read from, at start and again on SIGHUP.

mod file;

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::catalog::Names;
use crate::config::ConfigError;
use crate::observe::secret::Secret;
use crate::small_file;

/// A key with the name that logs and metrics may show, and what it may do.
#[derive(Debug, Clone)]
pub struct ApiKey {
    pub name: String,
    pub proof: KeyProof,
    pub policy: KeyPolicy,
}

/// How a key is recognised. `Debug` shows nothing: the digest of a short key is as good as the key.
#[derive(Clone, PartialEq, Eq)]
pub enum KeyProof {
    Key(Secret),
    Sha256([u8; 32]),
    Blake3([u8; 32]),
}

/// What a key may do; by default everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyPolicy {
    pub requests_per_minute: Option<u64>,
    pub tokens_per_minute: Option<u64>,
    /// Requests at the same time.
    pub max_concurrent: Option<u64>,
    /// Canonical ids; `None` = every model.
    pub models: Option<Vec<String>>,
    /// The role of requests that choose no prompt.
    pub default_role: Option<&'static str>,
}

/// Where keys come from, so that they can be read again.
#[derive(Debug, Clone, Default)]
pub struct KeySources {
    /// Typed, or in the environment.
    pub typed: Vec<Secret>,
    /// Files of one key per line.
    pub plain_files: Vec<PathBuf>,
    /// The file with limits.
    pub keys_file: Option<PathBuf>,
}

impl ApiKey {
    /// A key that may do everything.
    pub fn unlimited(name: String, key: Secret) -> Self {
        Self { name, proof: KeyProof::Key(key), policy: KeyPolicy::default() }
    }
}

impl fmt::Debug for KeyProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl KeySources {
    /// Whether there is anything to read again.
    pub const fn has_files(&self) -> bool {
        self.keys_file.is_some() || !self.plain_files.is_empty()
    }

    /// Reads every key.
    ///
    /// # Errors
    /// An unreadable or invalid file, a file without a key, a name or a key that occurs twice.
    pub fn read(&self, names: &Names) -> Result<Vec<ApiKey>, ConfigError> {
        let mut plain: Vec<String> = Vec::new();
        for key in &self.typed {
            if !is_key(key.expose()) {
                let (value, reason) = (format!("key-{}", plain.len() + 1), VISIBLE.to_owned());
                return Err(ConfigError::Invalid { flag: "--api-key", value, reason });
            }
            plain.push(key.expose().to_owned());
        }
        for path in &self.plain_files {
            let before = plain.len();
            for (index, line) in text(path)?.lines().map(str::trim).enumerate() {
                if is_key(line) && !line.starts_with('#') {
                    plain.push(line.to_owned());
                } else if !line.is_empty() && !line.starts_with('#') {
                    let reason = format!("line {}: {VISIBLE}", index + 1);
                    return Err(ConfigError::File { path: path.clone(), reason });
                }
            }
            if plain.len() == before {
                return Err(holds_no_key(path));
            }
        }
        let named = |(index, key)| ApiKey::unlimited(format!("key-{}", index + 1), Secret::new(key));
        let mut keys: Vec<ApiKey> = plain.into_iter().enumerate().map(named).collect();
        if let Some(path) = &self.keys_file {
            let further = file::parse(&path.display().to_string(), &text(path)?, names)?;
            if further.is_empty() {
                return Err(holds_no_key(path));
            }
            for key in further {
                check_alone(&key, &keys, path)?;
                keys.push(key);
            }
        }
        Ok(keys)
    }
}

const VISIBLE: &str = "a key is made of visible ASCII characters, without spaces";

/// What can stand in a header without doubt about where it begins and ends.
fn is_key(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Two keys under one name could not be told apart in logs, and one key under two names has no policy.
fn check_alone(key: &ApiKey, others: &[ApiKey], path: &Path) -> Result<(), ConfigError> {
    let invalid = |reason| Err(ConfigError::File { path: path.to_owned(), reason });
    if others.iter().any(|other| other.name == key.name) {
        return invalid(format!("two keys have the same name: {}", key.name));
    }
    let digests: HashSet<(bool, [u8; 32])> = digests(&key.proof).into_iter().collect();
    let same = |other: &&ApiKey| self::digests(&other.proof).iter().any(|digest| digests.contains(digest));
    match others.iter().find(same) {
        Some(other) => invalid(format!("the same key has two names: {} and {}", other.name, key.name)),
        None => Ok(()),
    }
}

/// What two proofs of one key have in common; the flag tells SHA-256 from BLAKE3.
fn digests(proof: &KeyProof) -> Vec<(bool, [u8; 32])> {
    use sha2::Digest as _;
    match proof {
        KeyProof::Key(key) => {
            let bytes = key.expose().as_bytes();
            vec![(true, sha2::Sha256::digest(bytes).into()), (false, blake3::hash(bytes).into())]
        }
        KeyProof::Sha256(digest) => vec![(true, *digest)],
        KeyProof::Blake3(digest) => vec![(false, *digest)],
    }
}

/// An empty file must not silently open the server.
fn holds_no_key(path: &Path) -> ConfigError {
    ConfigError::File { path: path.to_owned(), reason: "it holds no key".to_owned() }
}

fn text(path: &Path) -> Result<String, ConfigError> {
    let failed = |error: std::io::Error| ConfigError::File { path: path.to_owned(), reason: error.to_string() };
    small_file::read_to_string(path, MAX_FILE_BYTES).map_err(failed)
}

/// Thousands of keys; each is compared with at every request.
const MAX_FILE_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests;
