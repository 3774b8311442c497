//! One direction of a tunnel: read, track, write, and hold only what the sink refuses.
//!
//! ```text
//!   Relaying ──source's EOF or failure───────────► Finishing ──sink shut down──► the End
//!      │ our Close went out, or a pod is gone          ▲
//!      └────────► Discarding ──Close or EOF────────────┘
//! ```
//!
//! An idle pump holds no buffer: it reads into its thread's scratch space and writes from there.
//! While the sink refuses bytes the pump does not read, so a slow reader's backpressure reaches
//! the sender and at most one read's worth of bytes stays here.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::{io::ReadBuf, time::Instant};

use super::{
    Command, Direction, FirstEnd, Pulse, Socket, Switch, TunnelStats,
    close::CloseCode,
    filter::{Sieve, Sifted, Violation},
    frame, masking_key,
    tracker::{Progress, Tracker},
};

/// Bytes per read at most. 32 to 256 KiB measure equal; 16 KiB costs 60 % more CPU on large
/// messages.
const SCRATCH_LEN: usize = 64 * 1024;

/// Bytes per read after the sink has refused some, or has not passed them on, so that a reader that
/// stays slow pins less, and that what it takes shows in smaller steps.
const SHORT_READ: usize = 16 * 1024;

/// Reads before a pump lets the other sessions of its thread have their turn.
const READS_PER_TURN: usize = 16;

thread_local! {
    /// Lent to one pump at a time, for one read and the write that follows it.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_LEN].into_boxed_slice());
}

/// Why a direction ended.
#[derive(Debug)]
pub enum End {
    /// The source closed its side; the sink has been told.
    Eof,
    /// The source failed: it is gone. The sink has been told.
    ReadFailed(io::Error),
    /// The sink failed: it takes nothing any more.
    WriteFailed(io::Error),
    /// Our own Close frame was sent, and the source has closed too.
    Closed,
    /// The source sent what it may not; both sides were told to close, unless it had said so itself.
    Violated(Violation),
    /// Cut by [`Control::abort`](super::Control::abort), with nothing of the above before.
    Aborted,
}

/// Moves the bytes of one direction until it ends.
pub struct Pump {
    source: Socket,
    sink: Socket,
    state: State,
    kept: Kept,
    /// The sink has taken bytes that it has not passed on yet, as TLS does.
    unflushed: bool,
    read_len: usize,
    tracker: Tracker,
    /// Stands before the tracker, in sessions that need one.
    sieve: Option<Box<Sieve>>,
    direction: Direction,
    stats: Arc<TunnelStats>,
    switch: Rc<Switch>,
    /// The other direction's.
    other: Rc<Switch>,
    /// Of both directions.
    turns: Rc<Cell<u32>>,
    /// What the sink is told when the source vanishes.
    farewell: CloseCode,
    /// What waits for a boundary.
    injection: Option<Injection>,
}

/// A frame of our own.
enum Injection {
    Ping(Vec<u8>),
    /// Nothing follows it.
    Close(Vec<u8>),
}

enum State {
    Relaying,
    /// What the source still sends is read and thrown away, up to its Close or its end; then this.
    Discarding(End),
    /// The source is done: flush, shut the sink down, end with this.
    Finishing(End),
}

/// Bytes that the sink has refused so far; no allocation while there are none.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    start: usize,
}

