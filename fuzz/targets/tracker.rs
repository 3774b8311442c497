//! Fuzzes the frame tracker, against a simple reader of the whole stream, at the end of every chunk.
//!
//! Input: a byte whose low four bits are the number of chunk sizes, then the sizes with one byte each,
//! then the stream. The stream is cut into chunks of these sizes in turn; 0 makes an empty chunk.
//! Without sizes the stream is one chunk.

#![no_main]

use std::ops::Range;

use libfuzzer_sys::fuzz_target;
use wsbalancer::relay::tracker::{Progress, Tracker};

/// One frame of the stream.
struct Frame {
    /// The position of its end, possibly after the end of the stream.
    end: u128,
    /// Whether it is the last frame of a message.
    ends_message: bool,
    /// Whether it is a Close frame, with its status code if it has one.
    close: Option<Option<u16>>,
}

/// Parses the frames of a whole stream by plain indexing (RFC 6455 §5.2).
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
            ends_message: first >= 128 && first % 16 < 8,
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
    // With sizes that are all zero, the loop would never end.
    let sizes = if sizes.iter().any(|size| *size > 0) { sizes } else { &[] };

    let frames = reference(stream);
    let before_close = frames.iter().take_while(|frame| frame.close.is_none()).count();
    let mut tracker = Tracker::default();
    let (mut fed, mut frames_done) = (0, 0);
    let mut chunk_sizes = sizes.iter().cycle();
    while fed < stream.len() {
        let size = chunk_sizes.next().map_or(stream.len(), |size| usize::from(*size));
        let end = stream.len().min(fed + size);
        let progress = tracker.feed(&stream[fed..end]);

        let ended =
            frames[frames_done..].iter().take_while(|frame| frame.end <= end as u128).count();
        let new = &frames[frames_done..frames_done + ended];
        let expected = Progress {
            frames: new.len() as u64,
            messages: new.iter().filter(|frame| frame.ends_message).count() as u64,
            boundary: new
                .get(..ended.min(before_close.saturating_sub(frames_done)))
                .and_then(|new| new.last())
                .map(|frame| frame.end as usize - fed),
        };
        assert_eq!(progress, expected, "bytes {fed} to {end}");
        frames_done += ended;
        fed = end;

        let whole = &frames[..frames_done];
        let close = whole.iter().find_map(|frame| frame.close);
        let boundary = whole.last().map_or(0, |frame| frame.end as usize);
        assert_eq!(tracker.at_boundary(), boundary == fed, "after {fed} bytes");
        assert_eq!(tracker.closed(), close.is_some(), "after {fed} bytes");
        assert_eq!(tracker.close_code(), close.flatten(), "after {fed} bytes");
    }
});
