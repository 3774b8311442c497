//! A client connection as hyper's server sees it: a sequence of plain requests that were read and
//! checked by [`RequestReader`] and are written anew, with what hyper needs to frame the exchange
//! and nothing else.
//!
//! A handshake or a head that must be refused looks to hyper like the end of the connection. When
//! everything before it has been answered, the connection is taken back from hyper, so that later
//! requests are handled by the code that handles first ones.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io::{self, IoSlice},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use actix_http::{Request, RequestHead, Version, header};
use bytes::{Buf as _, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use crate::{
    net::{ClientStream, write_timeout::WriteTimeout},
    traffic::{
        headers::{
            has_token,
            request::{HeadLimits, content_length},
        },
        request_reader::{Head, LastHead, RequestReader, body_decoder::BodyPart},
    },
};

/// What hyper does with the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Activity {
    /// It waits for a request.
    Idle,
    /// A request is being answered.
    Answering,
    /// The answer is complete in hyper's write buffer.
    Flushing,
}

struct Connection {
    io: WriteTimeout<ClientStream>,
    reader: RequestReader,
    /// Bytes that hyper has not read yet.
    input: VecDeque<Bytes>,
    /// Requests that hyper gets or has got and that [`ServerIo::next_request`] has not returned yet.
    requests: VecDeque<Request>,
    /// Whether the body that is being read has no length.
    is_chunked: bool,
    is_in_body: bool,
    activity: Activity,
    /// Runs while hyper is idle and the next head is incomplete.
    head_timer: Option<Pin<Box<Sleep>>>,
    /// Woken when hyper becomes idle.
    waiting: Option<Waker>,
    /// The head that hyper does not get.
    last: Option<LastHead>,
    /// Whether hyper has seen the end that stands for `last`.
    is_handed_over: bool,
}

/// A handle to the connection: one for hyper, one for the service.
#[derive(Clone)]
pub struct ServerIo(Rc<RefCell<Connection>>);

/// A request that is being answered. It must live as long as the answer's body.
pub struct AnswerInProgress(ServerIo);

impl ServerIo {
    /// Starts with `first`, which `reader` has read from `io`.
    pub fn new(io: WriteTimeout<ClientStream>, reader: RequestReader, first: Request) -> Self {
        let mut connection = Connection {
            io,
            reader,
            input: VecDeque::new(),
            requests: VecDeque::new(),
            is_chunked: false,
            is_in_body: false,
            activity: Activity::Idle,
            head_timer: None,
            waiting: None,
            last: None,
            is_handed_over: false,
        };
        connection.pass_on(first);
        Self(Rc::new(RefCell::new(connection)))
    }

    /// Returns the request that hyper has just read. Later heads are read with `limits`.
    pub fn next_request(&self, limits: HeadLimits) -> Option<(Request, AnswerInProgress)> {
        let mut connection = self.0.borrow_mut();
        connection.reader.set_limits(limits);
        connection.activity = Activity::Answering;
        let request = connection.requests.pop_front()?;
        Some((request, AnswerInProgress(self.clone())))
    }

    /// Returns the connection and the head that hyper did not get, after hyper has ended. Returns
    /// `None` when the connection ended for any other reason.
    pub fn take_over(self) -> Option<(ClientStream, RequestReader, LastHead)> {
        let connection = Rc::try_unwrap(self.0).ok()?.into_inner();
        let head = connection.last.filter(|_| connection.is_handed_over)?;
        Some((connection.io.into_inner(), connection.reader, head))
    }
}

impl Drop for AnswerInProgress {
    fn drop(&mut self) {
        self.0.0.borrow_mut().activity = Activity::Flushing;
    }
}

impl Connection {
    /// Whether every request that hyper has got is answered and flushed.
    fn is_idle(&self) -> bool {
        self.activity == Activity::Idle && self.requests.is_empty()
    }

    fn pass_on(&mut self, request: Request) {
        let head = request.head();
        self.is_chunked = head.headers.contains_key(header::TRANSFER_ENCODING);
        self.is_in_body = self.reader.has_body();
        self.input.push_back(framing_head(head));
        self.requests.push_back(request);
        self.head_timer = None;
    }

