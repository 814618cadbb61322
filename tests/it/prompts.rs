//! Prompts as sentence-transformers applies them: before every text, counted, and pooled or not, as the model says.

use std::path::Path;

use embedserve::arch;
use embedserve::arch::packed::PackedBatch;
use embedserve::catalog::ModelSpec;
use embedserve::config::{DefaultPrompt, RequestConfig};
use embedserve::engine::Served;
use embedserve::kernel::{Compute, Isa, Reduce, Target, reference};
use embedserve::load::{self, Settings};
use embedserve::observe::progress::LoadProgress;
use embedserve::request::{EmbedRequest, RawInputs, RawRequest, TruncateField};
use embedserve::threads::Threads;
use serde_json::{Value, json};

use crate::support::device::soon;
use crate::support::served::{batches, embed, embed_raw, obtained, requests, shared, spec, try_load};
use crate::support::tiny_model::{TinyModel, vocabulary};

/// What the catalogue and the operator say about a model.
type Change = Box<dyn FnOnce(&mut ModelSpec, &mut RequestConfig)>;

fn write(folder: &Path, name: &str, value: &Value) {
    std::fs::write(folder.join(name), value.to_string()).unwrap();
}

/// A model with prompts, and a pooling configuration.
fn with_prompts(model: &TinyModel, pooling: &Value) -> tempfile::TempDir {
    let folder = model.write();
    let config =
        json!({"prompts": {"query": "the quick ", "document": "", "passage": null}, "default_prompt_name": "query"});
    write(folder.path(), "config_sentence_transformers.json", &config);
    write(folder.path(), "1_Pooling/config.json", pooling);
    folder
}

fn serve(folder: &Path, change: impl FnOnce(&mut ModelSpec, &mut RequestConfig)) -> Result<Served, String> {
    let (mut spec, mut requests) = (spec(folder), requests());
    change(&mut spec, &mut requests);
    let settings = Settings { requests: &requests, batch: &batches() };
    let loaded = load::load(&spec, &obtained(folder), settings, shared(), &LoadProgress::default());
    loaded.map(|loaded| loaded.served).map_err(|error| error.to_string())
}

fn raw(change: impl FnOnce(&mut RawRequest)) -> RawRequest {
    let mut raw = RawRequest::default();
    change(&mut raw);
    raw
}

/// Vectors and token counts.
async fn rows(served: &Served, texts: &[&str], raw: RawRequest) -> Vec<(Vec<f32>, usize)> {
    let embedded = embed_raw(served, texts, raw).await.unwrap();
    embedded.rows.iter().map(|row| (row.vector.as_slice().to_vec(), row.tokens)).collect()
}

#[tokio::test]
async fn the_default_prompt_is_put_before_every_text_and_counted() {
    let plain = try_load(TinyModel::default().write().path()).unwrap().served;
    let folder = with_prompts(&TinyModel::default(), &json!({"pooling_mode": "mean"}));
    let prompted = try_load(folder.path()).unwrap().served;
    let found = rows(&prompted, &["brown fox", "x"], RawRequest::default()).await;
    assert_eq!(found, rows(&plain, &["the quick brown fox", "the quick x"], RawRequest::default()).await);
    let without = rows(&plain, &["brown fox", "x"], RawRequest::default()).await;
    assert_ne!(found[0].0, without[0].0);
    // Each of these chooses no prompt, and so not the default one.
    for raw in [
        raw(|raw| raw.prompt = Some(String::new())),
        raw(|raw| raw.prompt_name = Some("document".to_owned())),
        raw(|raw| raw.prompt_name = Some("passage".to_owned())),
        raw(|raw| raw.input_type = Some("document".to_owned())),
        raw(|raw| raw.task = Some("classification".to_owned())),
    ] {
        assert_eq!(rows(&prompted, &["brown fox", "x"], raw.clone()).await, without, "{raw:?}");
    }
}

