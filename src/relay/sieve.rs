//! What may not simply pass: answers to our own Pings, and what is over a limit.
//!
//! A sieve stands before the tracker of one direction, in sessions that have such rules. It holds
//! back what it cannot judge yet: a header that has not come whole, what may become our Pong, and
//! messages that come too fast. All of it is judged by headers, before any payload is there.

use std::{cell::Cell, rc::Rc, time::Duration};

use thiserror::Error;

use super::{
    close::CloseCode,
    frame::{FrameHeader, PingPayload, opcode, unmasked},
    tracker::Tracker,
};

/// What one side may send; `None` is everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Payload bytes of one frame.
    pub frame_size: Option<u64>,
    /// Payload bytes of one message, whose fragments count together.
    pub message_size: Option<u64>,
    /// Messages in a while.
    pub rate: Option<Rate>,
}

/// How fast messages may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Messages per second, at least 1.
    pub per_second: u32,
    /// Messages at once, after a pause, at least 1.
    pub burst: u32,
    /// Whether more than that ends the session; otherwise the sender has to wait.
    pub closes: bool,
}

/// What a side has sent that it may not.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Violation {
    /// Over [`Limits::frame_size`].
    #[error("a frame of {0} bytes is too large")]
    FrameSize(u64),
    /// Over [`Limits::message_size`].
    #[error("a message of {0} bytes or more is too large")]
    MessageSize(u64),
    /// Over [`Limits::rate`].
    #[error("too many messages")]
    Rate,
}

impl Violation {
    /// What the sender is told (RFC 6455 §7.4.1).
    pub fn code(&self) -> CloseCode {
        match self {
            Self::FrameSize(_) | Self::MessageSize(_) => CloseCode::MESSAGE_TOO_BIG,
            Self::Rate => CloseCode::POLICY_VIOLATION,
        }
    }
}

/// Messages that may come now. Filled from outside, because pumps look at no clock.
#[derive(Debug)]
pub struct Allowance {
    rate: Rate,
    messages: Cell<f64>,
}

impl Allowance {
    fn new(rate: Rate) -> Self {
        Self { rate, messages: Cell::new(rate.burst.into()) }
    }

    /// `time` has passed. Says whether somebody who had to wait may go on.
    pub fn refill(&self, time: Duration) -> bool {
        let before = self.messages.get();
        let more = time.as_secs_f64() * f64::from(self.rate.per_second);
        self.messages.set((before + more).min(self.rate.burst.into()));
        before < 1.0 && self.messages.get() >= 1.0
    }

    fn take(&self) -> bool {
        let left = self.messages.get() - 1.0;
        if left >= 0.0 {
            self.messages.set(left);
        }
        left >= 0.0
    }
}

/// The answers to our Pings that one direction has yet to bring.
#[derive(Debug, Default)]
pub struct Awaited {
    pub(super) count: Cell<u32>,
    pub(super) swallowed: Cell<u64>,
}

