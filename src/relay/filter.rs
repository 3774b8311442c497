//! Removes the answers to our own Pings and enforces limits, by frame headers only.
//!
//! Sessions that have limits or send Pings have a filter in front of the tracker of a direction. It
//! holds back bytes that it cannot decide about yet: an incomplete header, a frame that may turn out
//! to be our Pong, and messages that exceed the rate. Limits are checked before the payload arrives.

use std::{
    cell::Cell,
    fmt, mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    frame::{FrameHeader, MAX_CONTROL_PAYLOAD, PingPayload, opcode, unmasked},
    tracker::Tracker,
};
use crate::domain::session::ending::Ending;
use crate::token_bucket::TokenBucket;

/// Limits for the frames of one side. `None` means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameLimits {
    /// Most payload bytes of one frame.
    pub frame_size: Option<u64>,
    /// Most payload bytes of one message, all fragments together.
    pub message_size: Option<u64>,
    pub rate: Option<MessageRate>,
}

/// A limit for the rate of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageRate {
    /// Messages per second, at least 1.
    pub per_second: u32,
    /// Messages at once after a pause, at least 1. A pause ends to the millisecond, so a burst of less
    /// than two milliseconds' worth of messages does not reach the full rate.
    pub burst: u32,
    /// Whether exceeding the rate ends the session. Otherwise the sender has to wait.
    pub closes: bool,
}

/// Which limit a side has exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitViolation {
    /// A frame of this many payload bytes exceeds [`FrameLimits::frame_size`].
    FrameSize(u64),
    /// A message of at least this many payload bytes exceeds [`FrameLimits::message_size`].
    MessageSize(u64),
    /// [`FrameLimits::rate`] is exceeded.
    Rate,
}

impl LimitViolation {
    pub fn ending(self) -> Ending {
        match self {
            Self::FrameSize(_) => Ending::FrameTooLarge,
            Self::MessageSize(_) => Ending::MessageTooLarge,
            Self::Rate => Ending::MessageRateExceeded,
        }
    }
}

impl fmt::Display for LimitViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.ending().row().reason)?;
        match self {
            Self::FrameSize(size) => write!(f, ": {size} bytes"),
            Self::MessageSize(size) => write!(f, ": at least {size} bytes"),
            Self::Rate => Ok(()),
        }
    }
}

/// The messages that one side may send now.
#[derive(Debug)]
struct Allowance {
    rate: MessageRate,
    bucket: TokenBucket,
}

impl Allowance {
    fn new(rate: MessageRate) -> Self {
        Self { rate, bucket: TokenBucket::new(rate.burst.into()) }
    }

    /// Counts one message.
    ///
    /// # Errors
    /// Returns when the message is allowed, if that is later.
    fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let per_second = f64::from(self.rate.per_second);
        let capacity = self.rate.burst.into();
        self.bucket.refill(per_second, Duration::from_secs(1), capacity, now.into_std());
        if !self.bucket.has(1.0) {
            return Err(now + self.bucket.time_to_one(per_second));
        }
        self.bucket.take(self.bucket.tokens().min(1.0));
        Ok(())
    }
}

/// The Pongs that one side owes to our Pings.
#[derive(Debug, Default)]
pub struct AwaitedPongs {
    pub(super) count: Cell<u32>,
    pub(super) received_bytes: Cell<u64>,
}

