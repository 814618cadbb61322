//! Keys, tokens and inputs never appear in anything the process writes, at any log level.

use crate::server::{Server, embedserve};
use crate::support::tiny_model::TinyModel;

const KEY: &str = "sk-the-secret-key-of-this-test";
const TOKEN: &str = "hf_the-secret-token-of-this-test";
const PASSWORD: &str = "the-password-of-the-proxy";
const INPUT: &str = "zzcanaryinputzz";

// O-01, O-02
#[test]
fn secrets_and_inputs_are_never_written() {
    let folder = TinyModel::default().write();
    let key_file = folder.path().join("keys");
    std::fs::write(&key_file, format!("# comment\nfile-{KEY}\n")).unwrap();
    let keys_file = folder.path().join("keys.toml");
    std::fs::write(&keys_file, format!("[[key]]\nname = \"named\"\nkey = \"toml-{KEY}\"\n")).unwrap();
    for format in ["text", "json"] {
        let choice = format!("dir:{}", folder.path().display());
        let mut command = embedserve(&["--model", &choice, "--served-model-name", "tiny"]);
        command.env("HTTPS_PROXY", format!("http://user:{PASSWORD}@127.0.0.1:9"));
        command.env("PIP_INDEX_URL", format!("https://user:{PASSWORD}@index.example/simple"));
        command.args([
            "--log-level",
            "trace",
            "--log-format",
            format,
            "--api-key",
            KEY,
            "--api-key-file",
            key_file.to_str().unwrap(),
            "--keys-file",
            keys_file.to_str().unwrap(),
            "--hf-token",
            TOKEN,
        ]);
        let server = Server::spawn(command);
        server.wait_until_ready();
        let key = format!("authorization: Bearer {KEY}\r\n");
        let request = |input: &str| format!(r#"{{"model":"tiny","input":{input},"user":"{INPUT}"}}"#);
        let good = request(&format!("\"{INPUT}\""));
        let mut bodies = String::new();
        let mut ask = |body: &str, headers: &str, status: u16| {
            let (found, body) = server.embed_with(body, headers);
            assert_eq!(found, status, "{body}");
            bodies.push_str(&body);
        };
        ask(&good, &key, 200);
        ask(&good, &format!("api-key: file-{KEY}\r\n"), 200);
        ask(&good, &format!("x-api-key: toml-{KEY}\r\n"), 200);
        ask(&good, "", 401);
        ask(&good, &format!("authorization: Bearer {KEY}x\r\n"), 401);
        ask(&format!("{good} trailing"), &key, 400);
        ask(&request(&format!("[\"{INPUT}\", 5]")), &key, 400);
        ask(&request(&format!("\"{}\"", format!("{INPUT} ").repeat(200))), &key, 400);
        let metrics = crate::server::exchange(
            server.address,
            &format!("GET /metrics HTTP/1.1\r\nhost: localhost\r\n{key}connection: close\r\n\r\n"),
        );
        assert_eq!(metrics.0, 200);
        let written = server.log() + &bodies + &metrics.1;
        assert!(written.contains("401"), "the log was read: {written}");
        for secret in [KEY, TOKEN, INPUT, PASSWORD] {
            let place = written.find(secret).map(|at| &written[at.saturating_sub(200)..at]);
            assert_eq!(place, None, "{secret} was written in {format} logs");
        }
    }
}
