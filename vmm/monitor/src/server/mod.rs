//! The API server: HTTP on a unix socket, on its own thread; wire type in, config type out.

mod connection;
pub mod control;
pub mod draft;
pub mod error;
pub mod file;
pub mod limits;
pub mod session;
mod socket;

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{Mutex, Notify};
use tokio::task::LocalSet;

use connection::Connections;
use session::Session;
pub use socket::{ApiSocket, SocketError};

/// Stack of the API thread in bytes. JSON nests at most 128 deep (serde_json's limit); hyper keeps its state on the heap.
const STACK: usize = 512 << 10;

/// Limits that protect the server from its clients.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest body of a request in bytes.
    pub body: usize,
    /// Time for the head of a request, and again for its body.
    pub patience: std::time::Duration,
    /// Open connections, as in Firecracker.
    pub connections: usize,
}

impl Limits {
    /// The limits of a server that takes bodies of up to `body` bytes.
    pub fn with_body(body: usize) -> Self {
        Self {
            body,
            patience: std::time::Duration::from_secs(10),
            connections: 10,
        }
    }
}

/// A running server. The socket's path is removed when it is shut down or dropped.
pub struct Server {
    thread: Option<JoinHandle<()>>,
    stop: Arc<Notify>,
}

impl Server {
    /// Starts the API thread.
    ///
    /// # Errors
    /// No thread or no runtime could be made.
    pub fn start(socket: ApiSocket, session: Session, limits: Limits) -> io::Result<Self> {
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("api".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                if let Err(error) = run(socket, session, limits, &stopped) {
                    tracing::error!("the API server ended: {error}");
                }
            })?;
        Ok(Self {
            thread: Some(thread),
            stop,
        })
    }

    /// Lets answers that are under way go out, ends the thread and removes the socket.
    pub fn shut_down(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.stop.notify_one();
            if thread.join().is_err() {
                tracing::error!("the API thread panicked");
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(socket: ApiSocket, session: Session, limits: Limits, stop: &Notify) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let connections = Rc::new(RefCell::new(Connections::new(limits)));
    let session = Rc::new(Mutex::new(session));
    LocalSet::new().block_on(&runtime, async move {
        let listener = socket.listener()?;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.notified() => break,
            };
            match accepted {
                Ok((stream, _)) => connection::open(&connections, stream, &session),
                Err(error) => {
                    // Out of descriptors or memory: wait for some to be freed instead of spinning.
                    tracing::warn!("cannot accept a connection to the API socket: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        }
        // No new connections from here on, and the path is free for the next monitor.
        drop(listener);
        drop(socket);
        connection::finish(&connections).await;
        Ok(())
    })
}

#[cfg(test)]
mod tests;
