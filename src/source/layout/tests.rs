//! Plans of folders that lie in memory.

use super::*;

struct Folder(BTreeMap<&'static str, &'static str>);

impl Listing for Folder {
    fn has(&self, file: &RelPath) -> bool {
        self.0.contains_key(file.as_str())
    }

    fn read(&mut self, file: &RelPath) -> Result<Vec<u8>, Cause> {
        Ok(self.0[file.as_str()].as_bytes().to_vec())
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().map(ToString::to_string).collect()
    }
}

fn planned(files: &[(&'static str, &'static str)]) -> Result<Vec<String>, Cause> {
    let mut all = BTreeMap::from([("config.json", "{}"), ("tokenizer.json", "{}")]);
    all.extend(files.iter().copied());
    planned_alone(&all.into_iter().collect::<Vec<_>>())
}

fn planned_alone(files: &[(&'static str, &'static str)]) -> Result<Vec<String>, Cause> {
    let all = files.iter().copied().collect();
    plan(&mut Folder(all)).map(|files| files.all().map(ToString::to_string).collect())
}

#[test]
fn the_plan_names_data_only_and_weights_last() {
    let files = planned(&[
        ("model.safetensors", ""),
        ("pytorch_model.bin", ""),
        ("modeling_x.py", ""),
        ("onnx/model.onnx", ""),
        (
            "modules.json",
            r#"[{"idx":0,"name":"0","path":"","type":"s.Transformer"},
            {"idx":1,"name":"1","path":"1_Pooling","type":"s.Pooling"},
            {"idx":2,"name":"2","path":"2_Dense","type":"s.Dense"},
            {"idx":3,"name":"3","path":"3_Normalize","type":"s.Normalize"}]"#,
        ),
        ("1_Pooling/config.json", "{}"),
        ("2_Dense/config.json", "{}"),
        ("2_Dense/model.safetensors", ""),
    ]);
    let expected = [
        "config.json",
        "tokenizer.json",
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "model.safetensors",
    ];
    assert_eq!(files.unwrap(), expected);
}

// Old exports name the settings of the encoder after its architecture.
#[test]
fn settings_are_fetched_under_every_name_that_sentence_transformers_reads() {
    let names = ["bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"];
    for name in names.map(|name| format!("sentence_{name}_config.json").leak() as &'static str) {
        let files = planned(&[(name, "{}"), ("model.safetensors", "")]).unwrap();
        assert_eq!(files, ["config.json", "tokenizer.json", name, "model.safetensors"]);
    }
    assert!(
        !planned(&[("sentence_x_config.json", "{}"), ("model.safetensors", "")])
            .unwrap()
            .contains(&"sentence_x_config.json".to_owned())
    );
}

