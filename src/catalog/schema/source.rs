//! `[[model.source]]`: where a model's files come from, one kind of table each.

use toml::de::DeTable;

use crate::catalog::id::{RelPath, RepoId, Revision, Sha256};
use crate::catalog::schema::{Reader, Value};
use crate::catalog::{SourceSpec, expand_home};
use crate::excerpt::excerpt;

impl<'t> Reader<'t> {
    pub(super) fn source(&mut self, value: &Value<'t>) -> Option<SourceSpec> {
        let table = self.table(value)?;
        let kind = table.get("kind").and_then(|kind| self.string(kind));
        match kind.as_deref() {
            Some("hub") => self.hub(table, value),
            Some("wheel") => self.wheel(table, value),
            Some("directory") => self.directory(table, value),
            Some(other) => {
                let start = table.get("kind").map_or(0, |kind| kind.span().start);
                self.problem(
                    start,
                    format!("unknown kind of source, known: hub, wheel, directory: {}", excerpt(other)),
                );
                None
            }
            None => {
                self.require(table, value, "kind");
                None
            }
        }
    }

    fn hub(&mut self, table: &DeTable<'t>, whole: &Value<'t>) -> Option<SourceSpec> {
        let (mut repo, mut revision, mut sha256) = (None, None, Vec::new());
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "kind" => {}
                "repo" => repo = self.parsed(value, RepoId::parse),
                "revision" => revision = self.parsed(value, Revision::parse),
                "sha256" => sha256 = self.hashes(value),
                _ => self.unknown(key, "kind, repo, revision, sha256"),
            }
        }
        self.require(table, whole, "repo");
        self.require(table, whole, "revision");
        Some(SourceSpec::Hub { repo: repo?, revision: revision?, sha256 })
    }

    fn wheel(&mut self, table: &DeTable<'t>, whole: &Value<'t>) -> Option<SourceSpec> {
        let (mut package, mut version, mut sha256, mut folder, mut members) = (None, None, None, None, Vec::new());
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "kind" => {}
                "package" => package = self.word(value),
                "version" => version = self.word(value),
                "sha256" => sha256 = self.parsed(value, Sha256::parse),
                "folder" => folder = self.parsed(value, RelPath::parse),
                "members" => members = self.hashes(value),
                _ => self.unknown(key, "kind, package, version, sha256, folder, members"),
            }
        }
        for key in ["package", "version", "sha256", "folder"] {
            self.require(table, whole, key);
        }
        Some(SourceSpec::Wheel { package: package?, version: version?, sha256: sha256?, folder: folder?, members })
    }

    fn directory(&mut self, table: &DeTable<'t>, whole: &Value<'t>) -> Option<SourceSpec> {
        let mut path = None;
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "kind" => {}
                "path" => path = self.string(value).map(|text| (text, value.span().start)),
                _ => self.unknown(key, "kind, path"),
            }
        }
        self.require(table, whole, "path");
        let (text, start) = path?;
        let path = expand_home(&text).filter(|_| !text.is_empty() && !text.contains(['$', '\0']));
        if path.is_none() {
            self.problem(start, format!("not a plain path (variables are not expanded): {}", excerpt(&text)));
        }
        path.map(|path| SourceSpec::Directory { path })
    }
}
