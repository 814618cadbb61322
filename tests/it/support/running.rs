//! The server as the executable starts it, from flags to a drained end, in process.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use embedserve::app::{self, Running};
use embedserve::cli::Cli;
use embedserve::config::{Config, Environment};
use embedserve::engine::{Engine, Lease};
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use super::answer::Answer;
use super::device::soon;
use super::log;

/// A running server.
pub struct Process {
    pub address: SocketAddr,
    pub engine: Arc<Engine>,
    pub running: Running,
    client: reqwest::Client,
}

/// A client of it that can move into tasks.
#[derive(Clone)]
pub struct Client {
    address: SocketAddr,
    client: reqwest::Client,
}

impl Process {
    /// Serves the models in `folders`, each under its folder's name.
    pub async fn start(folders: &[&Path], flags: &[&str], change: impl FnOnce(&mut Config)) -> Self {
        log::install();
        let choices = folders.iter().map(|folder| format!("dir:{}", folder.display()));
        let choices = choices.flat_map(|choice| ["--model".to_owned(), choice]);
        Self::started(choices.chain(flags.iter().map(|flag| (*flag).to_owned())), change).await
    }

    /// Serves what a command line asks for.
    pub async fn started(arguments: impl IntoIterator<Item = String>, change: impl FnOnce(&mut Config)) -> Self {
        let arguments = std::iter::once("embedserve".to_owned()).chain(arguments);
        let home = ("HOME".to_owned(), "/nonexistent-home".to_owned());
        let mut config = Config::resolve(&Cli::parse_from(arguments).serve, &Environment::new([home])).unwrap();
        change(&mut config);
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let running = app::start(config, listener).unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { address: running.address, engine: Arc::clone(&running.engine), running, client }
    }

    /// As [`Self::start`], and every model has been loaded or left to be loaded.
    pub async fn ready(folders: &[&Path], flags: &[&str], change: impl FnOnce(&mut Config)) -> Self {
        let process = Self::start(folders, flags, change).await;
        process.running.ready().await.unwrap();
        process
    }

    pub fn client(&self) -> Client {
        Client { address: self.address, client: self.client.clone() }
    }

    pub async fn embed(&self, model: &str, text: &str) -> Answer {
        self.client().embed(model, text).await
    }

    /// A request in the background.
    pub fn ask(&self, model: &str) -> tokio::task::JoinHandle<Answer> {
        let (client, model) = (self.client(), model.to_owned());
        tokio::spawn(async move { client.embed(&model, "x").await })
    }

    pub async fn get(&self, path: &str) -> Answer {
        let request = self.client.get(format!("http://{}{path}", self.address));
        answer(request).await
    }

    /// The states of the models, in order, as `/readyz` tells them.
    pub async fn states(&self) -> Vec<String> {
        let body = self.get("/readyz").await.json();
        let models = body["models"].as_array().unwrap();
        models.iter().map(|model| model["state"].as_str().unwrap().to_owned()).collect()
    }

    pub async fn until_states(&self, expected: &[&str]) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let states = self.states().await;
            if states == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{states:?}, expected {expected:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Holds a model as a request does.
    pub async fn hold(&self, model: &str) -> Lease {
        let slot = Arc::clone(self.engine.slot(Some(model)).unwrap());
        self.engine.lease(&slot, soon()).await.unwrap()
    }

    /// The sum of the samples of a metric whose labels hold `labels`.
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        let page = self.engine.metrics.encode();
        let lines = page.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(labels))
        });
        let values: Vec<f64> = lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert!(!values.is_empty(), "no series {name} with {labels} in\n{page}");
        values.iter().sum()
    }

    /// As [`Self::metric`], for what is counted in whole numbers.
    pub fn count(&self, name: &str, labels: &str) -> u64 {
        self.metric(name, labels).to_string().parse().unwrap()
    }

    pub async fn until_metric(&self, name: &str, labels: &str, value: f64) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while (self.metric(name, labels) - value).abs() > 1e-9 {
            assert!(Instant::now() < deadline, "{name}{{{labels}}} is {}", self.metric(name, labels));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until `n` requests wait for a model to be loaded.
    pub async fn until_waiting(&self, model: &str, n: f64) {
        self.until_metric("embedserve_model_waiting_requests", &format!("model=\"{model}\""), n).await;
    }

    /// Drains and ends it; nothing is cut off.
    pub async fn stop(self) {
        assert_eq!(self.running.stop(Duration::ZERO).await, 0, "connections were cut off");
    }
}

impl Client {
    pub async fn embed(&self, model: &str, text: &str) -> Answer {
        let body = json!({"model": model, "input": [text], "truncate": true});
        self.post(body).await
    }

    async fn post(&self, body: Value) -> Answer {
        let request = self.client.post(format!("http://{}/v1/embeddings", self.address)).body(body.to_string());
        answer(request).await
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers): (u16, HeaderMap) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, text: response.text().await.unwrap() }
}
