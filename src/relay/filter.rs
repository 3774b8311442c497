//! What may not simply pass: answers to our own Pings, and what is over a limit.
//!
//! A sieve stands before the tracker of one direction, in sessions that have such rules. It holds
//! back what it cannot judge yet: a header that has not come whole, what may become our Pong, and
//! messages that come too fast. All of it is judged by headers, before any payload is there.

use std::{
    cell::Cell,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use thiserror::Error;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    close::CloseCode,
    frame::{FrameHeader, MAX_CONTROL_PAYLOAD, PingPayload, opcode, unmasked},
    tracker::Tracker,
};

/// What one side may send; `None` is everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameLimits {
    /// Payload bytes of one frame.
    pub frame_size: Option<u64>,
    /// Payload bytes of one message, whose fragments count together.
    pub message_size: Option<u64>,
    /// Messages in a while.
    pub rate: Option<MessageRate>,
}

/// How fast messages may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageRate {
    /// Messages per second, at least 1.
    pub per_second: u32,
    /// Messages at once, after a pause, at least 1. Who has to wait is woken to the millisecond, so
    /// that with less than two milliseconds' worth not all of the rate is reached.
    pub burst: u32,
    /// Whether more than that ends the session; otherwise the sender has to wait.
    pub closes: bool,
}

/// What a side has sent that it may not.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Violation {
    /// Over [`FrameLimits::frame_size`].
    #[error("a frame of {0} bytes is too large")]
    FrameSize(u64),
    /// Over [`FrameLimits::message_size`].
    #[error("a message of {0} bytes or more is too large")]
    MessageSize(u64),
    /// Over [`FrameLimits::rate`].
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

/// Messages that may come: a bucket of [`burst`](MessageRate::burst) that fills while time passes.
#[derive(Debug)]
struct Allowance {
    rate: MessageRate,
    /// When the bucket is full, which says as well what is in it before.
    full_at: Option<Instant>,
}

impl Allowance {
    /// Takes one message, or says when there will be one.
    fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let interval = Duration::from_secs(1) / self.rate.per_second;
        let full_at = self.full_at.map_or(now, |full_at| full_at.max(now));
        let all_but_one = interval * (self.rate.burst - 1);
        if full_at > now + all_but_one {
            return Err(full_at - all_but_one);
        }
        self.full_at = Some(full_at + interval);
        Ok(())
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
    limits: FrameLimits,
    allowance: Option<Allowance>,
    payload: PingPayload,
    /// What has come and has not passed.
    held: Vec<u8>,
    /// Payload bytes of the message that has begun.
    message_size: u64,
    /// While the sender has to wait.
    pause: Option<Pin<Box<Sleep>>>,
}

/// How far what has come may go.
#[derive(Debug, PartialEq, Eq)]
pub enum Sifted {
    /// This may pass; more may follow.
    Passes(Vec<u8>),
    /// Nothing more until there is more.
    WantsMore,
    /// Nothing more until then: there is no use in reading on.
    Paused(Instant),
    /// Nothing more at all.
    Violates(Violation),
}

impl Sieve {
    /// A sieve with `limits`, for Pongs with `payload`.
    pub fn new(limits: FrameLimits, payload: PingPayload) -> Self {
        let allowance = limits.rate.map(|rate| Allowance { rate, full_at: None });
        Self { limits, allowance, payload, held: Vec::new(), message_size: 0, pause: None }
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
        self.is_empty() && awaited.count.get() == 0 && self.limits == FrameLimits::default()
    }

    /// Ends with the [pause](Sifted::Paused) that lasts `until` then.
    pub fn poll_pause(&mut self, until: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let pause = self.pause.get_or_insert_with(|| Box::pin(sleep_until(until)));
        ready!(pause.as_mut().poll(cx));
        self.pause = None;
        Poll::Ready(())
    }

    /// Everything that is held back, because nothing more will come.
    pub fn give_up(&mut self) -> Vec<u8> {
        self.pause = None;
        mem::take(&mut self.held)
    }

