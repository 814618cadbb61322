//! Number formats from the command line and the catalogue to what is computed and told.

use std::path::Path;

use clap::Parser;
use embedserve::arch;
use embedserve::catalog::{CatalogError, ModelSpec, schema};
use embedserve::cli::Cli;
use embedserve::config::{Config, ConfigError, Environment};
use embedserve::kernel::{Compute, Isa, Precision, Target};
use embedserve::load::describe::describe;
use embedserve::load::{LoadError, memory};
use embedserve::threads::Threads;

use crate::support::golden;
use crate::support::log::Log;
use crate::support::running::Process;
use crate::support::served::{requests, shared_with, spec, try_load_as};
use crate::support::tiny_model::TinyModel;

const SOURCE: &str = "source = [{ kind = \"directory\", path = \"/models/x\" }]";

/// What a command line makes of a catalogue with the models `plain`, `half` (bf16) and `small` (int8).
fn resolved(arguments: &[&str]) -> Result<Vec<Precision>, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("models.toml");
    let model = |id: &str, more: &str| format!("[[model]]\nid = \"{id}\"\n{more}\n{SOURCE}\n");
    let text = model("plain", "") + &model("half", "dtype = \"bfloat16\"") + &model("small", "dtype = \"int8\"");
    std::fs::write(&path, text).unwrap();
    let fixed = ["embedserve", "--catalog", path.to_str().unwrap(), "-m", "plain", "-m", "half", "-m", "small"];
    let cli = Cli::try_parse_from(fixed.iter().chain(arguments)).unwrap();
    let environment = Environment::new([("HOME".to_owned(), "/nonexistent-home".to_owned())]);
    let config = Config::resolve(&cli.serve, &environment)?;
    Ok(config.names.models().iter().map(|model| model.precision()).collect())
}

#[test]
fn the_flag_wins_over_the_catalogue_and_the_catalogue_over_f32() {
    use Precision::{Bf16, F32, Int8};
    let table: [(&[&str], [Precision; 3]); 6] = [
        (&[], [F32, Bf16, Int8]),
        (&["--dtype", "f32"], [F32; 3]),
        (&["--dtype", "float32"], [F32; 3]),
        (&["--dtype", "bf16"], [Bf16; 3]),
        (&["--dtype", "bfloat16"], [Bf16; 3]),
        (&["--dtype", "int8"], [Int8; 3]),
    ];
    for (flags, expected) in table {
        let found = resolved(&[flags, &["--kernel-isa", "portable"]].concat()).unwrap();
        assert_eq!(found, expected, "{flags:?}");
    }
}

#[test]
fn an_unknown_format_is_refused_with_the_choices() {
    for (value, wanted) in [
        ("int4", "expected f32 (or float32), f16 (or float16; on GPUs), bf16 (or bfloat16) or int8"),
        ("BF16", "bf16 (or bfloat16) or int8"),
        ("F16", "expected f32"),
        ("", "expected f32"),
    ] {
        let error = resolved(&["--dtype", value]).unwrap_err();
        assert!(matches!(error, ConfigError::Invalid { flag: "--dtype", .. }), "{error}");
        assert!(error.to_string().contains(wanted), "{error}");
        let text = format!("[[model]]\nid = \"a/b\"\ndtype = \"{value}\"\n{SOURCE}\n");
        let Err(CatalogError::Invalid { problems }) = schema::parse("x.toml", &text) else { panic!("{value}") };
        assert!(problems.len() == 1 && problems[0].line == 3 && problems[0].column == 9, "{problems:?}");
        let message = &problems[0].message;
        assert!(message.contains(wanted) && message.ends_with(value), "{message}");
    }
    let text = format!("[[model]]\nid = \"a/b\"\ndtype = 8\n{SOURCE}\n");
    assert!(schema::parse("x.toml", &text).unwrap_err().to_string().contains("expected a string"));
}

#[test]
fn float16_is_refused_on_processors_with_the_ways_out() {
    for spelling in ["f16", "float16", "fp16", "half"] {
        let error = resolved(&["--dtype", spelling, "--kernel-isa", "portable", "--device", "cpu"]).unwrap_err();
        let text = error.to_string();
        assert!(matches!(&error, ConfigError::Dtype { model, .. } if model == "plain"), "{text}");
        assert!(text.contains("GPUs only") && text.contains("bf16") && text.contains("--device cuda"), "{text}");
    }
    // Who does not come through the configuration is refused as well.
    let folder = TinyModel::default().write();
    let spec = ModelSpec { dtype: Some(Precision::F16), ..spec(folder.path()) };
    let shared = shared_with(1, Isa::Portable);
    let error = try_load_as(&spec, folder.path(), &shared).unwrap_err();
    assert!(matches!(error, LoadError::Precision(_)), "{error}");
    let config = serde_json::from_slice(&std::fs::read(folder.path().join("config.json")).unwrap()).unwrap();
    let compute = Compute { isa: Isa::Portable, precision: Precision::F16 };
    let files = [folder.path().join("model.safetensors")];
    let error = arch::load(&config, &files, &Target::Cpu, compute, Threads::new(1).unwrap().pool()).unwrap_err();
    assert!(error.to_string().contains("GPUs only"), "{error}");
}

