//! One direction of a tunnel: reads, tracks and writes, and buffers only what the sink refuses.
//!
//! ```text
//!   Relaying ──source ended or failed────────────► Finishing ──sink shut down──► PumpEnd
//!      │ sent our Close, or the sink is dead           ▲
//!      └────────► Discarding ──Close or end of stream──┘
//! ```
//!
//! An idle pump owns no buffer: it reads into the scratch buffer of its thread and writes from there.
//! While the sink refuses bytes, the pump does not read. So the backpressure of a slow reader reaches
//! the sender, and at most the bytes of one read are buffered here.

use std::{
    cell::{Cell, RefCell},
    fmt,
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
    control::{ActivityView, Command, CommandCell, close_frame},
    filter::{FilterVerdict, FrameFilter, LimitViolation},
    frame,
    peer::Socket,
    stats::TunnelStats,
    tracker::{Progress, Tracker},
    write_buffer::WriteBuffer,
};
use crate::domain::session::{close_code::CloseCodes, ending::Ending, side::Side};

/// Most bytes per read. 32 to 256 KiB measure equal; 16 KiB costs 60 % more CPU on large messages.
const SCRATCH_LEN: usize = 64 * 1024;

/// Most bytes per read after the sink has refused bytes or not flushed them. A reader that stays slow
/// then occupies less memory, and its progress shows in smaller steps.
const SHORT_READ: usize = 16 * 1024;

/// Reads per poll, after which the other sessions of the thread get their turn.
const READS_PER_POLL: usize = 16;

thread_local! {
    /// Used by one pump at a time, for one read and the write that follows it.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_LEN].into_boxed_slice());
}

/// How a direction ended.
#[derive(Debug)]
pub enum PumpEnd {
    /// The source closed its side, and the sink was shut down.
    Eof,
    /// Reading from the source failed or was given up, and the sink was shut down.
    ReadFailed(io::Error),
    /// Writing to the sink failed or was given up.
    WriteFailed(io::Error),
    /// A Close frame of the balancer was sent, and the source has closed too.
    Closed,
    /// The source exceeded a limit. Both sides got a Close frame, unless the source had sent one.
    OverLimit(LimitViolation),
    /// Cut by [`TunnelControl::abort`](super::TunnelControl::abort) before any of the above.
    Aborted,
}

impl fmt::Display for PumpEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Eof => f.write_str("end of stream"),
            Self::ReadFailed(error) => write!(f, "read failed: {error}"),
            Self::WriteFailed(error) => write!(f, "write to the other side failed: {error}"),
            Self::Closed => f.write_str("end of stream after the balancer's Close frame"),
            Self::OverLimit(violation) => violation.fmt(f),
            Self::Aborted => f.write_str("cut"),
        }
    }
}

/// The reading end of a pump.
pub(super) struct Source {
    pub side: Side,
    pub socket: Socket,
    /// Bytes that were read together with the handshake.
    pub early: BytesMut,
    /// Present if the session has limits for this side, or sends Pings to it.
    pub filter: Option<Box<FrameFilter>>,
}

/// Relays the bytes of one direction until it ends.
pub struct Pump {
    source: Socket,
    sink: Socket,
    state: State,
    write_buffer: WriteBuffer,
    /// The sink has accepted bytes that it has not sent yet, as TLS does.
    unflushed: bool,
    read_len: usize,
    tracker: Tracker,
    filter: Option<Box<FrameFilter>>,
    source_side: Side,
    stats: Arc<TunnelStats>,
    cell: Rc<CommandCell>,
    /// The cell of the pump of the other direction.
    opposite: Rc<CommandCell>,
    /// Counts the polls of both pumps.
    poll_count: Rc<Cell<u32>>,
    close_codes: CloseCodes,
    /// Waits for a frame boundary.
    injection: Option<Injection>,
}

/// A frame of the balancer's own.
enum Injection {
    Ping(Vec<u8>),
    /// Nothing is relayed after it.
    Close(Vec<u8>),
}