impl AwaitedPongs {
    fn received(&self, len: usize) {
        self.count.set(self.count.get() - 1);
        self.received_bytes.set(self.received_bytes.get() + len as u64);
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct FrameFilter {
    limits: FrameLimits,
    allowance: Option<Allowance>,
    ping_payload: PingPayload,
    /// Bytes that were received and not released.
    held: Vec<u8>,
    /// Payload bytes of the current message so far.
    message_size: u64,
    /// Runs while the sender has to wait.
    pause: Option<Pin<Box<Sleep>>>,
}

/// What to do with the bytes that a filter holds.
#[derive(Debug, PartialEq, Eq)]
pub enum FilterVerdict {
    /// Relay these bytes and ask again.
    Pass(Vec<u8>),
    /// Read more.
    NeedMore,
    /// Relay nothing and read nothing until then.
    Pause(Instant),
    /// End the session.
    OverLimit(LimitViolation),
}

impl FrameFilter {
    /// Creates a filter that enforces `limits` and removes Pongs with `ping_payload`.
    pub fn new(limits: FrameLimits, ping_payload: PingPayload) -> Self {
        let allowance = limits.rate.map(Allowance::new);
        Self { limits, allowance, ping_payload, held: Vec::new(), message_size: 0, pause: None }
    }

    /// Adds received bytes.
    pub fn push(&mut self, chunk: &[u8]) {
        self.held.extend_from_slice(chunk);
    }

    /// Returns whether no bytes are held back.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Returns whether the next bytes may be relayed without asking this filter.
    pub fn passes_all(&self, awaited: &AwaitedPongs) -> bool {
        self.is_empty() && awaited.count.get() == 0 && self.limits == FrameLimits::default()
    }

    /// Waits for the end of a [pause](FilterVerdict::Pause).
    pub fn poll_pause(&mut self, until: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let pause = self.pause.get_or_insert_with(|| Box::pin(sleep_until(until)));
        ready!(pause.as_mut().poll(cx));
        self.pause = None;
        Poll::Ready(())
    }

    /// Removes and returns all bytes that are held back, without checking them.
    pub fn take_held(&mut self) -> Vec<u8> {
        self.pause = None;
        mem::take(&mut self.held)
    }

    /// Decides about the bytes that are held back. `tracker` has followed everything that was relayed
    /// before them. The clock is read only for messages whose rate is limited.
    pub fn check(
        &mut self,
        tracker: &Tracker,
        awaited: &AwaitedPongs,
        now: impl Fn() -> Instant,
    ) -> FilterVerdict {
        let mut tracker = tracker.clone();
        let mut passed = 0;
        let verdict = loop {
            if passed == self.held.len() {
                break FilterVerdict::NeedMore;
            }
            if tracker.at_boundary() {
                match self.our_pong(&self.held[passed..], awaited) {
                    Pong::Complete(len) => {
                        self.held.drain(passed..passed + len);
                        awaited.received(len);
                        continue;
                    }
                    Pong::Possible => break FilterVerdict::NeedMore,
                    Pong::No => {}
                }
                let Some(header) = FrameHeader::parse(&self.held[passed..]) else {
                    break FilterVerdict::NeedMore;
                };
                if let Err(verdict) = self.check_limits(&header, &now) {
                    break verdict;
                }
            }
            passed += tracker.feed_frame(&self.held[passed..]).used;
        };
        // The rest may be held for seconds, so it gets no more capacity than it needs.
        if passed > 0 {
            let rest = self.held.split_off(passed);
            return FilterVerdict::Pass(mem::replace(&mut self.held, rest));
        }
        if self.held.is_empty() {
            self.held = Vec::new();
        }
        verdict
    }

    fn our_pong(&self, bytes: &[u8], awaited: &AwaitedPongs) -> Pong {
        let head = 0x80 | opcode::PONG;
        let len = self.ping_payload.len() as u8;
        let is_like = bytes[0] == head && bytes.get(1).is_none_or(|second| second & 0x7f == len);
        match FrameHeader::parse(bytes) {
            _ if !is_like || awaited.count.get() == 0 => Pong::No,
            None => Pong::Possible,
            Some(header) => {
                let body = &bytes[header.header_len..];
                let body = &body[..body.len().min(self.ping_payload.len())];
                let is_same =
                    unmasked(body, header.mask).zip(self.ping_payload).all(|(a, b)| a == b);
                match (is_same, body.len() == self.ping_payload.len()) {
                    (false, _) => Pong::No,
                    (true, true) => Pong::Complete(header.header_len + body.len()),
                    (true, false) => Pong::Possible,
                }
            }
        }
    }

    /// Checks the limits for a frame that starts.
    ///
    /// # Errors
    /// The verdict if the frame may not be relayed now.
    fn check_limits(
        &mut self,
        header: &FrameHeader,
        now: impl Fn() -> Instant,
    ) -> Result<(), FilterVerdict> {
        let size = header.payload_len;
        if header.is_control() {
            let limit = self.limits.frame_size.into_iter().chain(self.limits.message_size).min();
            // Valid control frames are never too large.
            return match limit.is_some_and(|limit| size > limit.max(MAX_CONTROL_PAYLOAD as u64)) {
                true => Err(FilterVerdict::OverLimit(LimitViolation::FrameSize(size))),
                false => Ok(()),
            };
        }
        if self.limits.frame_size.is_some_and(|limit| size > limit) {
            return Err(FilterVerdict::OverLimit(LimitViolation::FrameSize(size)));
        }
        let message_size = self.message_size.saturating_add(size);
        if self.limits.message_size.is_some_and(|limit| message_size > limit) {
            return Err(FilterVerdict::OverLimit(LimitViolation::MessageSize(message_size)));
        }
        if header.fin
            && let Some(allowance) = &mut self.allowance
            && let Err(until) = allowance.take(now())
        {
            return Err(match allowance.rate.closes {
                true => FilterVerdict::OverLimit(LimitViolation::Rate),
                false => FilterVerdict::Pause(until),
            });
        }
        self.message_size = if header.fin { 0 } else { message_size };
        Ok(())
    }
}

enum Pong {
    Complete(usize),
    Possible,
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
            // Differs from ours in one byte.
            Just(PAYLOAD.to_vec()),
            Just(b"payload?".to_vec()),
        ];
        (first, payload, any::<Option<[u8; 4]>>()).prop_map(|(first, payload, mask)| {
            // Another Pong with our payload would count as ours.
            let first = if payload == PAYLOAD { 0x82 } else { first };
            encode(first, &payload, mask)
        })
    }

