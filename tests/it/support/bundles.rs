//! Bundles written by hand, so that they can be wrong in every way.

use serde_json::{Value, json};

use super::fake_hub::{COMMIT, etag};
use super::sources::{NEEDED, hex, repository};

/// A member as it stands in the archive.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub name: String,
    pub kind: u8,
    /// In the header; the bytes may be others.
    pub size: u64,
    pub bytes: Vec<u8>,
}

/// Manifest and members; the defaults are the honest bundle of `repository()`.
#[derive(Debug, Clone)]
pub(crate) struct HandMade {
    pub manifest: Value,
    pub members: Vec<Member>,
    pub tail: Vec<u8>,
}

impl HandMade {
    pub(crate) fn honest() -> Self {
        let mut bundle = Self {
            manifest: json!({"format": 1, "made_by": "a test", "models": [{"id": "o/n", "files": [],
                "source": {"kind": "hub", "repo": "o/n", "revision": "main", "commit": COMMIT, "conversion": null}}]}),
            members: Vec::new(),
            tail: vec![0; 1024],
        };
        for name in NEEDED {
            bundle.add(name, &repository()[name]);
        }
        bundle
    }

    /// One more file, in the manifest and as a member.
    pub(crate) fn add(&mut self, name: &str, bytes: &[u8]) {
        self.files().push(json!({"name": name, "size": bytes.len(), "sha256": hex(bytes), "etag": etag(name, bytes)}));
        self.members.push(Member::file(&format!("0/{name}"), bytes));
    }

    pub(crate) fn files(&mut self) -> &mut Vec<Value> {
        self.manifest["models"][0]["files"].as_array_mut().unwrap()
    }

    /// The entry and the member of a file.
    pub(crate) fn file(&mut self, name: &str) -> (&mut Value, &mut Member) {
        let member = self.members.iter_mut().find(|member| member.name == format!("0/{name}")).unwrap();
        let files = self.manifest["models"][0]["files"].as_array_mut().unwrap();
        (files.iter_mut().find(|file| file["name"] == name).unwrap(), member)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let manifest = Member::file("manifest.json", &serde_json::to_vec_pretty(&self.manifest).unwrap());
        let mut out = manifest.bytes();
        for member in &self.members {
            out.extend(member.bytes());
        }
        out.extend(&self.tail);
        out
    }
}

impl Member {
    pub(crate) fn file(name: &str, bytes: &[u8]) -> Self {
        Self { name: name.to_owned(), kind: b'0', size: bytes.len() as u64, bytes: bytes.to_vec() }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut header = [0_u8; 512];
        let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
        put(0, self.name.as_bytes());
        put(100, b"0000644\x000000000\x000000000\0");
        put(124, format!("{:011o}\x0000000000000\0        ", self.size).as_bytes());
        put(156, &[self.kind]);
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut out = [header.as_slice(), &self.bytes].concat();
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }
}
