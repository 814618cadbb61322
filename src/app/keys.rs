//! SIGHUP: the files of keys are read again. A file that cannot be used changes nothing and is logged once; requests
//! that have passed the check go on under the key that they came with.

use std::convert::Infallible;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::Running;
use crate::config::ConfigError;
use crate::http;

/// The signal, where there is something to read again; elsewhere it ends the process, as it does by default.
#[derive(Debug)]
pub(super) struct Hangups(Option<Signal>);

impl Hangups {
    /// From now on a SIGHUP waits to be served.
    pub(super) fn new(running: &Running) -> std::io::Result<Self> {
        running.config.keys.has_files().then(|| signal(SignalKind::hangup())).transpose().map(Self)
    }

    /// Reads the keys again at each signal.
    pub(super) async fn serve(mut self, running: &Running) -> Infallible {
        let Some(signal) = &mut self.0 else { return std::future::pending().await };
        while signal.recv().await.is_some() {
            match running.reload_keys() {
                Ok(keys) => tracing::info!(keys, "keys were read again"),
                Err(error) => {
                    // One problem per line for people at a terminal, one line for the log.
                    let error = error.to_string().replace('\n', "; ");
                    tracing::error!(error, "keys could not be read again; those from before stay");
                }
            }
        }
        // The runtime is ending.
        std::future::pending().await
    }
}

impl Running {
    /// Reads the keys again from where they came from; returns how many there are now.
    ///
    /// # Errors
    /// A file that cannot be used; nothing has changed.
    pub fn reload_keys(&self) -> Result<usize, ConfigError> {
        let keys = self.config.keys.read(&self.config.names);
        self.engine.metrics.keys_reloaded(keys.is_ok());
        let keys = keys?;
        http::replace_keys(&self.keys, &keys, &self.engine.metrics);
        Ok(keys.len())
    }
}