#[tokio::test]
async fn the_catalogue_and_the_operator_overrule_the_models_own_prompts() {
    let folder = with_prompts(&TinyModel::default(), &json!({"pooling_mode": "mean"}));
    let plain = try_load(TinyModel::default().write().path()).unwrap().served;
    let prompts = || vec![("query".to_owned(), "lazy ".to_owned()), ("extra".to_owned(), "tiny ".to_owned())];
    let name = |name: &str| Some(DefaultPrompt::Name(name.to_owned()));
    let cases: [(Change, &str); 6] = [
        (Box::new(move |spec, _| spec.prompts = prompts()), "lazy dog"),
        (
            Box::new(move |spec, requests| {
                (spec.prompts, spec.default_prompt_name) = (prompts(), Some("extra".to_owned()));
                requests.default_prompt = name("query");
            }),
            "tiny dog",
        ),
        (Box::new(move |_, requests| requests.default_prompt = name("query")), "the quick dog"),
        (Box::new(move |_, requests| requests.default_prompt = name("document")), "dog"),
        (Box::new(|_, requests| requests.default_prompt = Some(DefaultPrompt::Text("over ".to_owned()))), "over dog"),
        (Box::new(|_, requests| requests.default_prompt = Some(DefaultPrompt::Text(String::new()))), "dog"),
    ];
    for (change, text) in cases {
        let served = serve(folder.path(), change).unwrap();
        let expected = rows(&plain, &[text], RawRequest::default()).await;
        assert_eq!(rows(&served, &["dog"], RawRequest::default()).await, expected, "{text}");
    }
    let error = serve(folder.path(), |_, requests| requests.default_prompt = name("nope")).unwrap_err();
    assert_eq!(error, "--default-prompt-name = nope: the model's prompts are [document, passage, query]");
    let error = serve(folder.path(), |spec, _| spec.default_prompt_name = Some("nope".to_owned())).unwrap_err();
    assert!(error.starts_with("default_prompt_name = nope: "), "{error}");
}

#[test]
fn prompts_that_make_no_sense_stop_the_start() {
    let folder = TinyModel::default().write();
    for (config, reason) in [
        (json!({"prompts": {"a": 1}}), "prompts holds something that is no text"),
        (json!({"prompts": ["a"]}), "prompts is no object"),
        (json!({"default_prompt_name": 1}), "default_prompt_name is no text"),
        (json!({"prompts": {"a": "b"}, "default_prompt_name": "c"}), "prompts has no c, the default_prompt_name"),
    ] {
        write(folder.path(), "config_sentence_transformers.json", &config);
        let error = try_load(folder.path()).unwrap_err().to_string();
        assert!(error.ends_with(&format!("config_sentence_transformers.json: {reason}")), "{error}");
    }
    // sentence-transformers gives every model an empty prompt of these two names.
    for name in ["query", "document"] {
        write(folder.path(), "config_sentence_transformers.json", &json!({"default_prompt_name": name}));
        try_load(folder.path()).unwrap();
    }
    write(folder.path(), "1_Pooling/config.json", &json!({"pooling_mode": "mean", "include_prompt": "no"}));
    let error = try_load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("include_prompt = \"no\""), "{error}");
}

/// The token states of `words`, framed as the tokenizer frames them.
fn hidden(folder: &Path, words: &str) -> Vec<f32> {
    let vocabulary = vocabulary();
    let id = |word: &str| u32::try_from(vocabulary.iter().position(|token| token == word).unwrap()).unwrap();
    let ids: Vec<u32> = ["[CLS]"].into_iter().chain(words.split(' ')).chain(["[SEP]"]).map(id).collect();
    let config = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let files = [folder.join("model.safetensors")];
    let threads = Threads::new(1).unwrap();
    let mut loaded = arch::load(&config, &files, &Target::Cpu, Compute::exact(Isa::detect()), threads.pool()).unwrap();
    let states = loaded.encoder.forward(&PackedBatch::new([ids.as_slice()])).unwrap();
    states.flatten_all().unwrap().to_vec1().unwrap()
}

