//! A client of one server: HTTP/1.1 on kept-alive connections, driven by whoever waits for the answer.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use thiserror::Error;
use tokio::net::TcpStream;

use crate::config::{self, ConfigError};

/// Where the server is, and who asks.
#[derive(Debug, Clone)]
pub(super) struct Target {
    address: SocketAddr,
    host: HeaderValue,
    /// What goes before `/v1/...`; usually empty.
    prefix: String,
    authorization: Option<HeaderValue>,
}

/// An answer, whatever it says.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Bytes,
}

/// Why a request got no answer.
#[derive(Debug, Error)]
pub(super) enum ClientError {
    #[error("cannot connect to {address}: {reason}")]
    Connect { address: SocketAddr, reason: std::io::Error },
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    #[error("{path} was answered with {status}: {body}")]
    Refused { path: String, status: u16, body: String },
    #[error("{path} was answered with something else than JSON: {reason}")]
    NotJson { path: String, reason: serde_json::Error },
}

pub(super) const EMBEDDINGS: &str = "/v1/embeddings";

// === impl Target ===

impl Target {
    /// The server at an address of this machine.
    pub(super) fn local(address: SocketAddr) -> Self {
        let host = HeaderValue::from_static("localhost");
        Self { address, host, prefix: String::new(), authorization: None }
    }

    /// The server at a URL, with or without `/v1` at its end.
    ///
    /// # Errors
    /// Not an `http` URL, a host that does not resolve, or a key that cannot be sent.
    pub(super) fn parse(url: &str, key: Option<&str>) -> Result<Self, ConfigError> {
        let invalid =
            |reason: &str| ConfigError::Invalid { flag: "--url", value: url.to_owned(), reason: reason.to_owned() };
        let uri: Uri = url.parse().map_err(|_| invalid("expected http://HOST:PORT"))?;
        let authority = uri.authority().ok_or_else(|| invalid("expected http://HOST:PORT"))?;
        if uri.scheme_str() != Some("http") {
            return Err(invalid("expected http://HOST:PORT; of TLS, measure what is behind it"));
        }
        let name = authority.host().trim_start_matches('[').trim_end_matches(']');
        let addresses = config::addresses(name, authority.port_u16().unwrap_or(80));
        let addresses = addresses.map_err(|_| invalid("the host does not resolve to an address"))?;
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| invalid("expected http://HOST:PORT"))?;
        let path = uri.path().trim_end_matches('/');
        let authorization = key.map(|key| HeaderValue::from_str(&format!("Bearer {key}"))).transpose();
        let mut authorization = authorization.map_err(|_| ConfigError::Invalid {
            flag: "--api-key",
            value: "***".to_owned(),
            reason: "it holds characters that no header may have".to_owned(),
        })?;
        if let Some(value) = &mut authorization {
            value.set_sensitive(true);
        }
        Ok(Self {
            address: *addresses.first().ok_or_else(|| invalid("the host does not resolve to an address"))?,
            host,
            prefix: path.strip_suffix("/v1").unwrap_or(path).to_owned(),
            authorization,
        })
    }

    pub(super) const fn is_this_machine(&self) -> bool {
        config::is_loopback(self.address.ip())
    }

    fn request(&self, path: &str, body: Option<Bytes>) -> Request<Full<Bytes>> {
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let mut request = Request::new(Full::new(body.unwrap_or_default()));
        *request.method_mut() = method;
        // A prefix that was parsed and a constant path make a URI; anything else would be answered with 404.
        *request.uri_mut() = format!("{}{path}", self.prefix).parse().unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(value) = &self.authorization {
            headers.insert(AUTHORIZATION, value.clone());
        }
        request
    }
}

// === impl Connection ===

/// One connection, opened at the first request and again when the server has closed it.
#[derive(Debug)]
pub(super) struct Connection<'t> {
    target: &'t Target,
    link: Option<Link>,
}

type Driver = http1::Connection<TokioIo<TcpStream>, Full<Bytes>>;

#[derive(Debug)]
struct Link {
    sender: http1::SendRequest<Full<Bytes>>,
    driver: Pin<Box<Driver>>,
}

impl<'t> Connection<'t> {
    pub(super) const fn new(target: &'t Target) -> Self {
        Self { target, link: None }
    }

    /// Sends a request (`POST` with a body, `GET` without) and reads the whole answer. A connection that fails, or whose
    /// answer is not waited for, is not used again.
    pub(super) async fn exchange(&mut self, path: &str, body: Option<Bytes>) -> Result<Answer, ClientError> {
        let kept = match self.link.take() {
            Some(link) => link.ready().await.ok().flatten(),
            None => None,
        };
        let Link { mut sender, mut driver } = match kept {
            Some(link) => link,
            None => self.connect().await?,
        };
        let request = self.target.request(path, body);
        let (answer, open) = {
            let mut answer = Box::pin(async {
                let response = sender.send_request(request).await?;
                let status = response.status().as_u16();
                let body = response.into_body().collect().await?.to_bytes();
                Ok(Answer { status, body })
            });
            tokio::select! {
                biased;
                answer = &mut answer => (answer, true),
                // The server has closed: what it said before is still there to be read.
                _ = &mut driver => (answer.await, false),
            }
        };
        if open && answer.is_ok() {
            self.link = Some(Link { sender, driver });
        }
        answer.map_err(ClientError::Broken)
    }

    /// As [`Self::exchange`], where only a 200 with JSON will do.
    pub(super) async fn json(&mut self, path: &str, body: Option<Bytes>) -> Result<Value, ClientError> {
        let body = self.expect(path, body).await?;
        serde_json::from_slice(&body).map_err(|reason| ClientError::NotJson { path: path.to_owned(), reason })
    }

    /// As [`Self::exchange`], where only a 200 will do.
    pub(super) async fn expect(&mut self, path: &str, body: Option<Bytes>) -> Result<Bytes, ClientError> {
        /// As much of a refusal as a person reads.
        const SHOWN_BYTES: usize = 500;
        let answer = self.exchange(path, body).await?;
        if answer.status == 200 {
            return Ok(answer.body);
        }
        let shown = answer.body.get(..SHOWN_BYTES).unwrap_or(&answer.body);
        let body = String::from_utf8_lossy(shown).escape_debug().collect();
        Err(ClientError::Refused { path: path.to_owned(), status: answer.status, body })
    }

    async fn connect(&self) -> Result<Link, ClientError> {
        let address = self.target.address;
        let refused = |reason| ClientError::Connect { address, reason };
        let stream = TcpStream::connect(address).await.map_err(refused)?;
        stream.set_nodelay(true).map_err(refused)?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
        Ok(Link { sender, driver: Box::pin(driver) })
    }
}

impl Link {
    /// Waits until it takes another request; `None` when the server has closed it meanwhile.
    async fn ready(mut self) -> Result<Option<Self>, hyper::Error> {
        let open = std::future::poll_fn(|context| {
            let ended = self.driver.as_mut().poll(context).is_ready();
            match self.sender.poll_ready(context) {
                Poll::Ready(result) => Poll::Ready(result.map(|()| !ended)),
                Poll::Pending if ended => Poll::Ready(Ok(false)),
                Poll::Pending => Poll::Pending,
            }
        });
        Ok(open.await?.then_some(self))
    }
}
