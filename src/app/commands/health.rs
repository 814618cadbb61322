//! `health`: asks a running server whether it is ready.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use crate::cli::HealthArgs;
use crate::config::{self, Environment};

/// A health check that takes longer than this has failed.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks `/readyz`: exit 0 when the answer is 200, 1 otherwise.
pub(in crate::app) fn health(args: &HealthArgs, environment: &Environment) -> anyhow::Result<ExitCode> {
    let port = args.port.map_or_else(|| config::health_port(environment), Ok)?;
    let host = args.host.as_deref().unwrap_or_else(|| config::health_host(environment));
    let address = config::addresses(host, port)?;
    let address = address.first().context("no address")?;
    let mut stream = TcpStream::connect_timeout(address, HEALTH_TIMEOUT)
        .with_context(|| format!("no server answers on {address}"))?;
    stream.set_read_timeout(Some(HEALTH_TIMEOUT))?;
    stream.set_write_timeout(Some(HEALTH_TIMEOUT))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    // The status line is enough; the rest is read so that the server's write does not fail.
    stream.take(64 * 1024).read_to_end(&mut answer)?;
    let ready = answer.starts_with(b"HTTP/1.1 200");
    let body = String::from_utf8_lossy(&answer);
    let body = body.split("\r\n\r\n").nth(1).unwrap_or_default().trim();
    writeln!(std::io::stdout(), "{body}")?;
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
