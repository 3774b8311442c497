//! Live statistics of a tunnel. Its pumps write them, and any thread may read them.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering::Relaxed};

use super::tracker::{Progress, Tracker};
use crate::domain::session::{ending::Ending, side::Side};

/// Statistics of both directions of one tunnel.
#[derive(Debug, Default)]
pub struct TunnelStats {
    pub from_client: DirectionStats,
    pub from_pod: DirectionStats,
    /// Index in [`Ending::ALL`] of the first ending, plus 1; 0 while there is none.
    first_ending: AtomicU8,
}

impl TunnelStats {
    /// Returns the bytes of both directions.
    pub fn bytes(&self) -> u64 {
        self.from_client.bytes() + self.from_pod.bytes()
    }

    /// Returns the first ending that the pumps have seen.
    pub fn first_ending(&self) -> Option<Ending> {
        let index = usize::from(self.first_ending.load(Relaxed)).checked_sub(1)?;
        Ending::ALL.get(index).copied()
    }

    /// Stores how a direction ends, unless an ending is stored already.
    pub(super) fn set_ending(&self, ending: Ending) {
        // Both pumps are on one thread, so there is no race.
        if self.first_ending.load(Relaxed) == 0
            && let Some(index) = Ending::ALL.iter().position(|known| *known == ending)
        {
            self.first_ending.store(index as u8 + 1, Relaxed);
        }
    }

    pub(super) fn record(&self, from: Side, len: usize, progress: Progress, tracker: &Tracker) {
        self.from(from).record(len, progress, tracker);
        if tracker.closed() {
            self.set_ending(Ending::Closed(from));
        }
    }

    /// Returns the statistics of what `side` has sent.
    pub fn from(&self, side: Side) -> &DirectionStats {
        match side {
            Side::Client => &self.from_client,
            Side::Pod => &self.from_pod,
        }
    }
}

/// Statistics of one direction. Only its pump writes them, so plain loads and stores suffice.
#[derive(Debug, Default)]
pub struct DirectionStats {
    bytes: AtomicU64,
    frames: AtomicU64,
    messages: AtomicU64,
    close_code: AtomicU16,
}

impl DirectionStats {
    /// Returns the bytes read from the sender.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Returns the number of complete frames, control frames included.
    pub fn frames(&self) -> u64 {
        self.frames.load(Relaxed)
    }

    /// Returns the number of complete data messages.
    pub fn messages(&self) -> u64 {
        self.messages.load(Relaxed)
    }

    /// Returns the code of the sender's Close frame, if it sent one with a code.
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
