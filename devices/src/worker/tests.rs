use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;

/// Adds what its eventfd says to a sum and reports each event.
struct Counter {
    event: EventFd,
    sum: Arc<AtomicU64>,
    seen: Sender<()>,
}

impl Handler for Counter {
    fn register(&mut self, interest: &Interest<'_>) -> io::Result<()> {
        interest.add(self.event.as_raw_fd(), EventSet::IN)
    }

    fn ready(&mut self, fd: RawFd, _events: EventSet, _interest: &Interest<'_>) {
        assert_eq!(fd, self.event.as_raw_fd());
        self.sum
            .fetch_add(self.event.read().unwrap(), Ordering::SeqCst);
        self.seen.send(()).unwrap();
    }
}

fn counter() -> (Counter, EventFd, Arc<AtomicU64>, Receiver<()>) {
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let sum = Arc::new(AtomicU64::new(0));
    let (seen, received) = channel();
    let handler = Counter {
        event: event.try_clone().unwrap(),
        sum: sum.clone(),
        seen,
    };
    (handler, event, sum, received)
}

#[test]
fn a_worker_serves_its_handler_and_gives_it_back() {
    let (handler, event, sum, seen) = counter();
    let worker = Worker::spawn(ThreadKind::Block, "test", handler).unwrap();
    event.write(3).unwrap();
    seen.recv().unwrap();
    let handler = worker.stop().unwrap();
    assert_eq!(handler.sum.load(Ordering::SeqCst), 3);
    assert_eq!(sum.load(Ordering::SeqCst), 3);
}

#[test]
fn a_shared_worker_serves_several_handlers_that_come_and_go() {
    let worker = SharedWorker::spawn(ThreadKind::Slow, "test").unwrap();
    let (a, event_a, sum_a, seen_a) = counter();
    let (b, event_b, sum_b, seen_b) = counter();
    let place_a = worker.add(a).unwrap();
    let place_b = worker.add(b).unwrap();
    event_a.write(1).unwrap();
    event_b.write(10).unwrap();
    seen_a.recv().unwrap();
    seen_b.recv().unwrap();

    let a = place_a.remove().unwrap();
    event_a.write(5).unwrap();
    event_b.write(20).unwrap();
    seen_b.recv().unwrap();
    assert_eq!(
        sum_a.load(Ordering::SeqCst),
        1,
        "a removed handler is not served"
    );
    assert_eq!(sum_b.load(Ordering::SeqCst), 30);

    let _place_a = worker.add(a).unwrap();
    seen_a.recv().unwrap();
    assert_eq!(
        sum_a.load(Ordering::SeqCst),
        6,
        "an event waits for the handler to come back"
    );
    drop(place_b);
}

#[test]
fn dropping_a_place_drops_the_handler() {
    let worker = SharedWorker::spawn(ThreadKind::Slow, "test").unwrap();
    let (handler, _event, _sum, seen) = counter();
    drop(worker.add(handler).unwrap());
    assert!(seen.recv().is_err(), "the handler's sender is gone");
}

/// Cannot be watched.
struct Refuser;

impl Handler for Refuser {
    fn register(&mut self, interest: &Interest<'_>) -> io::Result<()> {
        interest.add(-1, EventSet::IN)
    }

    fn ready(&mut self, _fd: RawFd, _events: EventSet, _interest: &Interest<'_>) {}
}

#[test]
fn a_handler_that_cannot_register_is_reported_and_the_worker_goes_on() {
    let worker = SharedWorker::spawn(ThreadKind::Slow, "test").unwrap();
    assert!(worker.add(Refuser).is_err());
    assert!(Worker::spawn(ThreadKind::Slow, "test", Refuser).is_err());
    let (handler, event, sum, seen) = counter();
    let _place = worker.add(handler).unwrap();
    event.write(2).unwrap();
    seen.recv().unwrap();
    assert_eq!(sum.load(Ordering::SeqCst), 2);
}

/// Notes the thread in which it is told to finish.
struct Finisher {
    finished_in: Option<std::thread::ThreadId>,
}

impl Handler for Finisher {
    fn register(&mut self, _interest: &Interest<'_>) -> io::Result<()> {
        Ok(())
    }

    fn ready(&mut self, _fd: RawFd, _events: EventSet, _interest: &Interest<'_>) {}

    fn finish(&mut self) {
        self.finished_in = Some(std::thread::current().id());
    }
}

#[test]
fn a_handler_finishes_in_the_worker_thread_before_it_is_given_back() {
    let worker = SharedWorker::spawn(ThreadKind::Slow, "test").unwrap();
    let place = worker.add(Finisher { finished_in: None }).unwrap();
    let thread = worker.thread.as_ref().unwrap().thread().id();
    assert_eq!(place.remove().unwrap().finished_in, Some(thread));
}