#[test]
fn what_the_processor_cannot_compute_is_refused_before_anything_is_fetched() {
    if !Isa::Avx2.is_supported() {
        assert_eq!(resolved(&[]).unwrap()[2], Precision::Int8, "the portable kernels compute every format");
        return;
    }
    // Each model is asked for what it would compute in: `half` comes before `small`.
    for (flags, model, named) in [
        (&["--kernel-isa", "avx2"][..], "half", "avx512bf16"),
        (&["--kernel-isa", "avx2", "--dtype", "int8"], "plain", "avx512vnni"),
    ] {
        let error = resolved(flags).unwrap_err();
        let text = error.to_string();
        assert!(matches!(&error, ConfigError::Dtype { model: found, .. } if found == model), "{text}");
        assert!(text.contains(named) && text.contains("f32"), "{text}");
    }
    assert!(resolved(&["--kernel-isa", "avx2", "--dtype", "f32"]).is_ok());
    // Who does not come through the configuration is refused as well.
    let folder = TinyModel::default().write();
    let spec = ModelSpec { dtype: Some(Precision::Int8), ..spec(folder.path()) };
    let shared = shared_with(1, Isa::Avx2);
    let error = try_load_as(&spec, folder.path(), &shared).unwrap_err();
    assert!(matches!(error, LoadError::Precision(_)), "{error}");
    assert!(matches!(describe(&spec, folder.path(), &requests(), Isa::Avx2), Err(LoadError::Precision(_))));
}

#[test]
fn the_estimate_counts_linear_layers_in_their_format_and_tables_in_f32() {
    let folder = TinyModel::default().write();
    let estimate = |precision| memory::estimate(folder.path(), precision).unwrap();
    // Two layers: four products of 32 by 32, two of 32 by 64.
    let linear = 2 * (4 * 32 * 32 + 2 * 32 * 64);
    let exact = estimate(Precision::F32);
    assert_eq!(exact % 4, 0);
    assert_eq!(estimate(Precision::Bf16), exact - 2 * linear);
    // Values and output of attention are wider, and one layer's first product.
    let delicate = 2 * 2 * 32 * 32 + 32 * 64;
    let wider = Precision::Int8.where_delicate().weight_bytes() - 1;
    assert!(wider > 0);
    assert_eq!(estimate(Precision::Int8), exact - 3 * linear + delicate * wider);
    let described = |dtype| {
        let spec = ModelSpec { dtype: Some(dtype), ..spec(folder.path()) };
        describe(&spec, folder.path(), &requests(), Isa::Portable).unwrap()
    };
    for dtype in Precision::ON_CPUS {
        assert_eq!((described(dtype).precision, described(dtype).weight_bytes), (dtype, estimate(dtype)));
    }
}

// Who loads the layers and who estimates them say apart from each other which products int8 keeps wider.
#[test]
fn what_is_held_is_what_was_estimated() {
    let folder = TinyModel { hidden: 256, layers: 3, ..TinyModel::default() }.write();
    let config = serde_json::from_slice(&std::fs::read(folder.path().join("config.json")).unwrap()).unwrap();
    let (files, threads) = ([folder.path().join("model.safetensors")], Threads::new(1).unwrap());
    for precision in Precision::ON_CPUS {
        let compute = Compute { isa: Isa::Portable, precision };
        let held = arch::load(&config, &files, &Target::Cpu, compute, threads.pool()).unwrap().weight_bytes as f64;
        let estimate = memory::estimate(folder.path(), precision).unwrap() as f64;
        // Biases, scales and the ends of pages; one product held in another format would be 6 %.
        assert!((held / estimate - 1.0).abs() < 0.03, "{precision}: {held} {estimate}");
    }
}

#[test]
fn every_family_shrinks() {
    let models = std::fs::read_dir(golden::folder().join("models")).unwrap().map(|entry| entry.unwrap().path());
    let check = |folder: &Path| {
        let [exact, half, small] = Precision::ON_CPUS.map(|precision| memory::estimate(folder, precision).unwrap());
        // What bf16 saves is half of the linear layers.
        assert!(
            half < exact && small < half && (exact - half) % 2 == 0,
            "{}: {exact} {half} {small}",
            folder.display()
        );
    };
    assert!(models.map(|folder| check(&folder)).count() > 20);
}

#[tokio::test]
async fn the_format_is_told_wherever_the_model_is() {
    let folder = TinyModel::default().write();
    let name = folder.path().file_name().unwrap().to_str().unwrap().to_owned();
    for (dtype, shown) in [(None, "f32"), (Some("bfloat16"), "bf16")] {
        let flags: Vec<&str> = dtype.into_iter().flat_map(|dtype| ["--dtype", dtype]).collect();
        let flags = [&["--kernel-isa", "portable"], flags.as_slice()].concat();
        let process = Process::ready(&[folder.path()], &flags, |_| {}).await;
        let list = process.get("/v1/models").await.json();
        assert!(list["data"].as_array().unwrap().iter().all(|model| model["dtype"] == shown), "{list}");
        assert_eq!(process.get("/version").await.json()["models"][0]["dtype"], shown);
        let info = format!("dtype=\"{shown}\"");
        assert_eq!(process.count("embedserve_model_info", &info), 1);
        assert!(process.running.ready().await.is_ok());
        assert_eq!(process.embed(&name, "hello world").await.status, 200);
        process.stop().await;
    }
}

#[test]
fn loading_says_which_format_and_that_the_portable_kernels_are_slow() {
    let folder = TinyModel::default().write();
    let log = Log::capture();
    for (dtype, slow) in [(Precision::F32, false), (Precision::Bf16, true)] {
        let before = log.text().len();
        let spec = ModelSpec { dtype: Some(dtype), ..spec(folder.path()) };
        let shared = shared_with(1, Isa::Portable);
        let loaded = try_load_as(&spec, folder.path(), &shared).unwrap();
        let said = log.text()[before..].to_owned();
        assert!(said.contains(&format!("\"dtype\":\"{dtype}\"")) && said.contains("model loaded"), "{said}");
        assert_eq!(said.contains("slowly"), slow, "{said}");
        loaded.served.queue.close();
        loaded.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
