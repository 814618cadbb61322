//! Precedence of flags over environment, the settings that must refuse to start, and Hugging Face's variables.

use clap::Parser;

use super::*;
use crate::cli::Cli;

fn resolve(args: &[&str], environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let cli = Cli::try_parse_from(std::iter::once("embedserve").chain(args.iter().copied())).unwrap();
    let home = ("HOME", "/home/somebody");
    let environment = std::iter::once(&home).chain(environment).map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Config::resolve(&cli.serve, &Environment::new(environment))
}

#[test]
fn the_defaults_serve_one_model_on_loopback() {
    let config = resolve(&[], &[]).unwrap();
    assert_eq!((config.http.host.as_str(), config.http.port), ("127.0.0.1", 8080));
    assert_eq!(config.names.models().len(), 1);
    assert_eq!(config.names.models()[0].id, DEFAULT_MODEL);
    assert_eq!(config.names.find(Some("ALL-minilm-l6-v2")), Some(0));
    assert_eq!(config.source.hub_cache, PathBuf::from("/home/somebody/.cache/huggingface/hub"));
}

// L-07
#[test]
fn a_flag_wins_over_port_and_port_over_the_default() {
    assert_eq!(resolve(&[], &[("PORT", "9000")]).unwrap().http.port, 9000);
    assert_eq!(resolve(&["--port", "7000"], &[("PORT", "9000")]).unwrap().http.port, 7000);
    assert!(matches!(resolve(&[], &[("PORT", "http")]), Err(ConfigError::Invalid { flag: "PORT", .. })));
}

//
#[test]
fn an_open_address_needs_keys_or_consent() {
    assert!(matches!(resolve(&["--host", "0.0.0.0"], &[]), Err(ConfigError::Exposed { .. })));
    assert!(resolve(&["--host", "0.0.0.0", "--insecure"], &[]).is_ok());
    assert!(resolve(&["--host", "0.0.0.0", "--api-key", "k"], &[]).is_ok());
    assert!(matches!(resolve(&["--host", "no such host"], &[]), Err(ConfigError::Invalid { flag: "--host", .. })));
}

// O-01
#[test]
fn keys_have_names_and_never_show() {
    let config = resolve(&["--api-key", "first-secret", "--api-key", "c2Vjb25k=="], &[]).unwrap();
    let proof = |key: &str| KeyProof::Key(Secret::new(key.to_owned()));
    let keys: Vec<(&str, &KeyProof)> = config.http.api_keys.iter().map(|key| (key.name.as_str(), &key.proof)).collect();
    assert_eq!(keys, [("key-1", &proof("first-secret")), ("key-2", &proof("c2Vjb25k=="))]);
    let config = resolve(&["--api-key", "first-secret", "--hf-token", "hub-secret"], &[]).unwrap();
    let shown = config.describe();
    assert!(shown.contains("***") && !shown.contains("first-secret") && !shown.contains("hub-secret"), "{shown}");
}

