//! Live figures of a tunnel, written by its pumps and read by anyone.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering::Relaxed};

use super::tracker::{Progress, Tracker};

/// The way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// From the client to the pod.
    Up,
    /// From the pod to the client.
    Down,
}

/// Both directions of one tunnel.
#[derive(Debug, Default)]
pub struct TunnelStats {
    /// From the client to the pod.
    pub up: DirectionStats,
    /// From the pod to the client.
    pub down: DirectionStats,
    /// Whose Close frame came first, as a direction's number and one.
    first_close: AtomicU8,
}

impl TunnelStats {
    /// Bytes of both directions.
    pub fn bytes(&self) -> u64 {
        self.up.bytes() + self.down.bytes()
    }

    /// The direction of the first Close frame, if there was one.
    pub fn first_close(&self) -> Option<Direction> {
        match self.first_close.load(Relaxed) {
            0 => None,
            1 => Some(Direction::Up),
            _ => Some(Direction::Down),
        }
    }

    pub(super) fn record(
        &self,
        direction: Direction,
        len: usize,
        progress: Progress,
        tracker: &Tracker,
    ) {
        self.of(direction).record(len, progress, tracker);
        // Both pumps are on one thread.
        if tracker.closed() && self.first_close.load(Relaxed) == 0 {
            self.first_close.store(direction as u8 + 1, Relaxed);
        }
    }

    /// The figures of one direction.
    pub fn of(&self, direction: Direction) -> &DirectionStats {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }
}

/// Figures of one direction. Only its pump writes them, so plain loads and stores suffice.
#[derive(Debug, Default)]
pub struct DirectionStats {
    bytes: AtomicU64,
    frames: AtomicU64,
    messages: AtomicU64,
    close_code: AtomicU16,
}

impl DirectionStats {
    /// Bytes read from the sender.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Whole frames, control frames included.
    pub fn frames(&self) -> u64 {
        self.frames.load(Relaxed)
    }

    /// Whole data messages.
    pub fn messages(&self) -> u64 {
        self.messages.load(Relaxed)
    }

    /// Code of the Close frame that the sender sent, if it sent one with a code.
    pub fn close_code(&self) -> Option<u16> {
        Some(self.close_code.load(Relaxed)).filter(|code| *code != 0)
    }

    fn record(&self, len: usize, progress: Progress, tracker: &Tracker) {
        let add = |counter: &AtomicU64, n: u64| counter.store(counter.load(Relaxed) + n, Relaxed);
        add(&self.bytes, len as u64);
        if progress.frames > 0 {
            add(&self.frames, progress.frames);
            add(&self.messages, progress.messages);
            if let Some(code) = tracker.close_code() {
                self.close_code.store(code, Relaxed);
            }
        }
    }
}