enum State {
    Relaying,
    /// Reads and discards what the source still sends, up to its Close or its end. Then ends.
    Discarding(PumpEnd),
    /// The source has ended: flushes and shuts the sink down. Then ends.
    Finishing(PumpEnd),
}

impl Pump {
    pub(super) fn new(
        source: Source,
        sink: Socket,
        close_codes: CloseCodes,
        stats: Arc<TunnelStats>,
        view: &ActivityView,
    ) -> Self {
        let Source { side, socket, early, filter } = source;
        let mut pump = Self {
            source: socket,
            sink,
            state: State::Relaying,
            write_buffer: WriteBuffer::default(),
            unflushed: false,
            read_len: SCRATCH_LEN,
            tracker: Tracker::default(),
            filter,
            source_side: side,
            stats,
            cell: view.cell_from(side).clone(),
            opposite: view.cell_to(side).clone(),
            poll_count: view.poll_counter().clone(),
            close_codes,
            injection: None,
        };
        match &mut pump.filter {
            Some(filter) => filter.push(&early),
            None if early.is_empty() => {}
            None => {
                pump.track(&early);
                pump.write_buffer.push(&early);
            }
        }
        pump
    }

    fn relay(&mut self, cx: &mut Context<'_>) -> Poll<PumpEnd> {
        for _ in 0..READS_PER_POLL {
            match self.cell.take() {
                Command::Relay => {}
                Command::Abort => return Poll::Ready(self.aborted()),
                Command::SourceLost(ending) => {
                    // Bytes that the filter held back have not been checked: they are not relayed.
                    if let Some(filter) = &mut self.filter {
                        filter.take_held();
                    }
                    self.source_ended(ending, PumpEnd::ReadFailed(timed_out()));
                }
                Command::SinkLost => self.sink_failed(timed_out()),
                Command::Ping(frame) => self.schedule_injection(Injection::Ping(frame)),
                Command::Close(frame) => {
                    self.cell.is_closing.set(true);
                    self.schedule_injection(Injection::Close(frame));
                }
            }
            if let Err(error) = ready!(self.poll_flush_buffer(cx)) {
                self.sink_failed(error);
            }
            if let State::Finishing(end) = &mut self.state {
                let shut_down = Pin::new(&mut *self.sink.borrow_mut()).poll_shutdown(cx);
                // A dead sink need not be shut down.
                if shut_down.is_pending() && !matches!(end, PumpEnd::WriteFailed(_)) {
                    return Poll::Pending;
                }
                self.cell.is_over.set(true);
                return Poll::Ready(std::mem::replace(end, PumpEnd::Eof));
            }
            if self.injection.is_some() && self.is_relaying() && self.tracker.at_boundary() {
                self.inject();
                continue;
            }
            match ready!(self.poll_filter(cx)) {
                FilterVerdict::Pass(bytes) => self.forward(&bytes, cx),
                FilterVerdict::OverLimit(violation) => self.limit_exceeded(violation),
                FilterVerdict::Pause(_) => {}
                FilterVerdict::NeedMore => ready!(self.poll_read_write(cx)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Returns how the direction ended now that it is cut. An earlier cause takes precedence.
    fn aborted(&mut self) -> PumpEnd {
        match std::mem::replace(&mut self.state, State::Relaying) {
            State::Discarding(end @ (PumpEnd::OverLimit(_) | PumpEnd::WriteFailed(_))) => end,
            _ => PumpEnd::Aborted,
        }
    }

    fn is_relaying(&self) -> bool {
        matches!(self.state, State::Relaying)
    }

    /// Nothing may follow the source's own Close, not even a frame of ours.
    fn schedule_injection(&mut self, injection: Injection) {
        let is_close = |known: &Injection| matches!(known, Injection::Close(_));
        if self.is_relaying()
            && !self.tracker.closed()
            && !self.injection.as_ref().is_some_and(is_close)
        {
            self.injection = Some(injection);
        }
    }

    /// Sends the frame that waits for a boundary. To be called at a boundary only.
    fn inject(&mut self) {
        match self.injection.take() {
            Some(Injection::Close(frame)) => {
                self.write_buffer.push(&frame);
                self.discard(PumpEnd::Closed);
            }
            Some(Injection::Ping(frame)) => {
                self.write_buffer.push(&frame);
                self.cell.pings_sent.set(self.cell.pings_sent.get() + 1);
                let awaited = &self.opposite.awaited_pongs.count;
                awaited.set(awaited.get() + 1);
            }
            None => {}
        }
    }

    /// Asks the filter about the bytes that it holds, after waiting for the end of a pause.
    fn poll_filter(&mut self, cx: &mut Context<'_>) -> Poll<FilterVerdict> {
        let is_relaying = self.is_relaying();
        let holding = self.filter.as_mut().filter(|filter| is_relaying && !filter.is_empty());
        let Some(filter) = holding else { return Poll::Ready(FilterVerdict::NeedMore) };
        let verdict = filter.check(&self.tracker, &self.cell.awaited_pongs, Instant::now);
        if let FilterVerdict::Pause(until) = verdict {
            // The rest of what a dead source has sent is delivered within close_timeout only.
            if self.opposite.has_lost_sink.get() {
                self.cell.is_closing.set(true);
            }
            ready!(filter.poll_pause(until, cx));
        }
        Poll::Ready(verdict)
    }

    /// Ends the session because the source exceeded a limit: both sides get a Close frame and nothing
    /// more is relayed. After the source's own Close no frame is sent.
    fn limit_exceeded(&mut self, violation: LimitViolation) {
        let ending = violation.ending();
        self.stats.set_ending(ending);
        if self.tracker.closed() {
            self.discard(PumpEnd::OverLimit(violation));
            return;
        }
        let reason = violation.to_string();
        let close_frame = |side: Side| {
            let code = ending.code_for(side, self.close_codes)?;
            Some(frame::close(code, &reason, frame::mask_to(side)))
        };
        if let Some(frame) = close_frame(self.source_side) {
            self.opposite.set(Command::Close(frame));
        }
        if let Some(frame) = close_frame(self.source_side.other()) {
            self.write_buffer.push(&frame);
        }
        self.cell.is_closing.set(true);
        self.discard(PumpEnd::OverLimit(violation));
    }

    /// Reads and discards what the source still sends, up to its Close or its end. Closing a socket
    /// with unread bytes would reset the connection, and the source might lose our Close frame.
    fn discard(&mut self, end: PumpEnd) {
        let held = self.filter.as_mut().map(|filter| filter.take_held()).unwrap_or_default();
        self.track(&held);
        self.state = match self.tracker.closed() {
            true => State::Finishing(end),
            false => State::Discarding(end),
        };
    }

    /// Nothing more can be written. The opposite pump still relays what this sink has sent.
    fn sink_failed(&mut self, error: io::Error) {
        self.write_buffer = WriteBuffer::default();
        self.unflushed = false;
        self.cell.has_lost_sink.set(true);
        let end = PumpEnd::WriteFailed(error);
        match self.is_relaying() {
            true => self.discard(end),
            false => self.state = State::Finishing(end),
        }
    }

    /// Nothing more can be read. The sink gets a Close frame if the source has not sent one.
    fn source_ended(&mut self, ending: Ending, end: PumpEnd) {
        if matches!(end, PumpEnd::ReadFailed(_)) {
            self.cell.is_closing.set(true);
        }
        self.state = State::Finishing(match std::mem::replace(&mut self.state, State::Relaying) {
            State::Relaying => {
                self.close_sink(ending);
                end
            }
            State::Discarding(end) | State::Finishing(end) => end,
        });
    }

    /// Writes what the filter holds and then a Close frame, unless a frame was cut, or a side has sent
    /// a Close or ended before.
    fn close_sink(&mut self, ending: Ending) {
        if let Some(filter) = &mut self.filter {
            let held = filter.take_held();
            self.track(&held);
            self.write_buffer.push(&held);
        }
        let is_first = self.stats.first_ending().is_none();
        self.stats.set_ending(ending);
        if is_first
            && self.tracker.at_boundary()
            && let Some(frame) = close_frame(self.source_side.other(), ending, self.close_codes)
        {
            self.write_buffer.push(&frame);
        }
    }

    fn poll_flush_buffer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.write_buffer.unwritten().is_empty() {
            let mut sink = self.sink.borrow_mut();
            let n = ready!(Pin::new(&mut *sink).poll_write(cx, self.write_buffer.unwritten()))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.write_buffer.advance(n);
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(&mut *self.sink.borrow_mut()).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once and writes the bytes that were read.
    fn poll_read_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(&mut scratch[..self.read_len]);
            let read = Pin::new(&mut *self.source.borrow_mut()).poll_read(cx, &mut buffer);
            match ready!(read) {
                Ok(()) if buffer.filled().is_empty() => self.source_lost(PumpEnd::Eof),
                Ok(()) => self.accept(buffer.filled(), cx),
                Err(error) => self.source_lost(PumpEnd::ReadFailed(error)),
            }
            Poll::Ready(())
        })
    }

    fn source_lost(&mut self, end: PumpEnd) {
        self.source_ended(Ending::Lost(self.source_side), end);
    }

    /// Handles bytes that the source has sent.
    fn accept(&mut self, chunk: &[u8], cx: &mut Context<'_>) {
        if !self.is_relaying() {
            self.track(chunk);
            if self.tracker.closed() {
                self.source_lost(PumpEnd::Closed);
            }
            return;
        }
        match &mut self.filter {
            Some(filter) if !filter.passes_all(&self.cell.awaited_pongs) => filter.push(chunk),
            _ => self.forward(chunk, cx),
        }
    }

    fn track(&mut self, chunk: &[u8]) -> Progress {
        let progress = self.tracker.feed(chunk);
        self.stats.record(self.source_side, chunk.len(), progress, &self.tracker);
        progress
    }

    /// Tracks and writes a chunk. A frame of our own that waits is injected at the last boundary of the
    /// chunk, before a Close in it, because that Close may be the answer to ours.
    fn forward(&mut self, chunk: &[u8], cx: &mut Context<'_>) {
        let progress = self.track(chunk);
        let written = match progress.boundary {
            Some(boundary) if self.injection.is_some() => {
                let written = self.write_or_buffer(&chunk[..boundary], cx);
                self.inject();
                if self.is_relaying() {
                    self.write_buffer.push(&chunk[boundary..]);
                }
                written
            }
            _ => {
                if self.tracker.closed() {
                    // The source's own Close was on its way when ours was scheduled.
                    self.injection = None;
                }
                self.write_or_buffer(chunk, cx)
            }
        };
        if let Err(error) = written {
            self.sink_failed(error);
        }
    }

    /// Writes what the sink accepts now and buffers the rest.
    fn write_or_buffer(&mut self, chunk: &[u8], cx: &mut Context<'_>) -> io::Result<()> {
        let written = match Pin::new(&mut *self.sink.borrow_mut()).poll_write(cx, chunk) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        if written < chunk.len() {
            self.write_buffer.push(&chunk[written..]);
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
    type Output = PumpEnd;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<PumpEnd> {
        let pump = self.get_mut();
        let polled = pump.relay(cx);
        // The sink does not say how much it buffers: that counts as one byte.
        pump.cell.pending.set(pump.write_buffer.unwritten().len() + usize::from(pump.unflushed));
        pump.poll_count.set(pump.poll_count.get().wrapping_add(1));
        if polled.is_pending() {
            pump.cell.set_waker(cx.waker());
        }
        polled
    }
}

fn timed_out() -> io::Error {
    io::ErrorKind::TimedOut.into()
}

#[cfg(test)]
mod tests;