#[test]
fn several_dense_modules_and_a_layer_norm_are_fetched_whole() {
    let modules = r#"[{"path":"","type":"s.Transformer"},{"path":"1_Pooling","type":"s.Pooling"},
        {"path":"2_Dense","type":"s.Dense"},{"path":"3_Dense","type":"s.Dense"},
        {"path":"4_LayerNorm","type":"s.LayerNorm"},{"path":"5_Normalize","type":"s.Normalize"}]"#;
    let mut folder = vec![("modules.json", modules), ("1_Pooling/config.json", "{}"), ("model.safetensors", "")];
    for (config, weights) in [
        ("2_Dense/config.json", "2_Dense/model.safetensors"),
        ("3_Dense/config.json", "3_Dense/model.safetensors"),
        ("4_LayerNorm/config.json", "4_LayerNorm/model.safetensors"),
    ] {
        folder.extend([(config, "{}"), (weights, "")]);
    }
    let files = planned(&folder).unwrap();
    let weights = [
        "2_Dense/model.safetensors",
        "3_Dense/model.safetensors",
        "4_LayerNorm/model.safetensors",
        "model.safetensors",
    ];
    assert_eq!(files[files.len() - 4..], weights);
    for module in ["2_Dense", "3_Dense", "4_LayerNorm"] {
        let safetensors = format!("{module}/model.safetensors");
        let mut without: Vec<_> = folder.iter().copied().filter(|(name, _)| *name != safetensors).collect();
        match planned(&without) {
            Err(Cause::Missing { files }) => assert_eq!(files, [safetensors.as_str()]),
            other => panic!("{other:?}"),
        }
        let pickle: &'static str = format!("{module}/pytorch_model.bin").leak();
        without.push((pickle, ""));
        match planned(&without) {
            Err(Cause::Weights { found }) => assert_eq!(found, pickle),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn shards_are_those_of_the_index() {
    let index = r#"{"metadata":{},"weight_map":{"a":"model-1-of-2.safetensors","b":"model-2-of-2.safetensors"}}"#;
    let both =
        [("model.safetensors.index.json", index), ("model-1-of-2.safetensors", ""), ("model-2-of-2.safetensors", "")];
    assert_eq!(planned(&both).unwrap().len(), 5);
    match planned(&both[..2]) {
        Err(Cause::Missing { files }) => assert_eq!(files, ["model-2-of-2.safetensors"]),
        other => panic!("{other:?}"),
    }
}

// A vocabulary as a list of words is what older repositories have; beside a tokenizer.json nobody needs it.
#[test]
fn a_word_list_stands_in_for_a_tokenizer() {
    let all = [("config.json", "{}"), ("vocab.txt", ""), ("added_tokens.json", "{}"), ("model.safetensors", "")];
    let files = planned_alone(&all).unwrap();
    assert_eq!(files, ["config.json", "vocab.txt", "added_tokens.json", "model.safetensors"]);
    assert!(!planned(&all).unwrap().contains(&"vocab.txt".to_owned()));
}

#[test]
fn what_is_no_encoder_is_refused_by_what_it_is() {
    let modules = |kind: &str, path: &str| -> &'static str {
        serde_json::json!([{"path": path, "type": format!("sentence_transformers.models.{kind}")}]).to_string().leak()
    };
    let cases: [(&[(&'static str, &'static str)], &str); 8] = [
        (&[("modules.json", modules("StaticEmbedding", "0_StaticEmbedding"))], "StaticEmbedding"),
        (&[("modules.json", modules("StaticEmbedding", "."))], "StaticEmbedding"),
        (&[("modules.json", modules("CLIPModel", "0_CLIPModel"))], "CLIPModel"),
        (&[("modules.json", modules("Router", ""))], "Router"),
        (&[("modules.json", modules("Transformer", "0_Transformer"))], "path = 0_Transformer"),
        (&[("adapter_config.json", "{}"), ("adapter_model.safetensors", "")], "adapter_config.json"),
        (&[("config.json", "{}"), ("sentencepiece.bpe.model", ""), ("model.safetensors", "")], "sentencepiece"),
        (&[("config.json", "{}"), ("tokenizer.json", "{}"), ("onnx/model.onnx", "")], "onnx/model.onnx"),
    ];
    for (files, named) in cases {
        let message = planned_alone(files).unwrap_err().to_string();
        assert!(message.contains(named) && !message.contains("files are missing"), "{named}: {message}");
    }
    // The module at the root may be written so, too.
    let root = [("modules.json", modules("Transformer", ".")), ("model.safetensors", "")];
    assert!(planned(&root).is_ok());
}

// U-06
#[test]
fn paths_in_repository_files_cannot_leave_the_folder() {
    for path in ["../../x", "/etc", "C:\\x", "a/../../b", "a\\b"] {
        let modules: &'static str = serde_json::json!([{"path": path, "type": "s.Pooling"}]).to_string().leak();
        let index: &'static str =
            serde_json::json!({"weight_map": {"a": format!("{path}.safetensors")}}).to_string().leak();
        assert!(
            matches!(planned(&[("modules.json", modules), ("model.safetensors", "")]), Err(Cause::Name(_))),
            "{path}"
        );
        assert!(matches!(planned(&[("model.safetensors.index.json", index)]), Err(Cause::Name(_))), "{path}");
    }
}

// U-05
#[test]
fn weights_that_could_run_code_are_refused_in_one_sentence() {
    for name in ["pytorch_model.bin", "model.PKL", "model.gguf", "weights.pt"] {
        let name: &'static str = name;
        let message = planned(&[(name, "")]).unwrap_err().to_string();
        assert!(message.contains("safetensors") && message.contains(name) && !message.contains('\n'), "{message}");
    }
    assert!(matches!(planned(&[]), Err(Cause::Missing { .. })));
}