    proptest! {
        /// All other frames pass, however the stream is cut, and our Pongs do not.
        #[test]
        fn only_our_pongs_are_swallowed(
            frames in prop::collection::vec((frame(), any::<bool>(), any::<Option<[u8; 4]>>()), 0..12),
            sizes in prop::collection::vec(1usize..60, 1..6),
        ) {
            let mut filter = FrameFilter::new(FrameLimits::default(), PAYLOAD);
            let awaited = AwaitedPongs::default();
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
                filter.push(chunk);
                while let FilterVerdict::Pass(bytes) = filter.check(&tracker, &awaited, Instant::now) {
                    tracker.feed(&bytes);
                    passed.extend(bytes);
                }
            }
            let passed_len = passed.len();
            prop_assert_eq!(passed, expected);
            prop_assert_eq!(awaited.count.get(), 0);
            prop_assert_eq!(awaited.received_bytes.get() as usize, stream.len() - passed_len);
            prop_assert!(filter.is_empty());
        }

        /// Exactly the frames within the limits pass.
        #[test]
        fn limits_are_kept(
            frames in prop::collection::vec(frame(), 1..12),
            frame_size in 1u64..40,
            message_size in 1u64..60,
            split in 1usize..30,
        ) {
            let (frame_size, message_size) = (Some(frame_size), Some(message_size));
            let limits = FrameLimits { frame_size, message_size, rate: None };
            let mut filter = FrameFilter::new(limits, PAYLOAD);
            let (awaited, mut tracker) = (AwaitedPongs::default(), Tracker::default());
            let mut passed = Vec::new();
            let mut violation = None;
            for chunk in frames.concat().chunks(split) {
                filter.push(chunk);
                loop {
                    match filter.check(&tracker, &awaited, Instant::now) {
                        FilterVerdict::Pass(bytes) => { tracker.feed(&bytes); passed.extend(bytes); }
                        FilterVerdict::NeedMore | FilterVerdict::Pause(_) => break,
                        FilterVerdict::OverLimit(found) => { violation = violation.or(Some(found)); break }
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
    fn a_pong_that_answers_no_ping_of_ours_is_relayed() {
        let limits = FrameLimits { frame_size: Some(100), ..FrameLimits::default() };
        let mut filter = FrameFilter::new(limits, PAYLOAD);
        let pong = encode(0x8a, &PAYLOAD, None);
        filter.push(&pong);
        let verdict = filter.check(&Tracker::default(), &AwaitedPongs::default(), Instant::now);
        assert_eq!(verdict, FilterVerdict::Pass(pong));
    }

    #[test]
    fn control_frames_do_not_evade_the_limits() {
        for (frame_size, message_size, len, passes) in [
            (Some(100), None, 125, true),
            (Some(100), None, 126, false),
            (None, Some(100), 126, false),
            (Some(1000), Some(200), 200, true),
            (Some(1000), Some(200), 201, false),
            (None, None, 60_000, true),
        ] {
            let mut filter =
                FrameFilter::new(FrameLimits { frame_size, message_size, rate: None }, PAYLOAD);
            let len: u16 = len;
            let header = [&[0x89, 126][..], &len.to_be_bytes()].concat();
            filter.push(&header);
            let verdict = filter.check(&Tracker::default(), &AwaitedPongs::default(), Instant::now);
            match passes {
                true => assert_eq!(verdict, FilterVerdict::Pass(header)),
                false => assert_eq!(
                    verdict,
                    FilterVerdict::OverLimit(LimitViolation::FrameSize(len.into()))
                ),
            }
        }
    }

    #[test]
    fn after_a_pause_a_burst_passes_and_then_the_rate_applies() {
        let rate = MessageRate { per_second: 10, burst: 3, closes: false };
        let mut allowance = Allowance::new(rate);
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
    fn a_sender_within_the_rate_never_waits() {
        for burst in [1, 10] {
            let rate = MessageRate { per_second: 100, burst, closes: true };
            let mut allowance = Allowance::new(rate);
            let start = Instant::now();
            for message in 0..1_000 {
                let now = start + message * Duration::from_millis(10);
                assert_eq!(allowance.take(now), Ok(()), "{message}");
            }
        }
    }

    #[test]
    fn only_data_messages_wait_for_the_rate() {
        let rate = Some(MessageRate { per_second: 1, burst: 1, closes: false });
        let mut filter = FrameFilter::new(FrameLimits { rate, ..FrameLimits::default() }, PAYLOAD);
        let (tracker, awaited, now) = (Tracker::default(), AwaitedPongs::default(), Instant::now());
        let message = encode(0x81, b"counted", None);
        let close = encode(0x88, &[0x03, 0xe8], None);
        filter.push(&message);
        assert_eq!(filter.check(&tracker, &awaited, || now), FilterVerdict::Pass(message.clone()));
        // The rate is used up, but a part of a header is not a message.
        filter.push(&close[..1]);
        assert_eq!(filter.check(&tracker, &awaited, || now), FilterVerdict::NeedMore);
        filter.push(&close[1..]);
        assert_eq!(filter.check(&tracker, &awaited, || now), FilterVerdict::Pass(close));
        filter.push(&message);
        let until = now + Duration::from_secs(1);
        assert_eq!(filter.check(&tracker, &awaited, || now), FilterVerdict::Pause(until));
        assert_eq!(filter.check(&tracker, &awaited, || until), FilterVerdict::Pass(message));
    }

    #[test]
    fn no_buffer_remains_after_everything_has_passed() {
        let limits = FrameLimits { message_size: Some(100), ..FrameLimits::default() };
        let mut filter = FrameFilter::new(limits, PAYLOAD);
        let (tracker, awaited) = (Tracker::default(), AwaitedPongs::default());
        let messages = encode(0x82, &[0; 100], None).repeat(600);
        for cut in [0, 1] {
            filter.push(&messages);
            filter.push(&messages[..cut]);
            let verdict = filter.check(&tracker, &awaited, Instant::now);
            assert_eq!(verdict, FilterVerdict::Pass(messages.clone()));
            assert_eq!(filter.held.len(), cut);
            assert!(filter.held.capacity() <= 16, "{}", filter.held.capacity());
            filter.take_held();
        }
        awaited.count.set(1);
        filter.push(&encode(0x8a, &PAYLOAD, None));
        assert_eq!(filter.check(&tracker, &awaited, Instant::now), FilterVerdict::NeedMore);
        assert_eq!((filter.held.capacity(), awaited.count.get()), (0, 0));
    }
}
