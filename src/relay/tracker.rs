//! Tracks the frames in one direction of a tunnel without changing them.
//!
//! A pure state machine over frame *headers*: it skips payload by its length and neither unmasks nor
//! copies it. It counts frames and messages, finds the last frame boundary of each chunk (the only
//! place where another frame may be injected), and reads the code of a Close frame.

use super::frame::{FrameHeader, MAX_HEADER_LEN, opcode};

/// Tracks the frames of one direction across chunks.
#[derive(Clone, Debug, Default)]
pub struct Tracker {
    /// The start of a header that the last chunk did not complete.
    partial: [u8; MAX_HEADER_LEN],
    partial_len: u8,
    /// Payload bytes of the current frame that are still missing.
    payload_left: u64,
    /// Whether the current frame is the last of a data message.
    ends_message: bool,
    close: Close,
    /// Whether a complete Close frame has passed.
    closed: bool,
}

/// The Close frame of this direction, as far as it has been received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Close {
    #[default]
    None,
    /// The header is complete, the status code is not.
    Code {
        key: [u8; 2],
        first: Option<u8>,
    },
    Seen(Option<u16>),
}

/// What one chunk contained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Frames that ended in this chunk, control frames included.
    pub frames: u64,
    /// Data messages that ended in this chunk.
    pub messages: u64,
    /// Offset of the last frame boundary in the chunk, if a frame ended in it. Another frame may be
    /// injected there. There is no boundary at the end of a Close frame or after it.
    pub boundary: Option<usize>,
}

/// Progress within one frame.
pub(super) struct Step {
    /// Bytes that were tracked.
    pub used: usize,
    /// Whether the frame ended with the last of them.
    pub ended: bool,
}

impl Tracker {
    /// Tracks the next bytes of the direction.
    pub fn feed(&mut self, chunk: &[u8]) -> Progress {
        let mut progress = Progress::default();
        let mut at = 0;
        while at < chunk.len() {
            let step = self.feed_frame(&chunk[at..]);
            at += step.used;
            if step.ended {
                progress.frames += 1;
                progress.messages += u64::from(self.ends_message);
                if !self.closed {
                    progress.boundary = Some(at);
                }
            }
        }
        progress
    }

    /// Tracks the next bytes up to the end of a frame, or all of them.
    pub(super) fn feed_frame(&mut self, bytes: &[u8]) -> Step {
        let mut used = 0;
        if self.payload_left == 0 {
            let Some((header, header_len)) = self.next_header(bytes) else {
                return Step { used: bytes.len(), ended: false };
            };
            self.start_frame(header);
            used = header_len;
        }
        if self.payload_left > 0 {
            let left = usize::try_from(self.payload_left).unwrap_or(usize::MAX);
            let payload = &bytes[used..][..left.min(bytes.len() - used)];
            self.read_close_code(payload);
            self.payload_left -= payload.len() as u64;
            used += payload.len();
        }
        let ended = self.payload_left == 0;
        // The first frame that ends after the start of a Close frame is that Close frame.
        self.closed |= ended && self.close != Close::None;
        Step { used, ended }
    }

    /// Returns whether the bytes so far end with a complete frame. True before the first byte.
    pub fn at_boundary(&self) -> bool {
        self.payload_left == 0 && self.partial_len == 0
    }

    /// Returns whether a complete Close frame has passed. No frame may follow it (RFC 6455 §5.5.1).
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// Returns the status code of the complete Close frame, if it has one.
    pub fn close_code(&self) -> Option<u16> {
        match self.close {
            Close::Seen(code) if self.closed => code,
            _ => None,
        }
    }

    /// Returns the header that ends in `bytes`, and how many of `bytes` belong to it. If the header is
    /// incomplete, stores all of them for the next chunk.
    fn next_header(&mut self, bytes: &[u8]) -> Option<(FrameHeader, usize)> {
        let stored = usize::from(self.partial_len);
        if stored == 0
            && let Some(header) = FrameHeader::parse(bytes)
        {
            return Some((header, header.header_len));
        }
        let room = (MAX_HEADER_LEN - stored).min(bytes.len());
        self.partial[stored..stored + room].copy_from_slice(&bytes[..room]);
        match FrameHeader::parse(&self.partial[..stored + room]) {
            Some(header) => {
                self.partial_len = 0;
                Some((header, header.header_len - stored))
            }
            None => {
                self.partial_len = (stored + room) as u8;
                None
            }
        }
    }

    fn start_frame(&mut self, header: FrameHeader) {
        self.payload_left = header.payload_len;
        self.ends_message = header.fin && !header.is_control();
        if header.opcode == opcode::CLOSE && self.close == Close::None {
            self.close = if header.payload_len >= 2 {
                let key = header.mask.unwrap_or_default();
                Close::Code { key: [key[0], key[1]], first: None }
            } else {
                Close::Seen(None)
            };
        }
    }