#[tokio::test]
async fn pooling_leaves_the_prompt_out_where_the_model_says_so() {
    let model = TinyModel { normalize: false, ..TinyModel::default() };
    for (mode, reduce) in [
        ("cls", Reduce::First),
        ("mean", Reduce::Mean),
        ("max", Reduce::Max),
        ("mean_sqrt_len_tokens", Reduce::MeanSqrtLen),
        ("weightedmean", Reduce::WeightedMean),
        ("lasttoken", Reduce::Last),
    ] {
        let folder = with_prompts(&model, &json!({"pooling_mode": mode, "include_prompt": false}));
        let states = hidden(folder.path(), "the quick brown fox");
        let served = try_load(folder.path()).unwrap().served;
        let embedded = embed(&served, &["brown fox", "jumps over the lazy dog"]).await.unwrap();
        // [CLS], `the` and `quick` are the prompt.
        let expected = reference::reduce(reduce, &states, model.hidden, 3);
        let close = |(found, expected): (&f32, &f64)| (f64::from(*found) - expected).abs() < 1e-6;
        let found = embedded.rows[0].vector.as_slice();
        assert!(found.iter().zip(&expected).all(close), "{mode}");
        assert_eq!(embedded.rows[0].tokens, 6);
        let included = serve(folder.path(), |spec, _| spec.include_prompt = Some(true)).unwrap();
        let all = embed(&included, &["brown fox"]).await.unwrap();
        let expected = reference::reduce(reduce, &states, model.hidden, 0);
        assert!(all.rows[0].vector.as_slice().iter().zip(&expected).all(close), "{mode}");
        // The text alone, without a prompt: nothing is left out.
        let none = raw(|raw| raw.prompt = Some(String::new()));
        let states = hidden(folder.path(), "brown fox");
        let expected = reference::reduce(reduce, &states, model.hidden, 0);
        assert!(rows(&served, &["brown fox"], none).await[0].0.iter().zip(&expected).all(close), "{mode}");
    }
}

// The prompt alone has more tokens than the row: `brow` is four, `brown` is one.
#[tokio::test]
async fn a_row_of_which_nothing_is_left_gives_what_the_reference_gives() {
    let model = TinyModel { normalize: false, ..TinyModel::default() };
    let prompt = || raw(|raw| raw.prompt = Some("brow".to_owned()));
    for (mode, expected) in [
        ("mean", Some(vec![0.0; model.hidden])),
        ("mean_sqrt_len_tokens", Some(vec![0.0; model.hidden])),
        ("weightedmean", Some(vec![0.0; model.hidden])),
        ("lasttoken", Some(vec![0.0; model.hidden])),
        ("cls", Some(hidden(model.write().path(), "brown")[..model.hidden].to_vec())),
        // Minus infinity, which is no answer: the row fails, alone.
        ("max", None),
    ] {
        let folder = with_prompts(&model, &json!({"pooling_mode": mode, "include_prompt": false}));
        let served = try_load(folder.path()).unwrap().served;
        if let Some(expected) = expected {
            assert_eq!(rows(&served, &["n"], prompt()).await, [(expected, 3)], "{mode}");
        } else {
            let error = embed_raw(&served, &["n"], prompt()).await.unwrap_err().to_string();
            assert_eq!(error, "row failed at input[0]: the vector is not finite");
        }
    }
}

#[tokio::test]
async fn the_prompt_counts_against_the_limit_and_is_cut_like_text() {
    let model = TinyModel { positions: 8, normalize: false, ..TinyModel::default() };
    let folder = with_prompts(&model, &json!({"pooling_mode": "mean", "include_prompt": false}));
    let served = try_load(folder.path()).unwrap().served;
    let fits = rows(&served, &["a b c d"], RawRequest::default()).await;
    assert_eq!(fits[0].1, 8);
    let error = embed(&served, &["a b c d e"]).await.unwrap_err().to_string();
    assert_eq!(error, "input too long at input[0], limit: 8");
    let cut = |side: &str| raw(|raw| raw.truncate = Some(TruncateField::Word(side.to_owned())));
    let embedded = embed_raw(&served, &["a b c d e f"], cut("end")).await.unwrap();
    assert_eq!(embedded.rows[0].vector.as_slice(), fits[0].0);
    assert_eq!(embedded.rows[0].cut.unwrap().original_tokens, Some(10));
    // The start of the whole is the prompt. As in the reference, as many tokens are left out as the prompt alone has.
    let start = rows(&served, &["a b c d e f"], cut("start")).await;
    let states = hidden(folder.path(), "a b c d e f");
    let expected = reference::reduce(Reduce::Mean, &states, model.hidden, 3);
    assert!(start[0].0.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6));
    // A prompt that fills the row alone leaves its last special token.
    let long = raw(|raw| {
        raw.prompt = Some("a b c d e f g h".to_owned());
        raw.truncate = Some(TruncateField::Flag(true));
    });
    let filled = rows(&served, &["x"], long).await;
    let states = hidden(folder.path(), "a b c d e f");
    let expected = reference::reduce(Reduce::Last, &states, model.hidden, 0);
    assert!(filled[0].0.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6));
}

