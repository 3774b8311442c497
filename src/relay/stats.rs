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

/// What has begun the end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstEnd {
    /// This direction brought a Close frame.
    Close(Direction),
    /// This direction ended without one.
    Vanished(Direction),
    /// The client sent what it may not.
    Violated,
}

/// Both directions of one tunnel.
#[derive(Debug, Default)]
pub struct TunnelStats {
    /// From the client to the pod.
    pub up: DirectionStats,
    /// From the pod to the client.
    pub down: DirectionStats,
    /// See [`FirstEnd`], as a number from 1 on.
    first_end: AtomicU8,
}

impl TunnelStats {
    /// Bytes of both directions.
    pub fn bytes(&self) -> u64 {
        self.up.bytes() + self.down.bytes()
    }

    /// What began the end, if it has begun.
    pub fn first_end(&self) -> Option<FirstEnd> {
        match self.first_end.load(Relaxed) {
            0 => None,
            1 => Some(FirstEnd::Close(Direction::Up)),
            2 => Some(FirstEnd::Close(Direction::Down)),
            3 => Some(FirstEnd::Vanished(Direction::Up)),
            4 => Some(FirstEnd::Vanished(Direction::Down)),
            _ => Some(FirstEnd::Violated),
        }
    }

    /// Takes in how a direction ends, unless another end has come before.
    pub(super) fn end(&self, end: FirstEnd) {
        let number = match end {
            FirstEnd::Close(direction) => direction as u8 + 1,
            FirstEnd::Vanished(direction) => direction as u8 + 3,
            FirstEnd::Violated => 5,
        };
        // Both pumps are on one thread.
        if self.first_end.load(Relaxed) == 0 {
            self.first_end.store(number, Relaxed);
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
        if tracker.closed() {
            self.end(FirstEnd::Close(direction));
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
