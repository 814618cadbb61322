//! The events of one thread, as JSON. A test's runtime has one thread, so its server logs there too; what tokenisers
//! and device threads say is not captured.
//!
//! One subscriber serves the whole process, installed before any server starts: events that were first met without a
//! subscriber might stay switched off. Where `EMBEDSERVE_TEST_LOGS` names a folder, the events of every thread are kept
//! there as well, for `.ci/scan-logs`.

use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, Once};
use std::time::{Duration, Instant};

use serde_json::Value;
use tracing::Level;

type Buffer = Arc<Mutex<Vec<u8>>>;

thread_local! {
    static CAPTURED: RefCell<Option<Buffer>> = const { RefCell::new(None) };
}

/// What this thread logs from now on, until dropped.
pub struct Log(Buffer);

/// Appends to what the thread captures, if it does, and to what is kept of all of them.
struct ThreadWriter;

/// What is kept of all threads.
static KEPT: LazyLock<Option<File>> = LazyLock::new(|| {
    let folder = PathBuf::from(std::env::var_os("EMBEDSERVE_TEST_LOGS")?);
    Some(File::create(folder.join(format!("it-{}.log", std::process::id()))).unwrap())
});

/// Installs the subscriber.
pub fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_max_level(Level::TRACE)
            .with_writer(|| ThreadWriter);
        tracing::subscriber::set_global_default(subscriber.finish()).unwrap();
    });
}

impl Write for ThreadWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Some(mut kept) = KEPT.as_ref() {
            kept.write_all(bytes)?;
        }
        CAPTURED.with_borrow(|buffer| {
            if let Some(buffer) = buffer {
                buffer.lock().unwrap().extend_from_slice(bytes);
            }
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    pub fn capture() -> Self {
        install();
        let buffer = Buffer::default();
        CAPTURED.set(Some(Arc::clone(&buffer)));
        Self(buffer)
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// Waits for the access lines of `n` requests; they are written when an answer ends, not when it is read.
    pub async fn until_requests(&self, n: usize) -> Vec<Value> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let requests = self.requests();
            if requests.len() >= n {
                assert_eq!(requests.len(), n, "{requests:#?}");
                return requests;
            }
            assert!(Instant::now() < deadline, "{requests:#?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn requests(&self) -> Vec<Value> {
        let text = self.text();
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.filter(|event| event["message"] == "request" && event["status"].is_u64()).collect()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        CAPTURED.set(None);
    }
}