// The tiny model's texts may have 8 x 64 bytes.
#[tokio::test]
async fn the_prompt_counts_against_the_bytes_of_a_text() {
    let model = TinyModel { positions: 8, ..TinyModel::default() };
    let served = try_load(model.write().path()).unwrap().served;
    let prompt = || "a b ".to_owned();
    let request = |side: Option<&str>| {
        raw(|raw| {
            raw.prompt = Some(prompt());
            raw.truncate = side.map(|side| TruncateField::Word(side.to_owned()));
        })
    };
    let text = "xxxx".to_owned() + &" ".repeat(504);
    assert_eq!(text.len() + prompt().len(), 512);
    assert_eq!(rows(&served, &[&text], request(None)).await[0].1, 8);
    let longer = format!("{text} ");
    let error = embed_raw(&served, &[&longer], request(None)).await.unwrap_err().to_string();
    assert_eq!(error, "input too long at input[0], limit: 8");
    // Words of known places: the first and the last that fit.
    let words: Vec<String> = (0..400).map(|i| ["c", "d", "e", "f", "g"][i % 5].to_owned()).collect();
    let many = words.join(" ");
    let end = rows(&served, &[&many], request(Some("end"))).await;
    let start = rows(&served, &[&many], request(Some("start"))).await;
    let none = RawRequest::default;
    assert_eq!(end, rows(&served, &["a b c d e f"], none()).await);
    assert_eq!(start, rows(&served, &["g c d e f g"], none()).await);
    // One word longer than the limit: the prompt stays, and so does the word's beginning.
    let word = rows(&served, &[&"x".repeat(1000)], request(Some("end"))).await;
    assert_eq!(word, rows(&served, &[&"x".repeat(500)], request(Some("end"))).await);
    // A prompt beyond the limit leaves no room for the text at the end, and is gone at the start.
    let patient = serve(model.write().path(), |_, requests| requests.max_prompt_bytes = 1000).unwrap();
    let fills = |side: &str| {
        raw(|raw| {
            raw.prompt = Some("a ".repeat(300));
            raw.truncate = Some(TruncateField::Word(side.to_owned()));
        })
    };
    assert_eq!(rows(&patient, &["x y"], fills("end")).await, rows(&patient, &["a a a a a a"], none()).await);
    assert_eq!(rows(&patient, &["x y"], fills("start")).await, rows(&patient, &["a a a a x y"], none()).await);
}

#[tokio::test]
async fn the_models_own_ids_get_no_prompt_and_decoded_ones_do() {
    let folder = with_prompts(&TinyModel::default(), &json!({"pooling_mode": "mean", "include_prompt": false}));
    let served = try_load(folder.path()).unwrap().served;
    let vocabulary = vocabulary();
    let id = |word: &str| i64::try_from(vocabulary.iter().position(|token| token == word).unwrap()).unwrap();
    let own = vec![2, id("hello"), id("world"), 3];
    // OpenAI's ids of `hello world`.
    let arrays = vec![own, vec![15339, 1917]];
    let raw_arrays = RawRequest { inputs: RawInputs::Tokens { single: false, arrays }, ..RawRequest::default() };
    let request = EmbedRequest::parse("model".to_owned(), raw_arrays, &served.limits, soon()).unwrap();
    let embedded = served.embed(request).await.unwrap();
    let plain = rows(&served, &["hello world"], raw(|raw| raw.prompt = Some(String::new()))).await;
    let prompted = rows(&served, &["hello world"], RawRequest::default()).await;
    assert_eq!((embedded.rows[0].vector.as_slice(), embedded.rows[0].tokens), (plain[0].0.as_slice(), 4));
    assert_eq!((embedded.rows[1].vector.as_slice(), embedded.rows[1].tokens), (prompted[0].0.as_slice(), 6));
    assert_ne!(plain[0].0, prompted[0].0);
}
