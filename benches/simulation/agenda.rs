//! A queue of future events in virtual time.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    time::Duration,
};

/// Events by their time; events of the same time keep the order in which they were planned.
pub struct Agenda<E> {
    now: u64,
    plans: BinaryHeap<Plan<E>>,
    made: u64,
}

/// Nanoseconds since the start, and the number of earlier plans.
type At = (u64, u64);

struct Plan<E> {
    at: Reverse<At>,
    event: E,
}

impl<E> Agenda<E> {
    pub fn new() -> Self {
        Self { now: 0, plans: BinaryHeap::new(), made: 0 }
    }

    /// Returns the virtual time since the start.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.now)
    }

    /// Plans `event` for `after` this time from now.
    pub fn plan(&mut self, after: Duration, event: E) {
        self.made += 1;
        self.plans.push(Plan { at: Reverse((self.now + nanoseconds(after), self.made)), event });
    }

    /// Returns the next event before `end` and advances the time to it, or else to `end`.
    pub fn next_before(&mut self, end: Duration) -> Option<E> {
        let end = nanoseconds(end);
        if self.plans.peek().is_some_and(|plan| plan.at.0.0 < end) {
            let plan = self.plans.pop()?;
            self.now = plan.at.0.0;
            return Some(plan.event);
        }
        self.now = end;
        None
    }
}

/// Enough for 584 years.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl<E> PartialEq for Plan<E> {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl<E> Eq for Plan<E> {}

impl<E> PartialOrd for Plan<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Plan<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.cmp(&other.at)
    }
}
