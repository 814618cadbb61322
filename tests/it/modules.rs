//! The chain behind the encoder, as `modules.json` lists it: every module computes, in its place.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};

use crate::support::random::Random;
use crate::support::served::{embed, try_load};
use crate::support::tiny_model::TinyModel;

const WIDTH: usize = 32;
const TEXT: &str = "the quick brown fox";

fn write(folder: &Path, name: &str, bytes: &[u8]) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// A safetensors file with these f32 tensors.
fn tensors(tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, _, values)| values.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()));
    serialize(views, None).unwrap()
}

/// What a chain makes of the pooled vector.
type Expected = fn(&Chain, &[f64]) -> Vec<f64>;

/// A tiny model whose chain goes on with these modules, each in the folder of its type's name.
struct Chain {
    folder: tempfile::TempDir,
    dense: (Vec<f32>, Vec<f32>),
    norm: (Vec<f32>, Vec<f32>),
}

impl Chain {
    fn new(pooling: &Value, kinds: &[&str]) -> Self {
        let folder = TinyModel { normalize: false, ..TinyModel::default() }.write();
        let mut random = Random::new(11);
        let modes = pooling["pooling_mode"].as_array().map_or(1, Vec::len);
        let k = WIDTH * modes;
        let dense = (random.floats(5 * k, 0.5), random.floats(5, 0.5));
        let norm = (random.floats(WIDTH, 1.0), random.floats(WIDTH, 1.0));
        let mut modules = vec![
            json!({"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}),
            json!({"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}),
        ];
        for kind in kinds {
            modules.push(json!({"path": kind, "type": format!("sentence_transformers.models.{kind}")}));
        }
        let put = |name: &str, value: &Value| write(folder.path(), name, value.to_string().as_bytes());
        put("modules.json", &Value::Array(modules));
        put("1_Pooling/config.json", pooling);
        put(
            "Dense/config.json",
            &json!({"in_features": k, "out_features": 5, "activation_function": "torch.nn.modules.activation.Tanh"}),
        );
        put("LayerNorm/config.json", &json!({"dimension": WIDTH}));
        let weights = tensors(&[("linear.weight", &[5, k], &dense.0), ("linear.bias", &[5], &dense.1)]);
        write(folder.path(), "Dense/model.safetensors", &weights);
        let weights = tensors(&[("norm.weight", &[WIDTH], &norm.0), ("norm.bias", &[WIDTH], &norm.1)]);
        write(folder.path(), "LayerNorm/model.safetensors", &weights);
        Self { folder, dense, norm }
    }

    fn put(&self, name: &str, value: &Value) {
        write(self.folder.path(), name, value.to_string().as_bytes());
    }

    async fn vector(&self) -> Vec<f64> {
        let served = try_load(self.folder.path()).unwrap().served;
        let embedded = embed(&served, &[TEXT, "hello"]).await.unwrap();
        let vector = embedded.rows[0].vector.as_slice();
        assert_eq!(vector.len(), served.limits.dimensions);
        vector.iter().map(|x| f64::from(*x)).collect()
    }

    fn error(&self) -> String {
        try_load(self.folder.path()).unwrap_err().to_string()
    }

    fn through_dense(&self, x: &[f64]) -> Vec<f64> {
        let rows = self.dense.0.chunks_exact(x.len()).zip(&self.dense.1);
        let product = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
        rows.map(|(row, bias)| (product(row) + f64::from(*bias)).tanh()).collect()
    }

    fn through_norm(&self, x: &[f64]) -> Vec<f64> {
        embedserve::kernel::reference::layer_norm(x, &self.norm.0, Some(&self.norm.1), 1e-5)
    }
}

fn normalized(x: &[f64]) -> Vec<f64> {
    let length = x.iter().map(|x| x * x).sum::<f64>().sqrt();
    x.iter().map(|x| x / length).collect()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[tokio::test]
async fn modules_compute_in_the_order_listed() {
    let mean = json!({"pooling_mode": "mean"});
    let plain = Chain::new(&mean, &[]).vector().await;
    let cases: [(&[&str], Expected); 8] = [
        (&["Dropout"], |_, x| x.to_vec()),
        (&["Normalize"], |_, x| normalized(x)),
        (&["Dense"], |chain, x| chain.through_dense(x)),
        (&["Normalize", "Dense"], |chain, x| chain.through_dense(&normalized(x))),
        (&["Normalize", "Dense", "Normalize"], |chain, x| normalized(&chain.through_dense(&normalized(x)))),
        (&["LayerNorm"], |chain, x| chain.through_norm(x)),
        (&["LayerNorm", "Dense", "Dropout", "Normalize"], |chain, x| {
            normalized(&chain.through_dense(&chain.through_norm(x)))
        }),
        (&["Normalize", "LayerNorm", "LayerNorm"], |chain, x| chain.through_norm(&chain.through_norm(&normalized(x)))),
    ];
    for (kinds, expected) in cases {
        let chain = Chain::new(&mean, kinds);
        let (found, expected) = (chain.vector().await, expected(&chain, &plain));
        let distance = distance(&found, &expected);
        assert!(distance < 2e-6, "{kinds:?}: {distance:e}");
    }
}

#[tokio::test]
async fn several_pooling_modes_are_put_end_to_end() {
    let one = async |mode: &str| Chain::new(&json!({"pooling_mode": mode}), &[]).vector().await;
    let (cls, max, mean) = (one("cls").await, one("max").await, one("mean").await);
    let (root, weighted, last) = (one("mean_sqrt_len_tokens").await, one("weightedmean").await, one("lasttoken").await);
    let listed = Chain::new(&json!({"pooling_mode": ["mean", "cls"]}), &[]).vector().await;
    assert_eq!(listed, [mean.clone(), cls.clone()].concat());
    // The older switches have an order of their own.
    let switches = json!({"pooling_mode_lasttoken": true, "pooling_mode_weightedmean_tokens": true,
        "pooling_mode_mean_sqrt_len_tokens": true, "pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true,
        "pooling_mode_cls_token": true});
    let all = Chain::new(&switches, &[]).vector().await;
    assert_eq!(all, [cls.clone(), max, mean.clone(), root, weighted, last].concat());
    let chain = Chain::new(&json!({"pooling_mode": ["mean", "cls"]}), &["Dense"]);
    let expected = chain.through_dense(&[mean, cls].concat());
    assert!(distance(&chain.vector().await, &expected) < 2e-6);
}

#[test]
fn a_chain_that_cannot_be_computed_is_refused() {
    let mean = json!({"pooling_mode": "mean"});
    for (kinds, expected) in [
        (&["LSTM"][..], "type = sentence_transformers.models.LSTM (in this place)"),
        (&["Pooling"], "type = sentence_transformers.models.Pooling (in this place)"),
        (&["Dense", "Dense"], "in_features = 32 does not fit the model: the layer before it gives 5 values"),
        (&["Dense", "LayerNorm"], "dimension = 32 does not fit the model: the layer before it gives 5 values"),
    ] {
        let error = Chain::new(&mean, kinds).error();
        assert!(error.contains(expected), "{kinds:?}: {error}");
    }
    let dense = |field: &str, value: Value| {
        let chain = Chain::new(&mean, &["Dense"]);
        let mut config = json!({"in_features": WIDTH, "out_features": 5});
        config[field] = value;
        chain.put("Dense/config.json", &config);
        chain.error()
    };
    for (field, value, expected) in [
        ("use_residual", json!(true), "use_residual = true is not implemented"),
        ("activation_function", json!("torch.nn.modules.activation.Mish"), "activation_function = torch.nn"),
        ("module_input_name", json!("token_embeddings"), "module_input_name = \"token_embeddings\""),
        ("module_output_name", json!("other"), "module_output_name = \"other\""),
    ] {
        let error = dense(field, value);
        assert!(error.contains(expected), "{field}: {error}");
    }
    let tokens = Chain::new(&mean, &["Normalize"]);
    tokens.put("Normalize/config.json", &json!({"module_input_name": "token_embeddings"}));
    assert!(tokens.error().contains("Normalize/config.json: module_input_name"), "{}", tokens.error());
    for (pooling, expected) in [
        (json!({"pooling_mode": ["mean", "attention"]}), "pooling_mode = \"attention\""),
        (json!({"pooling_mode": 3}), "pooling_mode = 3"),
    ] {
        let error = Chain::new(&pooling, &[]).error();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn what_is_not_written_means_what_sentence_transformers_takes() {
    // No mode is on: the mean.
    let none = Chain::new(&json!({"pooling_mode_mean_tokens": false}), &[]).vector().await;
    assert_eq!(none, Chain::new(&json!({"pooling_mode": "mean"}), &[]).vector().await);
    // No activation: tanh.
    let chain = Chain::new(&json!({"pooling_mode": "mean"}), &["Dense"]);
    let expected = chain.vector().await;
    chain.put("Dense/config.json", &json!({"in_features": WIDTH, "out_features": 5}));
    assert_eq!(chain.vector().await, expected);
}

// Older exports; an empty file counts as none, and the first name wins.
#[test]
fn settings_of_the_encoder_are_read_under_every_name_that_sentence_transformers_knows() {
    use embedserve::load::modules::Modules;

    let folder = TinyModel::default().write();
    let limit = || Modules::read(folder.path(), None, None).unwrap().max_tokens;
    assert_eq!(limit(), Some(64));
    write(folder.path(), "sentence_bert_config.json", b"{}");
    assert_eq!(limit(), None);
    let others = ["xlnet", "xlm-roberta", "albert", "camembert", "distilbert", "roberta"];
    for (shorter, name) in others.into_iter().enumerate() {
        let tokens = 60 - shorter;
        let text = json!({"max_seq_length": tokens, "do_lower_case": true}).to_string();
        write(folder.path(), &format!("sentence_{name}_config.json"), text.as_bytes());
        let modules = Modules::read(folder.path(), None, None).unwrap();
        assert_eq!((modules.max_tokens, modules.lower_case), (Some(tokens), true), "{name}");
    }
}

// What newer versions store about the encoder would change vectors where it says anything else.
#[test]
fn what_sentence_transformers_asks_of_the_encoder_is_honoured_or_refused() {
    use embedserve::load::modules::Modules;

    let folder = TinyModel::default().write();
    let read = |settings: &Value| {
        write(folder.path(), "sentence_bert_config.json", settings.to_string().as_bytes());
        Modules::read(folder.path(), None, None).map(|modules| modules.max_tokens).map_err(|error| error.to_string())
    };
    let text = json!({"method": "forward", "method_output_name": "last_hidden_state"});
    let usual = json!({"transformer_task": "feature-extraction", "modality_config": {"text": text},
        "module_output_name": "token_embeddings", "max_seq_length": 40, "processing_kwargs": {}});
    assert_eq!(read(&usual), Ok(Some(40)));
    write(folder.path(), "tokenizer_config.json", br#"{"max_len": 24}"#);
    assert_eq!(read(&json!({"max_seq_length": null})), Ok(Some(24)));
    for (change, expected) in [
        (json!({"tokenizer_args": {"model_max_length": 20, "padding_side": "left"}}), Some(20)),
        (json!({"processor_kwargs": {"model_max_length": null}}), Some(40)),
        (json!({"model_args": {"torch_dtype": "float16"}, "config_args": {"unpad_inputs": false}}), Some(40)),
    ] {
        assert_eq!(read(&changed(&usual, &change)), Ok(expected), "{change}");
    }
    for (change, named) in [
        (json!({"transformer_task": "fill-mask"}), "transformer_task = \"fill-mask\""),
        (json!({"module_output_name": "sentence_embedding"}), "module_output_name = "),
        (json!({"modality_config": {"text": {"method_output_name": "pooler_output"}}}), "method_output_name = "),
        (json!({"modality_config": {"image": text}}), "modality_config = "),
        (json!({"processing_kwargs": {"text": {"max_length": 8}}}), "processing_kwargs = "),
        (json!({"query_length": 32}), "query_length = 32"),
        (json!({"config_args": {"position_embedding_type": "relative_key"}}), "config_args = position_embedding_type"),
        (json!({"model_kwargs": {"model_max_length": 8}}), "model_kwargs = model_max_length"),
        (json!({"tokenizer_args": {"do_lower_case": false}}), "tokenizer_args = do_lower_case"),
    ] {
        let error = read(&changed(&usual, &change)).unwrap_err();
        assert!(error.contains(named), "{change}: {error}");
    }
}

fn changed(settings: &Value, change: &Value) -> Value {
    let mut settings = settings.clone();
    for (field, value) in change.as_object().unwrap() {
        settings[field] = value.clone();
    }
    settings
}

// What an encoder of one vector for each text is not, or where it lies elsewhere.
#[test]
fn late_interaction_and_encoders_in_folders_are_named() {
    let chain = Chain::new(&json!({"pooling_mode": "mean"}), &[]);
    let folder = chain.folder.path();
    let path = folder.join("modules.json");
    let modules = std::fs::read_to_string(&path).unwrap().replacen(r#""path":"""#, r#""path":"0_Transformer""#, 1);
    assert!(modules.contains("0_Transformer"));
    write(folder, "modules.json", modules.as_bytes());
    assert!(chain.error().contains("path = 0_Transformer (the encoder is expected at the root)"), "{}", chain.error());
    std::fs::remove_file(&path).unwrap();
    let mut config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    config["architectures"] = json!(["HF_ColBERT"]);
    write(folder, "config.json", config.to_string().as_bytes());
    assert!(chain.error().contains("HF_ColBERT (late interaction"), "{}", chain.error());
}