impl Kept {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn advance(&mut self, n: usize) {
        self.start += n;
        if self.rest().is_empty() {
            *self = Self::default();
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.reserve_exact(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }
}

impl Pump {
    /// From a source, with what came early and what it may send, to a sink, with what that is told
    /// when the source vanishes.
    pub(super) fn new(
        direction: Direction,
        (source, early, sieve): (Socket, BytesMut, Option<Box<Sieve>>),
        (sink, farewell): (Socket, CloseCode),
        stats: Arc<TunnelStats>,
        pulse: &Pulse,
    ) -> Self {
        let (switch, other) = match direction {
            Direction::Up => (pulse.up.clone(), pulse.down.clone()),
            Direction::Down => (pulse.down.clone(), pulse.up.clone()),
        };
        let mut pump = Self {
            source,
            sink,
            state: State::Relaying,
            kept: Kept::default(),
            unflushed: false,
            read_len: SCRATCH_LEN,
            tracker: Tracker::default(),
            sieve,
            direction,
            stats,
            switch,
            other,
            turns: pulse.turns.clone(),
            farewell,
            injection: None,
        };
        match &mut pump.sieve {
            Some(sieve) => sieve.feed(&early),
            None if early.is_empty() => {}
            None => {
                pump.follow(&early);
                pump.kept.push(&early);
            }
        }
        pump
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        for _ in 0..READS_PER_TURN {
            match self.switch.take() {
                Command::Relay => {}
                Command::Abort => return Poll::Ready(self.aborted()),
                Command::SourceLost => {
                    // What had to wait for its turn is not let through now.
                    if let Some(sieve) = &mut self.sieve {
                        sieve.give_up();
                    }
                    self.source_ended(End::ReadFailed(timed_out()));
                }
                Command::SinkLost => self.sink_failed(timed_out()),
                Command::Ping(frame) => self.inject_later(Injection::Ping(frame)),
                Command::Close(frame) => {
                    self.switch.is_closing.set(true);
                    self.inject_later(Injection::Close(frame));
                }
            }
            if let Err(error) = ready!(self.poll_flush_kept(cx)) {
                self.sink_failed(error);
            }
            if let State::Finishing(end) = &mut self.state {
                let told = Pin::new(&mut *self.sink.borrow_mut()).poll_shutdown(cx);
                // A sink that is already gone cannot be told, which is as good.
                if told.is_pending() && !matches!(end, End::WriteFailed(_)) {
                    return Poll::Pending;
                }
                self.switch.is_over.set(true);
                return Poll::Ready(std::mem::replace(end, End::Eof));
            }
            if self.injection.is_some() && self.relaying() && self.tracker.at_boundary() {
                self.inject();
                continue;
            }
            match ready!(self.poll_sift(cx)) {
                Sifted::Passes(bytes) => self.pass(&bytes, cx),
                Sifted::Violates(violation) => self.violated(violation),
                Sifted::Paused(_) => {}
                Sifted::WantsMore => ready!(self.poll_read_write(cx)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Cut; what was to end it before is more worth knowing.
    fn aborted(&mut self) -> End {
        match std::mem::replace(&mut self.state, State::Relaying) {
            State::Discarding(end @ (End::Violated(_) | End::WriteFailed(_))) => end,
            _ => End::Aborted,
        }
    }

    fn relaying(&self) -> bool {
        matches!(self.state, State::Relaying)
    }

    /// After the source's own Close nothing may follow, not even ours.
    fn inject_later(&mut self, injection: Injection) {
        let is_greater = |known: &Injection| matches!(known, Injection::Close(_));
        if self.relaying()
            && !self.tracker.closed()
            && !self.injection.as_ref().is_some_and(is_greater)
        {
            self.injection = Some(injection);
        }
    }

    /// Sends what waits for a boundary, of which this is one.
    fn inject(&mut self) {
        match self.injection.take() {
            Some(Injection::Close(frame)) => {
                self.kept.push(&frame);
                self.discard(End::Closed);
            }
            Some(Injection::Ping(frame)) => {
                self.kept.push(&frame);
                self.switch.pings.set(self.switch.pings.get() + 1);
                let awaited = &self.other.awaited.count;
                awaited.set(awaited.get() + 1);
            }
            None => {}
        }
    }

    /// What the sieve says to what it holds, as soon as a pause is over.
    fn poll_sift(&mut self, cx: &mut Context<'_>) -> Poll<Sifted> {
        let relaying = self.relaying();
        let holding = self.sieve.as_mut().filter(|sieve| relaying && !sieve.is_empty());
        let Some(sieve) = holding else { return Poll::Ready(Sifted::WantsMore) };
        let sifted = sieve.sift(&self.tracker, &self.switch.awaited, Instant::now);
        if let Sifted::Paused(until) = sifted {
            // What a dead source has sent is delivered, but not over hours.
            if self.other.has_lost_sink.get() {
                self.switch.is_closing.set(true);
            }
            ready!(sieve.poll_pause(until, cx));
        }
        Poll::Ready(sifted)
    }

    /// The source has sent what it may not: both sides are told, and nothing more is passed on. What
    /// comes behind the source's own Close concerns nobody any more.
    fn violated(&mut self, violation: Violation) {
        self.stats.end(FirstEnd::Violated);
        if self.tracker.closed() {
            self.discard(End::Violated(violation));
            return;
        }
        let reason = violation.to_string();
        let (mask, other_mask) = match self.direction {
            Direction::Up => (Some(masking_key()), None),
            Direction::Down => (None, Some(masking_key())),
        };
        self.other.set(Command::Close(frame::close(violation.code(), &reason, other_mask)));
        self.kept.push(&frame::close(CloseCode::GOING_AWAY, &reason, mask));
        self.switch.is_closing.set(true);
        self.discard(End::Violated(violation));
    }

    /// From here on the source is read in vain, up to its Close or its end, because closing with
    /// its bytes unread would reset the connection and take our last words to it along.
    fn discard(&mut self, end: End) {
        let held = self.sieve.as_mut().map(|sieve| sieve.give_up()).unwrap_or_default();
        self.follow(&held);
        self.state = match self.tracker.closed() {
            true => State::Finishing(end),
            false => State::Discarding(end),
        };
    }

    /// The sink takes nothing any more. What has come from it before goes on to the other side.
    fn sink_failed(&mut self, error: io::Error) {
        self.kept = Kept::default();
        self.unflushed = false;
        self.switch.has_lost_sink.set(true);
        let end = End::WriteFailed(error);
        match self.relaying() {
            true => self.discard(end),
            false => self.state = State::Finishing(end),
        }
    }

    /// The source sends nothing any more. If it has vanished without a word, the sink gets one.
    fn source_ended(&mut self, end: End) {
        if matches!(end, End::ReadFailed(_)) {
            self.switch.is_closing.set(true);
        }
        self.state = State::Finishing(match std::mem::replace(&mut self.state, State::Relaying) {
            State::Relaying => {
                self.say_farewell();
                end
            }
            State::Discarding(end) | State::Finishing(end) => end,
        });
    }

    /// Not into a frame that was cut, and not when somebody has said Close already, or has gone.
    fn say_farewell(&mut self) {
        if let Some(sieve) = &mut self.sieve {
            let held = sieve.give_up();
            self.follow(&held);
            self.kept.push(&held);
        }
        let is_first = self.stats.first_end().is_none();
        self.stats.end(FirstEnd::Vanished(self.direction));
        if is_first && self.tracker.at_boundary() {
            let (reason, mask) = match self.direction {
                Direction::Up => ("the client is gone", Some(masking_key())),
                Direction::Down => ("the pod is gone", None),
            };
            self.kept.push(&frame::close(self.farewell, reason, mask));
        }
    }

    /// Nothing is kept, and the sink keeps nothing either.
    fn poll_flush_kept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.kept.rest().is_empty() {
            let mut sink = self.sink.borrow_mut();
            let n = ready!(Pin::new(&mut *sink).poll_write(cx, self.kept.rest()))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.kept.advance(n);
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(&mut *self.sink.borrow_mut()).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// One read and the write of what it gave.
    fn poll_read_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(&mut scratch[..self.read_len]);
            let read = Pin::new(&mut *self.source.borrow_mut()).poll_read(cx, &mut buffer);
            match ready!(read) {
                Ok(()) if buffer.filled().is_empty() => self.source_ended(End::Eof),
                Ok(()) => self.take(buffer.filled(), cx),
                Err(error) => self.source_ended(End::ReadFailed(error)),
            }
            Poll::Ready(())
        })
    }

    /// What the source has sent.
    fn take(&mut self, chunk: &[u8], cx: &mut Context<'_>) {
        if !self.relaying() {
            self.follow(chunk);
            if self.tracker.closed() {
                self.source_ended(End::Closed);
            }
            return;
        }
        match &mut self.sieve {
            Some(sieve) if !sieve.is_open(&self.switch.awaited) => sieve.feed(chunk),
            _ => self.pass(chunk, cx),
        }
    }

    fn follow(&mut self, chunk: &[u8]) -> Progress {
        let progress = self.tracker.feed(chunk);
        self.stats.record(self.direction, chunk.len(), progress, &self.tracker);
        progress
    }

    /// Follows what is relayed and writes it, with our own frame between where one waits. It goes
    /// before a Close that comes in the same chunk, because that may be the answer to ours.
    fn pass(&mut self, chunk: &[u8], cx: &mut Context<'_>) {
        let progress = self.follow(chunk);
        let written = match progress.boundary {
            Some(boundary) if self.injection.is_some() => {
                let written = self.write_or_keep(&chunk[..boundary], cx);
                self.inject();
                if self.relaying() {
                    self.kept.push(&chunk[boundary..]);
                }
                written
            }
            _ => {
                if self.tracker.closed() {
                    // We waited for the end of the source's own Close.
                    self.injection = None;
                }
                self.write_or_keep(chunk, cx)
            }
        };
        if let Err(error) = written {
            self.sink_failed(error);
        }
    }

    /// Writes what the sink takes at once and keeps the rest.
    fn write_or_keep(&mut self, chunk: &[u8], cx: &mut Context<'_>) -> io::Result<()> {
        let written = match Pin::new(&mut *self.sink.borrow_mut()).poll_write(cx, chunk) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        if written < chunk.len() {
            self.kept.push(&chunk[written..]);
            self.read_len = SHORT_READ;
            return Ok(());
        }
        match Pin::new(&mut *self.sink.borrow_mut()).poll_flush(cx) {
            Poll::Ready(flushed) => flushed?,
            Poll::Pending => {
                self.unflushed = true;
                self.read_len = SHORT_READ;
                return Ok(());
            }
        }
        if chunk.len() == self.read_len {
            self.read_len = (self.read_len * 2).min(SCRATCH_LEN);
        }
        Ok(())
    }
}

impl Future for Pump {
    type Output = End;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let pump = self.get_mut();
        let polled = pump.turn(cx);
        // How much a sink has yet to pass on it does not tell: it counts as one byte.
        pump.switch.waiting.set(pump.kept.rest().len() + usize::from(pump.unflushed));
        pump.turns.set(pump.turns.get().wrapping_add(1));
        if polled.is_pending() {
            pump.switch.listen(cx.waker());
        }
        polled
    }
}

fn timed_out() -> io::Error {
    io::ErrorKind::TimedOut.into()
}

#[cfg(test)]
mod tests;
