//! A server that is already running, ours or another's: which model it serves, and texts of a known number of tokens.
//!
//! Its tokenizer is not at hand, so it is asked: common words of which it counts one token each.

use anyhow::Context;
use hyper::body::Bytes;
use serde_json::{Value, json};

use crate::app::commands::bench::Subject;
use crate::app::commands::bench::client::{ClientError, Connection, EMBEDDINGS, Target};
use crate::app::commands::bench::meter::Meter;
use crate::app::commands::bench::texts::Texts;

/// Assumed where a server does not say what its model takes: every encoder in use has at least this many.
const USUAL_LIMIT: usize = 512;

/// Whole words in nearly every vocabulary of English.
const COMMON_WORDS: &str = "the and for that with this from have not are was but they you his her all one would there \
    their what out about who get which when make can like time just him know take people into year your good some \
    could them see other than then now look only come its over think also back after use two how our work first well \
    way even new want because any these give day most us man find here thing many tell very still life world house \
    water long little great small large part place case week company system program question number night point home \
    hand school state family student group country problem fact right left high different important local early young \
    city story law power money book word business side kind head line end member car name team best hello quick brown \
    fox dog lazy";

/// What the server serves under the name that was asked for, or first.
///
/// # Errors
/// It does not answer as an OpenAI-compatible server does.
pub(super) async fn find(target: Target, wanted: Option<String>) -> anyhow::Result<Subject> {
    let mut connection = Connection::new(&target);
    let models = connection.json("/v1/models", None).await.context("cannot list the server's models")?;
    let models = models["data"].as_array().cloned().unwrap_or_default();
    let name = |model: &Value| model["id"].as_str().map(str::to_owned);
    let model = match wanted {
        Some(wanted) => wanted,
        None => models.first().and_then(name).context("the server lists no model: name one with --model")?,
    };
    let listed = models.iter().find(|listed| name(listed).as_ref() == Some(&model));
    let limit =
        listed.and_then(|listed| listed["max_model_len"].as_u64()).and_then(|limit| usize::try_from(limit).ok());
    let mut counter = Counter { connection, model };
    let (words, frame) = counter.words().await?;
    let model = counter.model;
    let texts = Texts { model, words, frame, limit: limit.unwrap_or(USUAL_LIMIT), work: None, own_server: false };
    Ok(Subject { target, texts, meter: Meter::Metrics })
}

/// Asks the server how many tokens texts have.
struct Counter<'t> {
    connection: Connection<'t>,
    model: String,
}

impl Counter<'_> {
    /// Words of one token each, and the tokens of every text beside them.
    async fn words(&mut self) -> anyhow::Result<(Vec<String>, usize)> {
        let two = self.tokens(&["the the"]).await?;
        let three = self.tokens(&["the the the"]).await?;
        let frame = (3 * two).checked_sub(2 * three).context("the server's token counts make no sense")?;
        let mut whole = Vec::new();
        let mut left: Vec<Vec<&str>> = vec![COMMON_WORDS.split_whitespace().collect()];
        // A group without a longer word is accepted as a whole, any other is halved.
        while let Some(group) = left.pop() {
            let doubled: Vec<String> = group.iter().map(|word| format!("{word} {word}")).collect();
            let texts: Vec<&str> = doubled.iter().map(String::as_str).collect();
            if self.tokens(&texts).await? == group.len() * (2 + frame) {
                whole.extend(group.into_iter().map(str::to_owned));
            } else if group.len() > 1 {
                let (first, second) = group.split_at(group.len() / 2);
                left.extend([first.to_vec(), second.to_vec()]);
            }
        }
        anyhow::ensure!(!whole.is_empty(), "the server counts no common word as one token");
        Ok((whole, frame))
    }

    async fn tokens(&mut self, texts: &[&str]) -> anyhow::Result<usize> {
        let body = Bytes::from(json!({ "model": self.model, "input": texts }).to_string());
        let answer: Result<Value, ClientError> = self.connection.json(EMBEDDINGS, Some(body)).await;
        let tokens = answer?["usage"]["prompt_tokens"].as_u64();
        let tokens = tokens.context("the server's answer does not say how many tokens it read")?;
        Ok(usize::try_from(tokens)?)
    }
}
