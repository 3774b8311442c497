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
    cell::RefCell,
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::io::ReadBuf;

use super::{Command, Direction, Socket, Switch, TunnelStats, tracker::Tracker};

/// Bytes per read at most. 32 to 256 KiB measure equal; 16 KiB costs 60 % more CPU on large
/// messages.
const SCRATCH_LEN: usize = 64 * 1024;

/// Bytes per read after the sink has refused some, so that a reader that stays slow pins less.
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
    /// Cut by [`Control::abort`](super::Control::abort).
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
    direction: Direction,
    stats: Arc<TunnelStats>,
    switch: Rc<Switch>,
    /// A Close frame that waits for a boundary.
    injection: Option<Vec<u8>>,
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
    pub(super) fn new(
        direction: Direction,
        source: Socket,
        sink: Socket,
        early: BytesMut,
        stats: Arc<TunnelStats>,
        switch: Rc<Switch>,
    ) -> Self {
        let mut pump = Self {
            source,
            sink,
            state: State::Relaying,
            kept: Kept::default(),
            unflushed: false,
            read_len: SCRATCH_LEN,
            tracker: Tracker::default(),
            direction,
            stats,
            switch,
            injection: None,
        };
        if !early.is_empty() {
            let progress = pump.tracker.feed(&early);
            pump.stats.record(direction, early.len(), progress, &pump.tracker);
            pump.kept.push(&early);
        }
        pump
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        for _ in 0..READS_PER_TURN {
            match self.switch.take() {
                Command::Abort => return Poll::Ready(End::Aborted),
                // After the source's own Close nothing may follow, not even ours.
                Command::Close(frame) if !self.tracker.closed() => self.injection = Some(frame),
                Command::Close(_) | Command::Relay => {}
            }
            if let Err(error) = ready!(self.poll_flush_kept(cx)) {
                self.sink_failed(error);
            }
            if let State::Finishing(end) = &mut self.state {
                // A sink that is already gone cannot be told, which is as good.
                let _ = ready!(Pin::new(&mut *self.sink.borrow_mut()).poll_shutdown(cx));
                return Poll::Ready(std::mem::replace(end, End::Eof));
            }
            if self.relaying()
                && self.tracker.at_boundary()
                && let Some(frame) = self.injection.take()
            {
                self.kept.push(&frame);
                self.state = State::Discarding(End::Closed);
                continue;
            }
            ready!(self.poll_read_write(cx));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn relaying(&self) -> bool {
        matches!(self.state, State::Relaying)
    }

    /// The sink takes nothing any more. A client is still read to its end, because closing with
    /// its bytes unread would reset the connection and take our last words to it along; what a pod
    /// still says to a client that is gone is of no use to anyone.
    fn sink_failed(&mut self, error: io::Error) {
        self.kept = Kept::default();
        let end = End::WriteFailed(error);
        self.state = match self.direction {
            Direction::Up if self.relaying() => State::Discarding(end),
            _ => State::Finishing(end),
        };
    }

    /// The source sends nothing any more.
    fn source_ended(&mut self, end: End) {
        self.state = State::Finishing(match std::mem::replace(&mut self.state, State::Relaying) {
            State::Relaying => end,
            State::Discarding(end) | State::Finishing(end) => end,
        });
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

    /// What the source has sent: follow it, pass it on.
    fn take(&mut self, chunk: &[u8], cx: &mut Context<'_>) {
        let progress = self.tracker.feed(chunk);
        self.stats.record(self.direction, chunk.len(), progress, &self.tracker);
        if !self.relaying() {
            if self.tracker.closed() {
                self.source_ended(End::Closed);
            }
            return;
        }
        let written = match progress.boundary {
            Some(boundary) if self.injection.is_some() => {
                let written = self.write_or_keep(&chunk[..boundary], cx);
                self.kept.push(&self.injection.take().unwrap_or_default());
                self.state = State::Discarding(End::Closed);
                written
            }
            _ => self.write_or_keep(chunk, cx),
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
        if chunk.len() == self.read_len {
            self.read_len = (self.read_len * 2).min(SCRATCH_LEN);
        }
        match Pin::new(&mut *self.sink.borrow_mut()).poll_flush(cx) {
            Poll::Ready(flushed) => flushed,
            Poll::Pending => {
                self.unflushed = true;
                Ok(())
            }
        }
    }
}

impl Future for Pump {
    type Output = End;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let pump = self.get_mut();
        let polled = pump.turn(cx);
        if polled.is_pending() {
            pump.switch.listen(cx.waker());
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc, sync::Arc};

    use bytes::BytesMut;
    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;
    use crate::relay::{Peer, Tunnel, close::CloseCode, frame};

    /// A tunnel over in-memory pipes of `room` bytes: the far ends, the tunnel, its figures.
    fn tunnel(
        room: usize,
        early_up: &[u8],
        early_down: &[u8],
    ) -> (DuplexStream, DuplexStream, Tunnel, Arc<TunnelStats>) {
        let (client, client_side) = duplex(room);
        let (pod, pod_side) = duplex(room);
        let stats = Arc::<TunnelStats>::default();
        let tunnel = Tunnel::new(
            Peer { socket: Rc::new(RefCell::new(client_side)), early: BytesMut::from(early_up) },
            Peer { socket: Rc::new(RefCell::new(pod_side)), early: BytesMut::from(early_down) },
            &stats,
        );
        (client, pod, tunnel, stats)
    }

    /// A guard that is off shows as a failure, not as a test that never ends.
    async fn in_time(test: impl Future<Output = ()>) {
        let patience = std::time::Duration::from_secs(30);
        tokio::time::timeout(patience, test).await.expect("an end");
    }

    fn text(payload: &[u8]) -> Vec<u8> {
        [&[0x81, payload.len() as u8], payload].concat()
    }

    #[actix_rt::test]
    async fn early_bytes_of_both_sides_come_first() {
        in_time(async {
            let (mut client, mut pod, Tunnel { up, down, control: _control }, stats) =
                tunnel(1024, &text(b"early"), &text(b"bird"));
            let relay = actix_rt::spawn(async move { tokio::join!(up, down) });
            client.write_all(&text(b"then")).await.unwrap();
            client.shutdown().await.unwrap();
            pod.shutdown().await.unwrap();
            let (mut at_pod, mut at_client) = (Vec::new(), Vec::new());
            pod.read_to_end(&mut at_pod).await.unwrap();
            client.read_to_end(&mut at_client).await.unwrap();
            assert_eq!(at_pod, [text(b"early"), text(b"then")].concat());
            assert_eq!(at_client, text(b"bird"));
            assert!(matches!(relay.await.unwrap(), (End::Eof, End::Eof)));
            assert_eq!((stats.up.messages(), stats.down.messages()), (2, 1));
        })
        .await;
    }

    #[actix_rt::test]
    async fn a_sink_that_buffers_is_flushed_after_every_message() {
        in_time(async {
            let (mut client, client_side) = duplex(1024);
            let (mut pod, pod_side) = duplex(16);
            let buffering = tokio::io::BufStream::with_capacity(64, 64, pod_side);
            let stats = Arc::<TunnelStats>::default();
            let Tunnel { up, down, control: _control } = Tunnel::new(
                Peer { socket: Rc::new(RefCell::new(client_side)), early: BytesMut::new() },
                Peer { socket: Rc::new(RefCell::new(buffering)), early: BytesMut::new() },
                &stats,
            );
            actix_rt::spawn(async move { tokio::join!(up, down) });
            // Smaller than the pipe, larger than the pipe, larger than the buffer.
            for payload in [&[b'a'; 5][..], &[b'b'; 40], &[b'c'; 120]] {
                let message = text(payload);
                client.write_all(&message).await.unwrap();
                let mut received = vec![0; message.len()];
                pod.read_exact(&mut received).await.unwrap();
                assert_eq!(received, message);
            }
        })
        .await;
    }

    #[actix_rt::test]
    async fn a_stalled_sink_stops_the_reading() {
        in_time(async {
            let (mut client, _pod, Tunnel { mut up, down: _down, control: _control }, stats) =
                tunnel(1000, b"", b"");
            let sender = actix_rt::spawn(async move {
                let _ = client.write_all(&[0u8; 1_000_000]).await;
            });
            for _ in 0..200 {
                assert!((&mut up).now_or_never().is_none());
                tokio::task::yield_now().await;
            }
            assert!(stats.up.bytes() <= 3 * 1000, "one pipe full and one read held");
            assert!(!up.kept.rest().is_empty());
            sender.abort();
        })
        .await;
    }

    #[actix_rt::test]
    async fn a_close_waits_for_the_boundary_and_nothing_follows_it() {
        in_time(async {
            let (mut client, mut pod, Tunnel { up, down, control }, _stats) =
                tunnel(4096, b"", b"");
            let relay = actix_rt::spawn(async move { tokio::join!(up, down) });
            let message = text(b"half of this message");
            pod.write_all(&message[..7]).await.unwrap();
            let mut first = [0; 7];
            client.read_exact(&mut first).await.unwrap();

            let code = CloseCode::SERVICE_RESTART;
            control.close(code, CloseCode::GOING_AWAY, "bye");
            // Whole messages of the chunk that brings the boundary still pass.
            let last = [&message[7..], &text(b"in time")].concat();
            pod.write_all(&last).await.unwrap();
            let expected = [&last[..], &frame::close(code, "bye", None)].concat();
            let mut at_client = vec![0; expected.len()];
            client.read_exact(&mut at_client).await.unwrap();
            assert_eq!(at_client, expected);
            let mut at_pod = [0; 2 + 4 + 2 + 3];
            pod.read_exact(&mut at_pod).await.unwrap();
            assert_eq!(at_pod[0], 0x88);

            // Both answer their Close, the pod after one message too many.
            pod.write_all(&[&text(b"too late")[..], &[0x88, 2, 0x03, 0xe9]].concat())
                .await
                .unwrap();
            client.write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xf4]).await.unwrap();
            let mut after = Vec::new();
            client.read_to_end(&mut after).await.unwrap();
            pod.read_to_end(&mut after).await.unwrap();
            assert!(after.is_empty(), "nothing follows a Close, each answer is for us: {after:?}");
            assert!(matches!(relay.await.unwrap(), (End::Closed, End::Closed)));
        })
        .await;
    }

    #[actix_rt::test]
    async fn a_close_after_the_peers_own_close_is_not_sent() {
        in_time(async {
            let (mut client, mut pod, Tunnel { up, down, control }, _stats) =
                tunnel(4096, b"", b"");
            let relay = actix_rt::spawn(async move { tokio::join!(up, down) });
            let own = [0x88, 2, 0x03, 0xe8];
            pod.write_all(&own).await.unwrap();
            let mut seen = [0; 4];
            client.read_exact(&mut seen).await.unwrap();
            control.close(CloseCode::SERVICE_RESTART, CloseCode::GOING_AWAY, "");
            drop(pod);
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).await.unwrap();
            assert!(rest.is_empty(), "one Close per direction");
            drop(client);
            drop(control);
            relay.await.unwrap();
        })
        .await;
    }

    #[actix_rt::test]
    async fn abort_ends_a_pump_that_is_stuck() {
        in_time(async {
            let (mut client, _pod, Tunnel { up, down: _down, control }, _stats) =
                tunnel(16, b"", b"");
            let relay = actix_rt::spawn(up);
            client.write_all(&[0; 32]).await.unwrap();
            control.abort();
            assert!(matches!(relay.await.unwrap(), End::Aborted));
        })
        .await;
    }
}
