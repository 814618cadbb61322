//! A proxy between two ends that breaks and mends: every connection may carry so many bytes and is then cut, and all of
//! them together go down and come back on command.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::random::Random;

pub(crate) struct ChaosProxy {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    target: SocketAddr,
    /// Bytes of one connection, both ways together, are fewer than this.
    most: usize,
    random: Mutex<Random>,
    down: AtomicBool,
    closing: AtomicBool,
    cut: AtomicUsize,
    sockets: Mutex<Vec<TcpStream>>,
}

impl ChaosProxy {
    pub(crate) fn start(target: SocketAddr, most: usize, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            target,
            most,
            random: Mutex::new(Random::new(seed)),
            down: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            cut: AtomicUsize::new(0),
            sockets: Mutex::default(),
        });
        let own = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if own.closing.load(Ordering::SeqCst) {
                    return;
                }
                own.connect(client);
            }
        });
        Self { address, shared }
    }

    /// Connections that were cut before either end had closed them.
    pub(crate) fn cut(&self) -> usize {
        self.shared.cut.load(Ordering::SeqCst)
    }

    /// Cuts everything, and what comes is closed at once.
    pub(crate) fn go_down(&self) {
        self.shared.down.store(true, Ordering::SeqCst);
        self.shared.close_all();
    }

    pub(crate) fn come_back(&self) {
        self.shared.down.store(false, Ordering::SeqCst);
    }
}

impl Drop for ChaosProxy {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.shared.close_all();
        // The listener looks whether it is closing when somebody comes.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn connect(self: &Arc<Self>, client: TcpStream) {
        let Ok(server) = TcpStream::connect(self.target) else { return };
        if self.down.load(Ordering::SeqCst) {
            return;
        }
        let left = Arc::new(AtomicUsize::new(self.random.lock().unwrap().below(self.most)));
        for (from, to) in [(&client, &server), (&server, &client)] {
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let (own, left) = (Arc::clone(self), Arc::clone(&left));
            std::thread::spawn(move || own.carry(from, to, &left));
        }
        self.sockets.lock().unwrap().extend([client, server]);
    }

    /// One way, until an end closes or the connection has carried what it may.
    fn carry(&self, mut from: TcpStream, mut to: TcpStream, left: &AtomicUsize) {
        let mut chunk = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut chunk) {
            let before = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some(left.saturating_sub(n)));
            let allowed = n.min(before.unwrap());
            if to.write_all(&chunk[..allowed]).is_err() {
                break;
            }
            if allowed < n {
                self.cut.fetch_add(1, Ordering::SeqCst);
                let _ = from.shutdown(Shutdown::Both);
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }

    fn close_all(&self) {
        for socket in self.sockets.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}