    fn read_close_code(&mut self, payload: &[u8]) {
        for &byte in payload.iter().take(2) {
            match self.close {
                Close::Code { key, first: None } => {
                    self.close = Close::Code { key, first: Some(byte ^ key[0]) };
                }
                Close::Code { key, first: Some(first) } => {
                    self.close = Close::Seen(Some(u16::from_be_bytes([first, byte ^ key[1]])));
                }
                Close::None | Close::Seen(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One frame of a test.
    #[derive(Clone, Debug)]
    struct Frame {
        fin: bool,
        opcode: u8,
        mask: Option<[u8; 4]>,
        payload: Vec<u8>,
    }

    impl Frame {
        fn encode(&self) -> Vec<u8> {
            let mut bytes = vec![u8::from(self.fin) << 7 | self.opcode];
            let masked = u8::from(self.mask.is_some()) << 7;
            match self.payload.len() {
                len @ 0..=125 => bytes.push(masked | len as u8),
                len @ 126..=65_535 => {
                    bytes.push(masked | 126);
                    bytes.extend((len as u16).to_be_bytes());
                }
                len => {
                    bytes.push(masked | 127);
                    bytes.extend((len as u64).to_be_bytes());
                }
            }
            bytes.extend(self.mask.iter().flatten());
            let key = self.mask.unwrap_or_default();
            bytes.extend(self.payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
            bytes
        }
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let opcode = prop_oneof![Just(0u8), Just(1), Just(2), Just(3), Just(9), Just(10)];
        let len = prop_oneof![4 => 0usize..130, 1 => 65_500usize..65_600];
        (any::<bool>(), opcode, any::<Option<[u8; 4]>>(), len, any::<u8>()).prop_map(
            |(fin, opcode, mask, len, fill)| Frame { fin, opcode, mask, payload: vec![fill; len] },
        )
    }

    /// The counts by a reference that needs no state.
    fn expected(frames: &[Frame]) -> (u64, u64) {
        let messages = frames.iter().filter(|frame| frame.fin && frame.opcode < 8).count();
        (frames.len() as u64, messages as u64)
    }

    fn feed_all<'a>(tracker: &mut Tracker, chunks: impl Iterator<Item = &'a [u8]>) -> (u64, u64) {
        chunks.map(|chunk| tracker.feed(chunk)).fold((0, 0), |(frames, messages), progress| {
            (frames + progress.frames, messages + progress.messages)
        })
    }

    proptest! {
        #[test]
        fn any_split_gives_the_counts_of_the_reference(
            frames in prop::collection::vec(frame(), 0..12),
            sizes in prop::collection::vec(1usize..40_000, 1..8),
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
            let mut tracker = Tracker::default();
            let mut rest = &bytes[..];
            let mut chunks = Vec::new();
            for size in sizes.iter().cycle() {
                if rest.is_empty() { break }
                let (chunk, left) = rest.split_at((*size).min(rest.len()));
                chunks.push(chunk);
                rest = left;
            }
            prop_assert_eq!(feed_all(&mut tracker, chunks.into_iter()), expected(&frames));
            prop_assert!(tracker.at_boundary());
        }

        #[test]
        fn boundaries_are_found_wherever_the_stream_is_cut(frames in prop::collection::vec(frame(), 1..4), cut in any::<prop::sample::Index>()) {
            let mut ends = vec![0];
            let mut bytes = Vec::new();
            for frame in &frames {
                bytes.extend(frame.encode());
                ends.push(bytes.len());
            }
            let cut = cut.index(bytes.len() + 1);
            let mut tracker = Tracker::default();
            let progress = tracker.feed(&bytes[..cut]);
            let last_end = ends.iter().copied().filter(|end| *end <= cut).max().unwrap();
            prop_assert_eq!(tracker.at_boundary(), ends.contains(&cut));
            prop_assert_eq!(progress.boundary.unwrap_or(0), last_end);
        }
    }

    #[test]
    fn a_split_at_any_byte_gives_the_same_result() {
        let close = Frame {
            fin: true,
            opcode: 8,
            mask: Some([9, 8, 7, 6]),
            payload: vec![0x03, 0xf4, b'x'],
        };
        let frames = [
            Frame { fin: false, opcode: 1, mask: Some([1, 2, 3, 4]), payload: vec![7; 200] },
            Frame { fin: true, opcode: 9, mask: None, payload: vec![] },
            Frame { fin: true, opcode: 0, mask: None, payload: vec![7; 3] },
            close,
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        for split in 0..=bytes.len() {
            let mut tracker = Tracker::default();
            let (left, right) = bytes.split_at(split);
            assert_eq!(feed_all(&mut tracker, [left, right].into_iter()), (4, 1), "at {split}");
            assert!(tracker.closed());
            assert_eq!(tracker.close_code(), Some(1012), "at {split}");
        }
        let mut tracker = Tracker::default();
        let one_by_one = feed_all(&mut tracker, bytes.chunks(1));
        assert_eq!((one_by_one, tracker.close_code()), ((4, 1), Some(1012)));
    }

    #[test]
    fn bytes_after_a_close_do_not_change_it() {
        let mut tracker = Tracker::default();
        tracker.feed(&[0x88, 2, 0x03, 0xe8, 0x81]);
        assert!(tracker.closed());
        assert_eq!(tracker.close_code(), Some(1000));
    }

    #[test]
    fn there_is_no_boundary_at_the_end_of_a_close_or_after_it() {
        let mut tracker = Tracker::default();
        let progress = tracker.feed(&[0x81, 1, b'x', 0x88, 0, 0x81, 1, b'y']);
        assert_eq!((progress.frames, progress.boundary), (3, Some(3)));
        assert_eq!(tracker.feed(&[0x81, 1, b'z']).boundary, None);
    }

    #[test]
    fn a_close_without_a_code_counts_as_a_close() {
        let mut tracker = Tracker::default();
        tracker.feed(&[0x88, 0x00]);
        assert!(tracker.closed());
        assert_eq!(tracker.close_code(), None);
    }

    #[test]
    fn an_incomplete_close_does_not_count_yet() {
        let mut tracker = Tracker::default();
        tracker.feed(&[0x88, 0x02, 0x03]);
        assert!(!tracker.closed());
        tracker.feed(&[0xe8]);
        assert!(tracker.closed());
        assert_eq!(tracker.close_code(), Some(1000));
    }
}
