//! Keeps an emulated host awake. A QEMU that emulates nested virtualization (7.2, TCG) now and then loses the timer
//! interrupt that its idle Linux waits for; nothing in it runs then, for up to five minutes (the kernel log has "Long
//! readout interval" of the clock source), until some other interrupt comes. Its agent's port is such an interrupt.

use std::io;
use std::path::PathBuf;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use fief_agent_proto::{Connection, connect_unix};

/// Between two interrupts: what a machine that fell asleep loses at most.
pub const PERIOD: Duration = Duration::from_secs(2);
/// How long the relay may take to give a session.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks the agent behind the socket `relay` for a sign of life every `period`, on a thread of its own, until there is
/// none.
///
/// # Errors
/// The thread could not be started.
pub fn keep_awake(relay: PathBuf, period: Duration) -> io::Result<JoinHandle<()>> {
    Builder::new().name("wake".to_owned()).spawn(move || {
        let deadline = Instant::now() + PATIENCE;
        let session =
            connect_unix(&relay, deadline).and_then(|stream| Connection::open(stream, deadline));
        let Ok(connection) = session else { return };
        while connection.ping().is_ok() {
            std::thread::sleep(period);
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    use fief_agent_proto::{
        AgentHello, Decoder, Frame, Inbound, InitMode, Kind, VERSION, preamble_reply,
    };

    use super::*;

    /// What a client sends next; none once it has gone.
    fn next(stream: &mut UnixStream, decoder: &mut Decoder) -> Option<Inbound> {
        loop {
            if let Some(inbound) = decoder.event() {
                return Some(inbound);
            }
            let mut bytes = [0; 4096];
            let count = stream.read(&mut bytes).unwrap();
            decoder.push(bytes.get(..count).filter(|bytes| !bytes.is_empty())?);
        }
    }

    #[test]
    fn an_agent_is_asked_again_and_again_until_it_has_gone() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let thread = keep_awake(socket, Duration::ZERO).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut decoder = Decoder::for_client_bytes();
        let Some(Inbound::Preamble(nonce)) = next(&mut stream, &mut decoder) else {
            panic!("no preamble")
        };
        stream.write_all(&preamble_reply(&nonce)).unwrap();
        let hello = AgentHello {
            version: VERSION,
            agent: "test".into(),
            init: InitMode::Program,
            problem: None,
        };
        let mut pings = 0;
        while pings < 3 {
            let Some(Inbound::Frame(frame)) = next(&mut stream, &mut decoder) else {
                panic!("the client has gone")
            };
            let answer = match frame.kind {
                Kind::Hello => Frame::json(0, Kind::Hello, &hello).unwrap(),
                Kind::Ping => {
                    pings += 1;
                    Frame::empty(frame.stream, Kind::Done)
                }
                other => panic!("{other:?} was not expected"),
            };
            let mut bytes = Vec::new();
            answer.encode(&mut bytes);
            stream.write_all(&bytes).unwrap();
        }
        drop(stream);
        thread.join().unwrap();
    }
}
