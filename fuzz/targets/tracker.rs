//! The frame tracker against a naive reader of the whole stream, at every chunk's end.
//!
//! Input: a byte whose low half is a number of chunk sizes, these sizes (0: an empty chunk), then
//! the stream, which is cut by them in turn; without sizes it is one chunk.

#![no_main]

use std::ops::Range;

use libfuzzer_sys::fuzz_target;
use wsbalancer::relay::tracker::{Progress, Tracker};

/// Where one frame of the stream ends, perhaps past what is there, and what it then means.
struct Frame {
    end: u128,
    message: bool,
    close: Option<Option<u16>>,
}

/// The frames of a stream by plain indexing (RFC 6455 §5.2): no state, all bytes at hand.
fn reference(stream: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut at = 0;
    while let Some(&[first, second]) = stream.get(at..at + 2) {
        let number = |range: Range<usize>| -> Option<u64> {
            Some(stream.get(range)?.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
        };
        let (len, mut body) = match second % 128 {
            126 => (number(at + 2..at + 4), at + 4),
            127 => (number(at + 2..at + 10), at + 10),
            len => (Some(len.into()), at + 2),
        };
        let mut key = [0; 2];
        if second >= 128 {
            body += 4;
            let Some(mask) = stream.get(body - 4..body) else { break };
            key.copy_from_slice(&mask[..2]);
        }
        let Some(len) = len else { break };
        let close = first % 16 == 8;
        let code = || match stream.get(body..body + 2) {
            Some(&[high, low]) if len >= 2 => {
                Some(u16::from(high ^ key[0]) * 256 + u16::from(low ^ key[1]))
            }
            _ => None,
        };
        let end = body as u128 + u128::from(len);
        frames.push(Frame {
            end,
            message: first >= 128 && first % 16 < 8,
            close: close.then(code),
        });
        match usize::try_from(end) {
            Ok(end) if end <= stream.len() => at = end,
            _ => break,
        }
    }
    frames
}

fuzz_target!(|input: &[u8]| {
    let Some((count, rest)) = input.split_first() else { return };
    let Some((sizes, stream)) = rest.split_at_checked(usize::from(count % 16)) else { return };
    // Sizes of nothing but zeros would never end.
    let sizes = if sizes.iter().any(|size| *size > 0) { sizes } else { &[] };

    let frames = reference(stream);
    let before_close = frames.iter().take_while(|frame| frame.close.is_none()).count();
    let mut tracker = Tracker::default();
    let (mut fed, mut passed) = (0, 0);
    let mut turns = sizes.iter().cycle();
    while fed < stream.len() {
        let size = turns.next().map_or(stream.len(), |size| usize::from(*size));
        let end = stream.len().min(fed + size);
        let progress = tracker.feed(&stream[fed..end]);

        let ended = frames[passed..].iter().take_while(|frame| frame.end <= end as u128).count();
        let new = &frames[passed..passed + ended];
        let expected = Progress {
            frames: new.len() as u64,
            messages: new.iter().filter(|frame| frame.message).count() as u64,
            boundary: new
                .get(..ended.min(before_close.saturating_sub(passed)))
                .and_then(|new| new.last())
                .map(|frame| frame.end as usize - fed),
        };
        assert_eq!(progress, expected, "bytes {fed} to {end}");
        passed += ended;
        fed = end;

        let whole = &frames[..passed];
        let close = whole.iter().find_map(|frame| frame.close);
        let boundary = whole.last().map_or(0, |frame| frame.end as usize);
        assert_eq!(tracker.at_boundary(), boundary == fed, "after {fed} bytes");
        assert_eq!(tracker.closed(), close.is_some(), "after {fed} bytes");
        assert_eq!(tracker.close_code(), close.flatten(), "after {fed} bytes");
    }
});