// L-07
#[test]
fn hugging_face_variables_are_honoured() {
    let cache = |environment: &[(&str, &str)]| resolve(&[], environment).unwrap().source.hub_cache;
    assert_eq!(cache(&[("HF_HOME", "/hf")]), PathBuf::from("/hf/hub"));
    assert_eq!(cache(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/hub")]), PathBuf::from("/hub"));
    assert_eq!(cache(&[("HUGGINGFACE_HUB_CACHE", "/old")]), PathBuf::from("/old"));
    for name in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
        assert!(resolve(&[], &[(name, "1")]).unwrap().source.offline);
        assert!(!resolve(&[], &[(name, "0")]).unwrap().source.offline);
    }
    let source = resolve(&[], &[("HF_ENDPOINT", "http://mirror/"), ("HF_TOKEN", "t")]).unwrap().source;
    assert_eq!(source.endpoint, "http://mirror");
    assert_eq!(source.token.unwrap().expose(), "t");
    assert!(resolve(&[], &[("HF_ENDPOINT", "mirror")]).is_err());
    assert!(resolve(&[], &[("HF_TOKEN", " \n")]).unwrap().source.token.is_none());
    let shown = resolve(&[], &[("HF_TOKEN", "two\nlines")]).unwrap_err().to_string();
    assert!(shown.contains("--hf-token") && !shown.contains("two"), "{shown}");
}

#[test]
fn what_this_build_cannot_do_is_refused_at_start() {
    for (flag, value) in [
        ("--device", "cuda:4095"),
        ("--dtype", "int4"),
        ("--max-inputs", "0"),
        ("--model", "bge-huge"),
        ("--threads", "0"),
        ("--threads", "100000"),
        ("--request-timeout", "0s"),
        ("--header-timeout", "0s"),
        ("--body-timeout", "0s"),
        ("--write-timeout", "0s"),
        ("--answer-timeout", "0s"),
        ("--idle-unload", "0s"),
        ("--idle-timeout", "0s"),
        ("--queue-timeout", "0s"),
        ("--download-timeout", "0s"),
        ("--download-stall-timeout", "0s"),
    ] {
        assert!(resolve(&[flag, value], &[]).is_err(), "{flag} {value}");
    }
    let several = ["-m", "BAAI/bge-small-en-v1.5", "-m", "BAAI/bge-base-en-v1.5", "--revision", "main"];
    assert!(matches!(resolve(&several, &[]), Err(ConfigError::Invalid { flag: "--revision", .. })));
}

#[test]
fn the_operators_default_prompt_is_a_name_or_a_text() {
    let prompt = |args: &[&str]| resolve(args, &[]).unwrap().requests.default_prompt;
    assert_eq!(prompt(&[]), None);
    assert_eq!(prompt(&["--default-prompt-name", "query"]), Some(DefaultPrompt::Name("query".to_owned())));
    assert_eq!(prompt(&["--default-prompt", "query: "]), Some(DefaultPrompt::Text("query: ".to_owned())));
    assert!(Cli::try_parse_from(["embedserve", "--default-prompt", "a", "--default-prompt-name", "b"]).is_err());
    assert!(!resolve(&[], &[]).unwrap().requests.allow_dimensions);
    assert!(resolve(&["--allow-dimensions"], &[]).unwrap().requests.allow_dimensions);
}

#[test]
fn aliases_and_the_default_model_refer_to_served_models() {
    let models = ["-m", "BAAI/bge-small-en-v1.5", "-m", "BAAI/bge-base-en-v1.5"];
    let with = |more: &[&str]| resolve(&[&models[..], more].concat(), &[]);
    let config = with(&["-a", "small", "-a", "base=BAAI/bge-base-en-v1.5", "--default-model", "bge-base-en-v1.5"]);
    let names = config.unwrap().names;
    assert_eq!((names.find(Some("small")), names.find(Some("base"))), (Some(0), Some(1)));
    assert_eq!(names.find(None), None);
    assert!(with(&["-a", "x=nobody"]).is_err());
    assert!(with(&["--default-model", "nobody"]).is_err());
    let any = with(&["--accept-any-model", "--default-model", "BAAI/bge-base-en-v1.5"]).unwrap().names;
    assert_eq!((any.find(None), any.find(Some("text-embedding-3-small"))), (Some(1), Some(1)));
}

// L-07: Kubernetes names every service to every pod, one that is called like us in a variable called like ours.
#[test]
fn an_address_from_kubernetes_is_no_port_of_ours() {
    let environment = |value: &str| Environment::new([("EMBEDSERVE_PORT".to_owned(), value.to_owned())]);
    for link in ["tcp://10.96.0.5:8080", "udp://10.96.0.5:8080"] {
        assert!(environment(link).is_blank("EMBEDSERVE_PORT"), "{link}");
        assert_eq!(health_port(&environment(link)).unwrap(), 8080);
    }
    assert!(!environment("9000").is_blank("EMBEDSERVE_PORT"));
    assert_eq!(health_port(&environment("9000")).unwrap(), 9000);
    assert!(health_port(&environment("http")).is_err());
}

// L-07
#[test]
fn health_asks_where_the_server_beside_it_listens() {
    for (host, asked) in
        [("", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("[::]", "::1"), ("10.1.2.3", "10.1.2.3")]
    {
        let environment = Environment::new([("EMBEDSERVE_HOST".to_owned(), host.to_owned())]);
        assert_eq!(health_host(&environment), asked, "{host}");
    }
}

// O-01
#[test]
fn addresses_with_passwords_are_refused_or_masked() {
    let refused = resolve(&[], &[("HF_ENDPOINT", "https://user:secret@hub.example")]).map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("HF_ENDPOINT") && !refused.to_string().contains("secret"), "{refused}");
    let pip = "python3 -m pip --index-url https://user:secret@index.example/simple";
    let shown = resolve(&["--pip", pip], &[]).unwrap().describe();
    assert!(shown.contains("--index-url") && !shown.contains("secret"), "{shown}");
}

// L-07: whoever names a file means it.
#[test]
fn a_file_of_a_token_that_cannot_be_read_is_an_error() {
    let refused = resolve(&[], &[("HF_TOKEN_PATH", "/no/such/token")]).map(|_| ()).unwrap_err().to_string();
    assert!(refused.starts_with("HF_TOKEN_PATH = /no/such/token: cannot read the token"), "{refused}");
    assert!(resolve(&["--hf-token", "hf_x"], &[("HF_TOKEN_PATH", "/no/such/token")]).is_ok());
    assert!(resolve(&[], &[("HF_HOME", "/no/such/home")]).unwrap().source.token.is_none());
}