    /// Decodes bytes that have been read; returns whether that made progress.
    fn decode(&mut self) -> io::Result<bool> {
        if self.is_in_body {
            let part = self.reader.decode_body()?;
            let Some(part) = part else { return Ok(false) };
            self.pass_on_body(part);
            return Ok(true);
        }
        match self.reader.decode_head() {
            None => return Ok(false),
            Some(Head::Plain(request)) => self.pass_on(request),
            Some(Head::Last(head)) => self.last = Some(head),
        }
        Ok(true)
    }

    fn pass_on_body(&mut self, part: BodyPart) {
        match part {
            BodyPart::Data(data) if self.is_chunked => {
                self.input.push_back(format!("{:x}\r\n", data.len()).into());
                self.input.push_back(data);
                self.input.push_back(Bytes::from_static(b"\r\n"));
            }
            BodyPart::Data(data) => self.input.push_back(data),
            BodyPart::End => {
                self.is_in_body = false;
                if self.is_chunked {
                    self.input.push_back(Bytes::from_static(b"0\r\n\r\n"));
                }
            }
        }
    }

    /// Copies bytes for hyper into `buffer`; returns whether there were any.
    fn give(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let had_input = !self.input.is_empty();
        while let Some(bytes) = self.input.front_mut().filter(|_| buffer.remaining() > 0) {
            let n = bytes.len().min(buffer.remaining());
            buffer.put_slice(&bytes[..n]);
            bytes.advance(n);
            if bytes.is_empty() {
                self.input.pop_front();
            }
        }
        had_input
    }

    /// Hyper reads the end of the connection when `buffer` stays empty.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.give(buffer) {
                return Poll::Ready(Ok(()));
            }
            if self.last.is_some() {
                if !self.is_idle() {
                    self.waiting = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                self.is_handed_over = true;
                return Poll::Ready(Ok(()));
            }
            if self.decode()? {
                continue;
            }
            let read = pin!(self.reader.read_from(&mut self.io)).poll(cx);
            match read {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if self.is_in_body => return Poll::Pending,
                Poll::Pending => {
                    ready!(self.poll_head_timer(cx));
                    if self.reader.is_empty() {
                        return Poll::Ready(Ok(()));
                    }
                    self.last = Some(self.reader.slow_head());
                }
            }
        }
    }

    /// The time for a head starts when hyper is idle: an answer may take longer than a head.
    fn poll_head_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_idle() {
            self.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let timeout = self.reader.head_timeout();
        self.head_timer.get_or_insert_with(|| Box::pin(sleep(timeout))).as_mut().poll(cx)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        // hyper flushes its connection when its own write buffer is empty.
        if self.activity == Activity::Flushing {
            self.activity = Activity::Idle;
            if let Some(waiting) = self.waiting.take() {
                waiting.wake();
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The request head that hyper gets: enough to frame the body and the answer.
fn framing_head(head: &RequestHead) -> Bytes {
    let minor = if head.version == Version::HTTP_11 { 1 } else { 0 };
    let mut text = format!("{} / HTTP/1.{minor}\r\n", head.method);
    for option in ["close", "keep-alive"] {
        if has_token(&head.headers, header::CONNECTION, option) {
            text.push_str("connection: ");
            text.push_str(option);
            text.push_str("\r\n");
        }
    }
    if head.headers.contains_key(header::TRANSFER_ENCODING) {
        text.push_str("transfer-encoding: chunked\r\n");
    } else if let Some(length) = content_length(head) {
        text.push_str(&format!("content-length: {length}\r\n"));
    }
    if has_token(&head.headers, header::EXPECT, "100-continue") {
        text.push_str("expect: 100-continue\r\n");
    }
    text.push_str("\r\n");
    text.into()
}

impl AsyncRead for ServerIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_read(cx, buffer)
    }
}

impl AsyncWrite for ServerIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.borrow_mut().io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.borrow_mut().io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut connection = self.0.borrow_mut();
        if connection.is_handed_over {
            return connection.poll_flush(cx);
        }
        Pin::new(&mut connection.io).poll_shutdown(cx)
    }
}
