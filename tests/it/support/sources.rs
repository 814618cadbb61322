//! What tests of sources share: a small repository, a configuration with little patience, and running `obtain`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use embedserve::catalog::id::{RelPath, RepoId, Revision, Sha256};
use embedserve::catalog::{self, ModelSpec, SourceSpec};
use embedserve::config::{Proxies, SourceConfig};
use embedserve::observe::progress::LoadProgress;
use embedserve::source::{self, Cause, Judge, ModelFolder, SourceError};
use sha2::Digest as _;
use tempfile::TempDir;

/// Files that make up a model, and files that must never be touched.
pub(crate) fn repository() -> BTreeMap<String, Vec<u8>> {
    let modules = br#"[{"idx":0,"name":"0","path":"","type":"sentence_transformers.models.Transformer"},
        {"idx":1,"name":"1","path":"1_Pooling","type":"sentence_transformers.models.Pooling"},
        {"idx":2,"name":"2","path":"2_Normalize","type":"sentence_transformers.models.Normalize"}]"#;
    let config = br#"{"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "vocab_size": 100, "max_position_embeddings": 64}"#;
    let files: [(&str, &[u8]); 9] = [
        ("config.json", config),
        // Its git hash is known to the fake hub.
        ("tokenizer.json", b"hello\n"),
        ("modules.json", modules),
        ("1_Pooling/config.json", b"{\"pooling_mode_mean_tokens\": true}"),
        ("sentence_bert_config.json", b"{\"max_seq_length\": 64}"),
        ("README.md", b"# not needed"),
        ("pytorch_model.bin", b"\x80\x04pickle"),
        ("modeling_custom.py", b"raise SystemExit"),
        (".gitattributes", b"*.bin lfs"),
    ];
    let mut all: BTreeMap<String, Vec<u8>> =
        files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
    all.insert("model.safetensors".to_owned(), weights(200_000));
    all
}

/// The names of `repository()` that a model consists of.
pub(crate) const NEEDED: [&str; 6] = [
    "config.json",
    "tokenizer.json",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "model.safetensors",
];

/// Bytes that repeat nowhere, so that a shifted resume is noticed.
pub(crate) fn weights(len: u32) -> Vec<u8> {
    (0..len).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> Sha256 {
    Sha256::parse(&hex(bytes)).unwrap()
}

/// SHA-256 in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes)
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from_digit(digit.into(), 16).unwrap())
        .collect()
}

pub(crate) fn path(text: &str) -> RelPath {
    RelPath::parse(text).unwrap()
}

/// A temporary machine: caches and little patience.
#[derive(Debug)]
pub(crate) struct Machine {
    pub folder: TempDir,
    pub config: SourceConfig,
}

impl Machine {
    /// One whose endpoint is `endpoint`.
    pub(crate) fn new(endpoint: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = SourceConfig {
            hub_cache: folder.path().join("hub"),
            wheel_cache: folder.path().join("wheels"),
            endpoint: endpoint.to_owned(),
            token: None,
            proxies: Proxies::default(),
            ca_file: None,
            offline: false,
            stall_timeout: Duration::from_secs(5),
            file_timeout: Duration::from_secs(30),
            parallel_files: 4,
            conversion_revision: true,
            attempts: 3,
            backoff: Duration::from_millis(5),
            progress_bars: false,
            pip: vec!["/nonexistent/pip".into()],
        };
        Self { folder, config }
    }

    pub(crate) fn offline(&self) -> SourceConfig {
        SourceConfig { offline: true, ..self.config.clone() }
    }

    /// A folder of the Hub cache's one repository.
    pub(crate) fn repository(&self) -> PathBuf {
        self.config.hub_cache.join("models--o--n")
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.repository().join("blobs").join(etag)
    }

    /// Every regular file below the machine's folder, locks aside.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(self.folder.path(), &mut found);
        found.retain(|path| path.extension().is_none_or(|ending| ending != "lock"));
        found
    }
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let entry = entry.unwrap();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => walk(&entry.path(), found),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
}

/// A model with these sources and room for its files.
pub(crate) fn model(sources: Vec<SourceSpec>) -> ModelSpec {
    let mut spec = catalog::resolve("o/n", &[]).unwrap();
    spec.sources = sources;
    spec.max_file_bytes = 1_000_000;
    spec
}

/// `o/n` at `main` on the Hub.
pub(crate) fn hub_model() -> ModelSpec {
    hub_model_at("main", Vec::new())
}

pub(crate) fn hub_model_at(revision: &str, sha256: Vec<(RelPath, Sha256)>) -> ModelSpec {
    let (repo, revision) = (RepoId::parse("o/n").unwrap(), Revision::parse(revision).unwrap());
    model(vec![SourceSpec::Hub { repo, revision, sha256 }])
}

/// Takes every model for one that can be served: what a file is good for does not matter to those who fetch it.
pub(crate) const ANY: Judge = |_, _| Ok(());

pub(crate) fn obtain(spec: &ModelSpec, config: &SourceConfig) -> Result<ModelFolder, SourceError> {
    source::obtain(spec, ANY, config, &LoadProgress::default(), &AtomicBool::new(false))
}

/// Obtains what must fail, and says why its only source did.
pub(crate) fn cause(spec: &ModelSpec, config: &SourceConfig) -> Cause {
    match obtain(spec, config) {
        Err(SourceError::Unavailable { mut attempts, .. }) if attempts.len() == 1 => attempts.remove(0).cause,
        other => panic!("expected one failed attempt: {other:?}"),
    }
}

/// Polls until `done`, for at most ten seconds.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "not within ten seconds: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