impl Awaited {
    fn arrived(&self, len: usize) {
        self.count.set(self.count.get() - 1);
        self.swallowed.set(self.swallowed.get() + len as u64);
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Sieve {
    limits: Limits,
    /// For everybody who fills it.
    pub(super) allowance: Option<Rc<Allowance>>,
    payload: PingPayload,
    /// What has come and has not passed.
    held: Vec<u8>,
    /// Payload bytes of the message that has begun.
    message_size: u64,
}

/// How far what has come may go.
#[derive(Debug, PartialEq, Eq)]
pub enum Sifted {
    /// This may pass; more may follow.
    Passes(Vec<u8>),
    /// Nothing more until there is more, or until the sender's allowance is filled.
    Waits,
    /// Nothing more at all.
    Violates(Violation),
}

impl Sieve {
    /// A sieve with `limits`, for Pongs with `payload`.
    pub fn new(limits: Limits, payload: PingPayload) -> Self {
        let allowance = limits.rate.map(|rate| Rc::new(Allowance::new(rate)));
        Self { limits, allowance, payload, held: Vec::new(), message_size: 0 }
    }

    /// Takes what has come.
    pub fn feed(&mut self, chunk: &[u8]) {
        self.held.extend_from_slice(chunk);
    }

    /// Whether nothing is held back.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether whatever comes may pass.
    pub fn is_open(&self, awaited: &Awaited) -> bool {
        self.is_empty() && awaited.count.get() == 0 && self.limits == Limits::default()
    }

    /// Whether the sender has to wait: there is no use in reading on.
    pub fn is_paused(&self) -> bool {
        self.limits.rate.is_some_and(|rate| !rate.closes)
            && self.allowance.as_ref().is_some_and(|allowance| allowance.messages.get() < 1.0)
            && !self.held.is_empty()
    }

    /// Everything that is held back, because nothing more will come.
    pub fn give_up(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// What may pass now, behind what `tracker` has followed.
    pub fn sift(&mut self, tracker: &Tracker, awaited: &Awaited) -> Sifted {
        let mut tracker = tracker.clone();
        let mut passed = 0;
        let stop = loop {
            if passed == self.held.len() {
                break Sifted::Waits;
            }
            if tracker.at_boundary() {
                match self.our_pong(&self.held[passed..], awaited) {
                    Pong::Whole(len) => {
                        self.held.drain(passed..passed + len);
                        awaited.arrived(len);
                        continue;
                    }
                    Pong::Perhaps => break Sifted::Waits,
                    Pong::No => {}
                }
                let header = FrameHeader::parse(&self.held[passed..]);
                match header.map(|header| self.judge(&header)) {
                    Some(Ok(true)) => {}
                    Some(Ok(false)) | None => break Sifted::Waits,
                    Some(Err(violation)) => break Sifted::Violates(violation),
                }
            }
            passed += tracker.feed_frame(&self.held[passed..]).used;
        };
        if passed == 0 {
            return stop;
        }
        Sifted::Passes(self.held.drain(..passed).collect())
    }

    fn our_pong(&self, bytes: &[u8], awaited: &Awaited) -> Pong {
        let head = 0x80 | opcode::PONG;
        let len = self.payload.len() as u8;
        let is_like = bytes[0] == head && bytes.get(1).is_none_or(|second| second & 0x7f == len);
        match FrameHeader::parse(bytes) {
            _ if !is_like || awaited.count.get() == 0 => Pong::No,
            None => Pong::Perhaps,
            Some(header) => {
                let body = &bytes[header.header_len..];
                let body = &body[..body.len().min(self.payload.len())];
                let is_same = unmasked(body, header.mask).zip(self.payload).all(|(a, b)| a == b);
                match (is_same, body.len() == self.payload.len()) {
                    (false, _) => Pong::No,
                    (true, true) => Pong::Whole(header.header_len + body.len()),
                    (true, false) => Pong::Perhaps,
                }
            }
        }
    }

    /// Whether the frame that begins may pass now.
    fn judge(&mut self, header: &FrameHeader) -> Result<bool, Violation> {
        if header.is_control() {
            return Ok(true);
        }
        let size = header.payload_len;
        if self.limits.frame_size.is_some_and(|limit| size > limit) {
            return Err(Violation::FrameSize(size));
        }
        let message_size = self.message_size.saturating_add(size);
        if self.limits.message_size.is_some_and(|limit| message_size > limit) {
            return Err(Violation::MessageSize(message_size));
        }
        if header.fin
            && let Some(allowance) = &self.allowance
            && !allowance.take()
        {
            return if allowance.rate.closes { Err(Violation::Rate) } else { Ok(false) };
        }
        self.message_size = if header.fin { 0 } else { message_size };
        Ok(true)
    }
}

enum Pong {
    Whole(usize),
    Perhaps,
    No,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAYLOAD: PingPayload = *b"payload!";

    /// A frame of up to 125 bytes.
    fn encode(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
        let mut frame = vec![first, payload.len() as u8 | if mask.is_some() { 0x80 } else { 0 }];
        frame.extend(mask.iter().flatten());
        frame.extend(unmasked(payload, mask));
        frame
    }

    fn frame() -> impl Strategy<Value = Vec<u8>> {
        let first = prop::sample::select(vec![0x01u8, 0x81, 0x00, 0x80, 0x89, 0x8a, 0x82]);
        let payload = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..40),
            // Almost our own.
            Just(PAYLOAD.to_vec()),
            Just(b"payload?".to_vec()),
        ];
        (first, payload, any::<Option<[u8; 4]>>()).prop_map(|(first, payload, mask)| {
            // Unasked Pongs are told apart by their payload alone.
            let first = if payload == PAYLOAD { 0x82 } else { first };
            encode(first, &payload, mask)
        })
    }

    proptest! {
        /// Whatever else there is, and however it is cut: it comes through, and our Pongs do not.
        #[test]
        fn only_our_pongs_are_swallowed(
            frames in prop::collection::vec((frame(), any::<bool>(), any::<Option<[u8; 4]>>()), 0..12),
            sizes in prop::collection::vec(1usize..60, 1..6),
        ) {
            let mut sieve = Sieve::new(Limits::default(), PAYLOAD);
            let awaited = Awaited::default();
            let (mut stream, mut expected, mut pongs) = (Vec::new(), Vec::new(), 0);
            for (frame, has_pong, mask) in frames {
                if has_pong {
                    stream.extend(encode(0x8a, &PAYLOAD, mask));
                    pongs += 1;
                }
                stream.extend(&frame);
                expected.extend(frame);
            }
            awaited.count.set(pongs);
            let mut tracker = Tracker::default();
            let mut passed = Vec::new();
            let mut rest = &stream[..];
            for size in sizes.iter().cycle() {
                if rest.is_empty() { break }
                let (chunk, left) = rest.split_at((*size).min(rest.len()));
                rest = left;
                sieve.feed(chunk);
                while let Sifted::Passes(bytes) = sieve.sift(&tracker, &awaited) {
                    tracker.feed(&bytes);
                    passed.extend(bytes);
                }
            }
            let passed_len = passed.len();
            prop_assert_eq!(passed, expected);
            prop_assert_eq!(awaited.count.get(), 0);
            prop_assert_eq!(awaited.swallowed.get() as usize, stream.len() - passed_len);
            prop_assert!(sieve.is_empty());
        }

        /// What passes is within the limits, and what is within the limits passes.
        #[test]
        fn limits_are_kept(
            frames in prop::collection::vec(frame(), 1..12),
            frame_size in 1u64..40,
            message_size in 1u64..60,
            split in 1usize..30,
        ) {
            let (frame_size, message_size) = (Some(frame_size), Some(message_size));
            let limits = Limits { frame_size, message_size, rate: None };
            let mut sieve = Sieve::new(limits, PAYLOAD);
            let (awaited, mut tracker) = (Awaited::default(), Tracker::default());
            let mut passed = Vec::new();
            let mut violation = None;
            for chunk in frames.concat().chunks(split) {
                sieve.feed(chunk);
                loop {
                    match sieve.sift(&tracker, &awaited) {
                        Sifted::Passes(bytes) => { tracker.feed(&bytes); passed.extend(bytes); }
                        Sifted::Waits => break,
                        Sifted::Violates(found) => { violation = violation.or(Some(found)); break }
                    }
                }
                if violation.is_some() { break }
            }
            // The reference: frame by frame.
            let (mut expected, mut message) = (Vec::new(), 0);
            let mut wrong = false;
            for frame in &frames {
                let header = FrameHeader::parse(frame).unwrap();
                if !header.is_control() {
                    message += header.payload_len;
                    wrong = Some(header.payload_len) > frame_size || Some(message) > message_size;
                    if wrong { break }
                    if header.fin { message = 0 }
                }
                expected.extend_from_slice(frame);
            }
            prop_assert_eq!(violation.is_some(), wrong);
            prop_assert_eq!(passed, expected);
        }
    }

    #[test]
    fn a_pong_that_nobody_awaits_is_the_applications() {
        let limits = Limits { frame_size: Some(100), ..Limits::default() };
        let mut sieve = Sieve::new(limits, PAYLOAD);
        let pong = encode(0x8a, &PAYLOAD, None);
        sieve.feed(&pong);
        let sifted = sieve.sift(&Tracker::default(), &Awaited::default());
        assert_eq!(sifted, Sifted::Passes(pong));
    }

    #[test]
    fn who_pauses_may_send_a_burst_and_then_as_many_as_there_is_time_for() {
        let allowance = Allowance::new(Rate { per_second: 10, burst: 3, closes: false });
        assert!((0..3).all(|_| allowance.take()));
        assert!(!allowance.take());
        assert!(!allowance.refill(Duration::from_millis(60)), "not yet a whole one");
        assert!(allowance.refill(Duration::from_millis(60)));
        assert!(allowance.take() && !allowance.take());
        allowance.refill(Duration::from_secs(3600));
        assert!((0..3).all(|_| allowance.take()) && !allowance.take());
    }
}
