//! `--dtype` of the executable: what is refused and how, and what the environment and `models` make of it.

use embedserve::kernel::Isa;

use crate::server::{embedserve, run};
use crate::support::tiny_model::TinyModel;

#[test]
fn a_format_that_cannot_be_computed_is_a_usage_error_with_the_alternatives() {
    let mut cases: Vec<(&[&str], &[&str])> = vec![
        (&["--dtype", "f16", "--device", "cpu"], &["f16", "GPUs only", "bf16", "--device cuda"]),
        (&["--dtype", "int4"], &["--dtype = int4", "f32", "bf16", "int8"]),
    ];
    if Isa::Avx2.is_supported() {
        cases.push((&["--dtype", "int8", "--kernel-isa", "avx2"], &["int8", "avx512vnni", "f32", "all-MiniLM-L6-v2"]));
        cases.push((&["--dtype", "bf16", "--kernel-isa", "avx2"], &["bf16", "avx512bf16", "f32"]));
    }
    for (arguments, mentions) in cases {
        let finished = run(&mut embedserve(arguments));
        assert_eq!(finished.code, Some(64), "{arguments:?}: {}", finished.stderr);
        for expected in mentions {
            assert!(finished.stderr.contains(expected), "{arguments:?}: {expected} in {}", finished.stderr);
        }
        assert_eq!(finished.stderr.trim_end().lines().count(), 1, "{}", finished.stderr);
    }
}

#[test]
fn the_environment_stands_between_the_flag_and_the_catalogue() {
    let home = tempfile::tempdir().unwrap();
    let catalog = home.path().join("models.toml");
    let source = "source = [{ kind = \"directory\", path = \"/no/such/model\" }]";
    std::fs::write(&catalog, format!("[[model]]\nid = \"tiny/one\"\ndtype = \"int8\"\n{source}\n")).unwrap();
    let catalog = ["--catalog", catalog.to_str().unwrap()];
    for (environment, flag, shown) in [
        (None, None, "int8"),
        (Some("bf16"), None, "bf16"),
        (None, Some("f32"), "f32"),
        (Some("bf16"), Some("f32"), "f32"),
    ] {
        let mut arguments = vec!["--print-config", "--kernel-isa", "portable", "--model", "tiny/one"];
        arguments.extend(catalog);
        arguments.extend(flag.into_iter().flat_map(|flag| ["--dtype", flag]));
        let mut command = embedserve(&arguments);
        if let Some(value) = environment {
            command.env("EMBEDSERVE_DTYPE", value);
        }
        let finished = run(&mut command);
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        let line = format!("  dtype              = {shown}\n");
        assert!(finished.stdout.contains(&line), "{environment:?} {flag:?}: {}", finished.stdout);
    }
    let listed = run(&mut embedserve(&[&["models", "list"], &catalog[..]].concat()));
    assert!(
        listed.stdout.lines().any(|line| line.starts_with("tiny/one") && line.contains(" int8 ")),
        "{}",
        listed.stdout
    );
}

#[test]
fn models_show_and_verify_compute_in_the_format_asked_for() {
    let folder = TinyModel::default().write();
    let model = format!("dir:{}", folder.path().display());
    for (dtype, bar) in [("f32", "bar 1e-5"), ("bf16", "bar cosine 0.9999")] {
        let portable = |command: &str| {
            run(embedserve(&["models", command, &model, "--dtype", dtype]).env("EMBEDSERVE_KERNEL_ISA", "portable"))
        };
        let shown = portable("show");
        assert_eq!(shown.code, Some(0), "{}{}", shown.stdout, shown.stderr);
        assert!(shown.stdout.contains(&format!("for the weights, in {dtype}")), "{}", shown.stdout);
        let verified = portable("verify");
        assert_eq!(verified.code, Some(0), "{}{}", verified.stdout, verified.stderr);
        for expected in [&format!("  {dtype}  portable  12 texts"), bar, "ok  (candle", "mean "] {
            assert!(verified.stdout.contains(expected), "{expected} in {}", verified.stdout);
        }
    }
    let refused = run(&mut embedserve(&["models", "verify", &model, "--dtype", "int3"]));
    assert_eq!(refused.code, Some(64), "{}", refused.stderr);
}

/// The whole way, whatever the verdict on weights this small and random is: it is told, kept, and found again.
#[test]
fn an_int8_model_goes_through_its_gate() {
    let (folder, home) = (TinyModel::default().write(), tempfile::tempdir().unwrap());
    let model = format!("dir:{}", folder.path().display());
    let verdict = || {
        let mut command = embedserve(&["models", "verify", &model, "--dtype", "int8"]);
        let finished = run(command.env("HOME", home.path()).env("EMBEDSERVE_KERNEL_ISA", "portable"));
        let line = finished.stderr.lines().find(|line| line.contains("int8 held against f32")).map(str::to_owned);
        line.unwrap_or_else(|| panic!("{}{}", finished.stdout, finished.stderr))
    };
    let (first, second) = (verdict(), verdict());
    assert!(first.contains("noted=false") && second.contains("noted=true"), "{first}\n{second}");
    let figures = |line: &str| line.split("texts=").nth(1).unwrap().split(" noted").next().unwrap().to_owned();
    assert_eq!(figures(&first), figures(&second));
    let notes = std::fs::read_dir(home.path().join(".cache/embedserve/notes")).unwrap();
    assert_eq!(notes.count(), 1);
}
