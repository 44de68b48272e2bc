//! Connections of clients: few, and none can keep others out.
//!
//! When all are taken and another client comes, the connection that has been quiet longest makes room for it, unless
//! its request is being served. Half-open and slow clients thus cost a slot only as long as nobody else wants it.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use fief_api::{Endpoint, Fault};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, SERVER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, Notify};

use super::Limits;
use super::error::RequestError;
use super::session::{Answer, Session};

/// Buffer of a connection in bytes, which also bounds the head of a request; hyper's smallest.
const BUFFER: usize = 8192;

/// How long answers may take to go out once the monitor is to end.
const FAREWELL: Duration = Duration::from_millis(250);

/// An open connection.
struct Slot {
    number: u64,
    /// Number of the last thing that happened on any connection when something last happened on this one.
    last_active: Cell<u64>,
    /// A request is being served.
    busy: Cell<bool>,
    /// Wakes the connection to end at once.
    evict: Notify,
    /// Wakes the connection to end after the answer that is under way.
    finish: Notify,
}

/// The open connections.
pub struct Connections {
    limits: Limits,
    open: Vec<Rc<Slot>>,
    /// Counts what happens on all connections: an order of time without a clock.
    ticks: u64,
    /// Wakes whoever waits for the last connection to end.
    empty: Rc<Notify>,
}

impl Connections {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            open: Vec::new(),
            ticks: 0,
            empty: Rc::new(Notify::new()),
        }
    }

    fn tick(&mut self) -> u64 {
        self.ticks = self.ticks.wrapping_add(1);
        self.ticks
    }

    /// A slot for a new connection, at the cost of the quietest one if need be; none if all are busy.
    fn take_slot(&mut self) -> Option<Rc<Slot>> {
        if self.open.len() >= self.limits.connections {
            let idle = self.open.iter().filter(|slot| !slot.busy.get());
            let quietest = Rc::clone(idle.min_by_key(|slot| slot.last_active.get())?);
            quietest.evict.notify_one();
            self.release(quietest.number);
        }
        let number = self.tick();
        let slot = Rc::new(Slot {
            number,
            last_active: Cell::new(number),
            busy: Cell::new(false),
            evict: Notify::new(),
            finish: Notify::new(),
        });
        self.open.push(Rc::clone(&slot));
        Some(slot)
    }

    fn release(&mut self, number: u64) {
        self.open.retain(|slot| slot.number != number);
        if self.open.is_empty() {
            self.empty.notify_waiters();
        }
    }
}

type Shared = Rc<RefCell<Connections>>;

/// Serves `stream` in a task of its own, or tells the client that there are too many.
pub fn open(connections: &Shared, stream: UnixStream, session: &Rc<Mutex<Session>>) {
    let Some(slot) = connections.borrow_mut().take_slot() else {
        tracing::warn!("refused a connection to the API socket: all others are busy");
        refuse(&stream);
        return;
    };
    let (connections, session) = (Rc::clone(connections), Rc::clone(session));
    tokio::task::spawn_local(async move {
        serve(&connections, stream, &slot, &session).await;
        connections.borrow_mut().release(slot.number);
    });
}

/// Ends idle connections at once and the others after their answer.
pub async fn finish(connections: &Shared) {
    let empty = Rc::clone(&connections.borrow().empty);
    let ended = empty.notified();
    for slot in &connections.borrow().open {
        slot.finish.notify_one();
    }
    if !connections.borrow().open.is_empty() {
        // A client that does not read its answer does not keep the monitor alive.
        let _ = tokio::time::timeout(FAREWELL, ended).await;
    }
}

fn refuse(stream: &UnixStream) {
    let body = br#"{"fault_message":"too many connections are open; close one"}"#;
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    // A new socket has room for this; if not, the closed connection says enough.
    let _ = stream.try_write(&[head.as_bytes(), body].concat());
}

async fn serve(
    connections: &Shared,
    stream: UnixStream,
    slot: &Rc<Slot>,
    session: &Rc<Mutex<Session>>,
) {
    let limits = connections.borrow().limits;
    let service = service_fn(|request| {
        slot.last_active.set(connections.borrow_mut().tick());
        let (slot, session) = (Rc::clone(slot), Rc::clone(session));
        async move { Ok::<_, Infallible>(respond(request, &slot, session, limits).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.patience)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut finishing = false;
    loop {
        tokio::select! {
            // Errors are the client's: garbage, a timeout, a closed connection. hyper has answered what can be answered.
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!("a client's connection ended: {error}");
                }
                return;
            }
            () = slot.evict.notified() => return,
            () = slot.finish.notified(), if !finishing => {
                finishing = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

async fn respond(
    request: Request<Incoming>,
    slot: &Slot,
    session: Rc<Mutex<Session>>,
    limits: Limits,
) -> Response<Full<Bytes>> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let answer = match read(request, limits).await {
        Ok((endpoint, body)) => {
            slot.busy.set(true);
            // In a task of its own: a client that goes away does not undo half of what it asked for.
            let work = async move { session.lock().await.serve(endpoint, body).await };
            let served = tokio::task::spawn_local(work).await;
            slot.busy.set(false);
            served.unwrap_or(Err(RequestError::Exiting))
        }
        Err(error) => Err(error),
    };
    match &answer {
        Ok(_) => tracing::info!("{method} {path}: done"),
        Err(error) => tracing::warn!("{method} {path}: refused: {error}"),
    }
    match answer {
        Ok(Answer::Json(json)) => response(StatusCode::OK, json.into(), false),
        Ok(Answer::Done) => response(StatusCode::NO_CONTENT, Bytes::new(), false),
        Err(error) => {
            let unread = matches!(
                error,
                RequestError::TooLarge { .. }
                    | RequestError::SlowBody(_)
                    | RequestError::BrokenBody
            );
            let fault = Fault {
                fault_message: error.to_string(),
            };
            // A string always becomes JSON.
            let json = serde_json::to_vec(&fault).unwrap_or_default();
            response(error.status(), json.into(), unread)
        }
    }
}

fn response(status: StatusCode, body: Bytes, close: bool) -> Response<Full<Bytes>> {
    let is_json = !body.is_empty();
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static("fief-vmm"));
    if is_json {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    if close {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Finds the endpoint and reads the body.
async fn read(
    request: Request<Incoming>,
    limits: Limits,
) -> Result<(Endpoint, Bytes), RequestError> {
    let (head, body) = request.into_parts();
    let endpoint = Endpoint::find(head.method.as_str(), head.uri.path());
    let too_large = || RequestError::TooLarge { limit: limits.body };
    let announced = body.size_hint().lower();
    if usize::try_from(announced).map_or(true, |bytes| bytes > limits.body) {
        return Err(too_large());
    }
    if matches!(head.method, Method::GET | Method::DELETE) && !body.is_end_stream() {
        return Err(RequestError::UnwantedBody);
    }
    let whole = within(limits.patience, Limited::new(body, limits.body).collect()).await?;
    let body = whole.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
        Some(_) => too_large(),
        None => RequestError::BrokenBody,
    })?;
    Ok((endpoint?, body.to_bytes()))
}

async fn within<T>(patience: Duration, work: impl Future<Output = T>) -> Result<T, RequestError> {
    let slow = |_| RequestError::SlowBody(patience.as_secs());
    tokio::time::timeout(patience, work).await.map_err(slow)
}
