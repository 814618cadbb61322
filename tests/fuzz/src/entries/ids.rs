//! Everything that becomes a part of a path or a URL, and the operator's choice of a model. D-09, A-09

use std::path::{Component, Path};
use std::sync::OnceLock;

use embedserve::catalog::id::{Etag, IdError, RelPath, RepoId, Revision, Sha256};
use embedserve::catalog::{self, ModelSpec, SourceSpec, names};

use super::Verdict;
use super::message;

/// Accepted where at least one of the five constructors takes it.
pub fn check(data: &[u8]) -> Verdict {
    let text = std::str::from_utf8(data).map_err(|_| "not UTF-8".to_owned())?;
    let refused = |error: IdError| message::checked(error.to_string(), data);
    let results = [
        RepoId::parse(text).map(|id| {
            assert_eq!((id.as_str(), text.matches('/').count()), (text, 1));
            stays_inside(id.as_str());
            // The cache writes `models--owner--name`, and must be able to read it.
            assert_eq!(text.replace('/', "--").split("--").count(), 2, "{text}");
        }),
        Revision::parse(text).map(|revision| {
            assert_eq!(revision.as_str(), text);
            stays_inside(revision.as_str());
            is_plain(revision.as_str(), "/");
            assert!(!revision.is_commit() || text.len() == 40);
        }),
        RelPath::parse(text).map(|path| {
            assert_eq!(path.as_str(), text);
            stays_inside(path.as_str());
            assert_eq!(path.depth() + 1, Path::new(text).components().count());
            assert!(!text.chars().any(|c| c.is_control() || matches!(c, '\\' | ':')), "{text:?}");
            if let Some((folder, rest)) = text.split_once('/') {
                let below = path.below(&RelPath::parse(folder).expect("a part of a name is a name"));
                assert_eq!(below.expect("it lies there").as_str(), rest);
            }
        }),
        Etag::parse(text).map(|tag| {
            is_plain(tag.as_str(), "");
            assert!(!tag.as_str().contains('.'), "our own endings begin with a dot");
            assert_eq!(Etag::parse(tag.as_str()), Ok(tag));
        }),
        Sha256::parse(text).map(|hash| {
            assert!(hash.as_str().len() == 64 && hash.as_str().eq_ignore_ascii_case(text));
            is_plain(hash.as_str(), "");
        }),
    ];
    let results = results.map(|result| result.map_err(refused));
    choose(text);
    if results.iter().any(Result::is_ok) { Ok(()) } else { results.into_iter().find(Result::is_err).unwrap_or(Ok(())) }
}

/// What `--model` makes of it.
fn choose(text: &str) {
    static BUILTIN: OnceLock<Vec<ModelSpec>> = OnceLock::new();
    let catalogue = BUILTIN.get_or_init(|| catalog::builtin().expect("our own catalogue"));
    match catalog::resolve(text, catalogue) {
        Ok(spec) => {
            assert!(!spec.sources.is_empty() && !spec.id.is_empty(), "{spec:?}");
            for source in &spec.sources {
                if let SourceSpec::Directory { .. } = source {
                    let written_as_one = text.starts_with(['.', '/', '~']) || text.starts_with("dir:");
                    assert!(written_as_one, "a folder that nobody asked for: {text:?}");
                }
            }
        }
        Err(error) => drop(message::checked(error.to_string(), text.as_bytes())),
    }
    assert!(names::near(text, catalogue).len() <= 3);
}

/// Joined to a folder, it names something below it.
fn stays_inside(name: &str) {
    let folder = Path::new("/cache/folder");
    let joined = folder.join(name);
    assert!(joined.starts_with(folder) && joined != folder, "{name:?} leaves its folder");
    assert!(Path::new(name).components().all(|part| matches!(part, Component::Normal(_))), "{name:?}");
}

/// Letters, digits and what file names and URLs take literally.
fn is_plain(name: &str, more: &str) {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') || more.contains(c);
    assert!(name.chars().all(plain), "{name:?}");
}
