//! Roles and prompts on the wire: every field, every word, suffixes of model names, and what contradicts what.

use embedserve::catalog::ModelSpec;
use embedserve::config::DefaultPrompt;
use serde_json::{Value, json};

use crate::support::app::{Answer, DIMENSIONS, F, Kind, M, Setup, TestApp};
use crate::support::tiny_model::TinyModel;

/// What the operator and the catalogue say.
type Change = fn(&mut Setup, &mut ModelSpec);

/// M with a query, a passage and another prompt; F without any.
fn prompts(setup: &mut Setup) {
    let prompt = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    setup.models[0].spec.prompts =
        vec![prompt("query", "quick "), prompt("passage", "lazy "), prompt("other", "tiny ")];
    setup.aliases.push(("short".to_owned(), M.to_owned()));
}

fn body(model: &str, fields: &Value) -> Value {
    let mut body = json!({"model": model, "input": ["dog", "fox"]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

/// The answer's vectors and its usage.
#[track_caller]
fn read(answer: &Answer) -> (Vec<Vec<f32>>, Value) {
    (answer.vectors(), answer.json()["usage"]["prompt_tokens"].clone())
}

/// What the literal texts give.
async fn literal(app: &TestApp, prompt: &str) -> (Vec<Vec<f32>>, Value) {
    let input = json!([format!("{prompt}dog"), format!("{prompt}fox")]);
    read(&app.embed(json!({"model": M, "input": input})).await)
}

#[tokio::test]
async fn every_word_of_every_api_puts_the_models_prompt_before_the_text() {
    let app = TestApp::with(prompts).await;
    let (query, passage, plain) =
        (literal(&app, "quick ").await, literal(&app, "lazy ").await, literal(&app, "").await);
    assert_eq!((query.1.as_u64(), plain.1.as_u64()), (Some(8), Some(6)));
    let (other, own) = (literal(&app, "tiny ").await, literal(&app, "the ").await);
    for (fields, expected) in [
        (json!({"input_type": "query"}), &query),
        (json!({"input_type": "passage"}), &passage),
        (json!({"input_type": "document"}), &passage),
        (json!({"input_type": "search_query"}), &query),
        (json!({"input_type": "search_document"}), &passage),
        (json!({"input_type": "classification"}), &plain),
        (json!({"input_type": "clustering"}), &plain),
        (json!({"input_type": "Query"}), &query),
        (json!({"task": "retrieval.query"}), &query),
        (json!({"task": "retrieval.passage"}), &passage),
        (json!({"task": "text-matching"}), &plain),
        (json!({"task": "separation"}), &plain),
        (json!({"task": "classification"}), &plain),
        (json!({"prompt_name": "other"}), &other),
        (json!({"prompt": "the "}), &own),
        (json!({"prompt": ""}), &plain),
        (json!({"prompt": "the ", "input_type": "query", "task": "query"}), &own),
        (json!({"prompt_name": "other", "input_type": "query"}), &other),
        (json!({"input_type": "query", "task": "retrieval.query"}), &query),
        (json!({"input_type": null, "task": null, "prompt": null, "prompt_name": null}), &plain),
        (json!({"input_type": null, "task": "query"}), &query),
    ] {
        assert_eq!(&read(&app.embed(body(M, &fields)).await), expected, "{fields}");
    }
    // The total of tokens, and the limit of one text, count the prompt.
    let long = json!({"model": M, "input": vec!["x"; 61].join(" "), "input_type": "query"});
    read(&app.embed(long).await);
    let too_long = json!({"model": M, "input": vec!["x"; 62].join(" "), "input_type": "query"});
    let message = app.embed(too_long).await.refusal(400, Some("context_length_exceeded"), Some("input"));
    assert!(message.contains("you requested 65 tokens"), "{message}");
}

#[tokio::test]
async fn the_name_of_the_model_can_carry_the_role() {
    let app = TestApp::with(prompts).await;
    let (query, passage) = (literal(&app, "quick ").await, literal(&app, "lazy ").await);
    for (name, expected) in [
        (format!("{M}@query"), &query),
        (format!("{M}@passage"), &passage),
        (format!("{M}@document"), &passage),
        (format!("{M}-query"), &query),
        (format!("{M}-passage"), &passage),
        ("short-query".to_owned(), &query),
        ("Matryoshka@QUERY".to_owned(), &query),
        ("gpt-4o-passage".to_owned(), &passage),
    ] {
        let answer = app.embed(body(&name, &json!({}))).await;
        assert_eq!(&read(&answer), expected, "{name}");
        assert_eq!((answer.json()["model"].as_str(), answer.header("openai-model")), (Some(name.as_str()), Some(M)));
        let listed = app.get(&format!("/v1/models/{}", name.replace('/', "%2F"))).await.json();
        assert_eq!((listed["id"].as_str(), listed["root"].as_str()), (Some(name.as_str()), Some(M)));
    }
    for name in [format!("{M}@clustering"), format!("{M}-document"), format!("{M}@"), "nope@query".to_owned()] {
        app.embed(body(&name, &json!({}))).await.refusal(404, Some("model_not_found"), None);
        app.get(&format!("/v1/models/{name}")).await.refusal(404, Some("model_not_found"), Some("model"));
    }
    // Equal fields do not contradict the name, others do.
    for fields in [
        json!({"input_type": "search_query"}),
        json!({"task": "retrieval.query"}),
        json!({"prompt_name": "query"}),
        json!({"prompt": "quick "}),
    ] {
        assert_eq!(read(&app.embed(body("short@query", &fields)).await), query, "{fields}");
    }
    for (field, value) in
        [("input_type", "passage"), ("task", "separation"), ("prompt_name", "other"), ("prompt", "x ")]
    {
        let answer = app.embed(body("short@query", &json!({field: value}))).await;
        let message = answer.refusal(400, Some("invalid_value"), Some(field));
        assert!(message.ends_with("It contradicts the role 'query' in the name of the model."), "{message}");
    }
    let names: Vec<Value> = app.get("/v1/models").await.json()["data"].as_array().unwrap().clone();
    assert!(names.iter().all(|entry| !entry["id"].as_str().unwrap().contains("query")), "no name of their own");
}

#[tokio::test]
async fn a_served_name_that_looks_like_a_role_is_a_name() {
    let app = TestApp::with(|setup| {
        prompts(setup);
        setup.aliases.push(("short-query".to_owned(), F.to_owned()));
        setup.aliases.push(("odd@passage".to_owned(), M.to_owned()));
    })
    .await;
    let answer = app.embed(body("short-query", &json!({}))).await;
    assert_eq!((answer.status, answer.header("openai-model")), (200, Some(F)));
    assert_eq!(read(&app.embed(body("odd@passage", &json!({}))).await), literal(&app, "").await);
    assert_eq!(read(&app.embed(body("odd@passage-query", &json!({}))).await), literal(&app, "quick ").await);
}

#[tokio::test]
async fn with_any_name_accepted_only_the_unmistakable_role_counts() {
    let app = TestApp::with(|setup| {
        prompts(setup);
        setup.requests.accept_any_model = true;
    })
    .await;
    let (query, plain) = (literal(&app, "quick ").await, literal(&app, "").await);
    for (name, expected) in [
        ("text-embedding-3-small@query", &query),
        ("text-embedding-3-small", &plain),
        ("unknown-query", &plain),
        ("short-query", &query),
    ] {
        let answer = app.embed(body(name, &json!({}))).await;
        assert_eq!(&read(&answer), expected, "{name}");
        assert_eq!(answer.json()["model"], name);
    }
}

// Unknown roles are refused where roles are known.
#[tokio::test]
async fn a_model_without_prompts_takes_roles_and_refuses_what_it_does_not_know() {
    let app = TestApp::start().await;
    let plain = read(&app.embed(body(F, &json!({}))).await);
    for fields in [json!({"input_type": "query"}), json!({"task": "retrieval.passage"}), json!({"prompt": ""})] {
        assert_eq!(read(&app.embed(body(F, &fields)).await), plain, "{fields}");
    }
    assert_eq!(read(&app.embed(body(&format!("{F}@query"), &json!({}))).await), plain);
    for (fields, field, expected) in [
        (json!({"prompt_name": "query"}), "prompt_name", "This model has no prompts."),
        (json!({"input_type": "image"}), "input_type", "'text-matching', 'separation']."),
        (json!({"task": "code"}), "task", "Supported values: ['query', 'document', "),
        (json!({"prompt": "x".repeat(65)}), "prompt", "= (65 bytes). At most 64 bytes are allowed."),
        (json!({"prompt": "x", "prompt_name": "y"}), "prompt_name", "This model has no prompts."),
        (json!({"input_type": "query", "task": "clustering"}), "task", "It contradicts 'input_type'."),
    ] {
        let message = app.embed(body(F, &fields)).await.refusal(400, Some("invalid_value"), Some(field));
        assert!(message.contains(expected), "{fields}: {message}");
    }
    for field in ["input_type", "task", "prompt", "prompt_name"] {
        let answer = app.embed(body(F, &json!({field: ["query"]}))).await;
        answer.refusal(400, Some("invalid_type"), Some(field));
    }
    let twice = format!(r#"{{"model":"{F}","input":"a","prompt":"x","prompt":"x"}}"#);
    app.post("/v1/embeddings", &[], twice).await.refusal(400, None, None);
}

#[tokio::test]
async fn the_default_prompt_is_for_requests_that_choose_nothing() {
    let app = TestApp::with(|setup| {
        prompts(setup);
        setup.models[0].spec.default_prompt_name = Some("other".to_owned());
    })
    .await;
    let plain = read(&app.embed(body(M, &json!({"prompt": ""}))).await);
    let other = read(&app.embed(body(M, &json!({}))).await);
    assert_ne!(other, plain);
    assert_eq!(read(&app.embed(body(M, &json!({"prompt_name": "other"}))).await), other);
    assert_eq!(read(&app.embed(body(M, &json!({"prompt": "tiny "}))).await), other);
    // A role without a prompt is something else than no role.
    assert_eq!(read(&app.embed(body(M, &json!({"input_type": "clustering"}))).await), plain);
    let app = TestApp::with(|setup| {
        prompts(setup);
        setup.requests.default_prompt = Some(DefaultPrompt::Text("tiny ".to_owned()));
    })
    .await;
    assert_eq!(read(&app.embed(body(M, &json!({}))).await), other);
}

#[tokio::test]
async fn arrays_of_the_models_own_ids_get_no_prompt() {
    let app = TestApp::with(prompts).await;
    let arrays = |encoding: &str| json!({"input": [[15339, 1917]], "token_encoding": encoding, "input_type": "query"});
    let decoded = read(&app.embed(body(M, &arrays("cl100k_base"))).await);
    let literal = read(&app.embed(json!({"model": M, "input": ["quick hello world"]})).await);
    assert_eq!(decoded, literal);
    let own = |role: Value| body(M, &json!({"input": [[10, 11]], "token_encoding": "model", "input_type": role}));
    let with_role = read(&app.embed(own(json!("query"))).await);
    assert_eq!(with_role, read(&app.embed(own(Value::Null)).await));
    assert_eq!(with_role.1, 4);
}

// Which lengths `dimensions` may ask for is the model's to say, or the operator's.
#[tokio::test]
async fn shorter_vectors_need_a_model_that_declares_them() {
    let tiny = || Kind::Tiny(TinyModel { hidden: DIMENSIONS, ..TinyModel::default() });
    let cases: [(Change, bool); 6] = [
        (|_, _| {}, false),
        (|_, spec| spec.matryoshka = Some(true), true),
        (|_, spec| spec.matryoshka_dimensions = vec![32, 16], true),
        (|_, spec| (spec.matryoshka, spec.matryoshka_dimensions) = (Some(false), vec![32, 16]), false),
        (|setup, _| setup.requests.allow_dimensions = true, true),
        (|setup, spec| (setup.requests.allow_dimensions, spec.matryoshka) = (true, Some(false)), true),
    ];
    for (index, (change, allowed)) in cases.into_iter().enumerate() {
        let app = TestApp::with(|setup| {
            setup.only("m", tiny());
            let mut spec = setup.models[0].spec.clone();
            change(setup, &mut spec);
            setup.models[0].spec = spec;
        })
        .await;
        let answer = app.embed(json!({"model": "m", "input": "a", "dimensions": 8})).await;
        assert_eq!(answer.status == 200, allowed, "case {index}: {}", answer.text);
        if !allowed {
            let message = answer.refusal(400, None, Some("dimensions"));
            assert!(message.ends_with("Its vectors have 32 dimensions."), "{message}");
        }
        assert_eq!(app.embed(json!({"model": "m", "input": "a", "dimensions": 32})).await.status, 200);
    }
}