    /// What may pass now, behind what `tracker` has followed. The clock is looked at for messages
    /// that are counted alone.
    pub fn sift(
        &mut self,
        tracker: &Tracker,
        awaited: &Awaited,
        now: impl Fn() -> Instant,
    ) -> Sifted {
        let mut tracker = tracker.clone();
        let mut passed = 0;
        let stop = loop {
            if passed == self.held.len() {
                break Sifted::WantsMore;
            }
            if tracker.at_boundary() {
                match self.our_pong(&self.held[passed..], awaited) {
                    Pong::Whole(len) => {
                        self.held.drain(passed..passed + len);
                        awaited.arrived(len);
                        continue;
                    }
                    Pong::Perhaps => break Sifted::WantsMore,
                    Pong::No => {}
                }
                let Some(header) = FrameHeader::parse(&self.held[passed..]) else {
                    break Sifted::WantsMore;
                };
                if let Err(stop) = self.judge(&header, &now) {
                    break stop;
                }
            }
            passed += tracker.feed_frame(&self.held[passed..]).used;
        };
        // No more room is kept than what is held takes: it may be held for long.
        if passed > 0 {
            let rest = self.held.split_off(passed);
            return Sifted::Passes(mem::replace(&mut self.held, rest));
        }
        if self.held.is_empty() {
            self.held = Vec::new();
        }
        stop
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

    /// Whether the frame that begins may pass now; otherwise what to do instead.
    fn judge(&mut self, header: &FrameHeader, now: impl Fn() -> Instant) -> Result<(), Sifted> {
        let size = header.payload_len;
        if header.is_control() {
            let limit = self.limits.frame_size.into_iter().chain(self.limits.message_size).min();
            // None that the protocol knows is longer.
            return match limit.is_some_and(|limit| size > limit.max(MAX_CONTROL_PAYLOAD as u64)) {
                true => Err(Sifted::Violates(Violation::FrameSize(size))),
                false => Ok(()),
            };
        }
        if self.limits.frame_size.is_some_and(|limit| size > limit) {
            return Err(Sifted::Violates(Violation::FrameSize(size)));
        }
        let message_size = self.message_size.saturating_add(size);
        if self.limits.message_size.is_some_and(|limit| message_size > limit) {
            return Err(Sifted::Violates(Violation::MessageSize(message_size)));
        }
        if header.fin
            && let Some(allowance) = &mut self.allowance
            && let Err(until) = allowance.take(now())
        {
            return Err(match allowance.rate.closes {
                true => Sifted::Violates(Violation::Rate),
                false => Sifted::Paused(until),
            });
        }
        self.message_size = if header.fin { 0 } else { message_size };
        Ok(())
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
            let mut sieve = Sieve::new(FrameLimits::default(), PAYLOAD);
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
                while let Sifted::Passes(bytes) = sieve.sift(&tracker, &awaited, Instant::now) {
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
            let limits = FrameLimits { frame_size, message_size, rate: None };
            let mut sieve = Sieve::new(limits, PAYLOAD);
            let (awaited, mut tracker) = (Awaited::default(), Tracker::default());
            let mut passed = Vec::new();
            let mut violation = None;
            for chunk in frames.concat().chunks(split) {
                sieve.feed(chunk);
                loop {
                    match sieve.sift(&tracker, &awaited, Instant::now) {
                        Sifted::Passes(bytes) => { tracker.feed(&bytes); passed.extend(bytes); }
                        Sifted::WantsMore | Sifted::Paused(_) => break,
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
        let limits = FrameLimits { frame_size: Some(100), ..FrameLimits::default() };
        let mut sieve = Sieve::new(limits, PAYLOAD);
        let pong = encode(0x8a, &PAYLOAD, None);
        sieve.feed(&pong);
        let sifted = sieve.sift(&Tracker::default(), &Awaited::default(), Instant::now);
        assert_eq!(sifted, Sifted::Passes(pong));
    }

    #[test]
    fn what_is_called_a_control_frame_is_no_way_round_the_limits() {
        for (frame_size, message_size, len, passes) in [
            (Some(100), None, 125, true),
            (Some(100), None, 126, false),
            (None, Some(100), 126, false),
            (Some(1000), Some(200), 200, true),
            (Some(1000), Some(200), 201, false),
            (None, None, 60_000, true),
        ] {
            let mut sieve =
                Sieve::new(FrameLimits { frame_size, message_size, rate: None }, PAYLOAD);
            let len: u16 = len;
            let header = [&[0x89, 126][..], &len.to_be_bytes()].concat();
            sieve.feed(&header);
            let sifted = sieve.sift(&Tracker::default(), &Awaited::default(), Instant::now);
            match passes {
                true => assert_eq!(sifted, Sifted::Passes(header)),
                false => assert_eq!(sifted, Sifted::Violates(Violation::FrameSize(len.into()))),
            }
        }
    }

    #[test]
    fn who_pauses_may_send_a_burst_and_then_as_many_as_there_is_time_for() {
        let rate = MessageRate { per_second: 10, burst: 3, closes: false };
        let mut allowance = Allowance { rate, full_at: None };
        let (start, interval) = (Instant::now(), Duration::from_millis(100));
        for _ in 0..3 {
            assert_eq!(allowance.take(start), Ok(()));
        }
        let soon = start + Duration::from_millis(60);
        assert_eq!(allowance.take(soon), Err(start + interval), "not yet a whole one");
        for next in (1..50).map(|n| start + n * interval) {
            assert_eq!(allowance.take(next), Ok(()));
            assert_eq!(allowance.take(next), Err(next + interval));
        }
        let later = start + Duration::from_secs(3600);
        for _ in 0..3 {
            assert_eq!(allowance.take(later), Ok(()));
        }
        assert_eq!(allowance.take(later), Err(later + interval), "no more after a long pause");
    }

    #[test]
    fn whoever_keeps_to_the_rate_never_waits() {
        for burst in [1, 10] {
            let rate = MessageRate { per_second: 100, burst, closes: true };
            let mut allowance = Allowance { rate, full_at: None };
            let start = Instant::now();
            for message in 0..1_000 {
                let now = start + message * Duration::from_millis(10);
                assert_eq!(allowance.take(now), Ok(()), "{message}");
            }
        }
    }

    #[test]
    fn only_a_counted_message_is_paused_for() {
        let rate = Some(MessageRate { per_second: 1, burst: 1, closes: false });
        let mut sieve = Sieve::new(FrameLimits { rate, ..FrameLimits::default() }, PAYLOAD);
        let (tracker, awaited, now) = (Tracker::default(), Awaited::default(), Instant::now());
        let message = encode(0x81, b"counted", None);
        let close = encode(0x88, &[0x03, 0xe8], None);
        sieve.feed(&message);
        assert_eq!(sieve.sift(&tracker, &awaited, || now), Sifted::Passes(message.clone()));
        // Nothing is left, and a part of a header is no message.
        sieve.feed(&close[..1]);
        assert_eq!(sieve.sift(&tracker, &awaited, || now), Sifted::WantsMore);
        sieve.feed(&close[1..]);
        assert_eq!(sieve.sift(&tracker, &awaited, || now), Sifted::Passes(close));
        sieve.feed(&message);
        let until = now + Duration::from_secs(1);
        assert_eq!(sieve.sift(&tracker, &awaited, || now), Sifted::Paused(until));
        assert_eq!(sieve.sift(&tracker, &awaited, || until), Sifted::Passes(message));
    }

    #[test]
    fn what_has_passed_leaves_no_buffer_behind() {
        let limits = FrameLimits { message_size: Some(100), ..FrameLimits::default() };
        let mut sieve = Sieve::new(limits, PAYLOAD);
        let (tracker, awaited) = (Tracker::default(), Awaited::default());
        let messages = encode(0x82, &[0; 100], None).repeat(600);
        for cut in [0, 1] {
            sieve.feed(&messages);
            sieve.feed(&messages[..cut]);
            let sifted = sieve.sift(&tracker, &awaited, Instant::now);
            assert_eq!(sifted, Sifted::Passes(messages.clone()));
            assert_eq!(sieve.held.len(), cut);
            assert!(sieve.held.capacity() <= 16, "{}", sieve.held.capacity());
            sieve.give_up();
        }
        awaited.count.set(1);
        sieve.feed(&encode(0x8a, &PAYLOAD, None));
        assert_eq!(sieve.sift(&tracker, &awaited, Instant::now), Sifted::WantsMore);
        assert_eq!((sieve.held.capacity(), awaited.count.get()), (0, 0));
    }
}
