//! What is going to happen, in virtual time.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    time::Duration,
};

/// Plans by their time; of equals the one that was made first comes first.
pub struct Agenda<E> {
    now: u64,
    plans: BinaryHeap<Plan<E>>,
    made: u64,
}

/// Nanoseconds since the beginning, and how many plans were made before.
type At = (u64, u64);

struct Plan<E> {
    at: Reverse<At>,
    event: E,
}

impl<E> Agenda<E> {
    pub fn new() -> Self {
        Self { now: 0, plans: BinaryHeap::new(), made: 0 }
    }

    /// Time since the beginning.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.now)
    }

    /// Lets `event` happen `after` this time from now.
    pub fn plan(&mut self, after: Duration, event: E) {
        self.made += 1;
        self.plans.push(Plan { at: Reverse((self.now + nanoseconds(after), self.made)), event });
    }

    /// The next event, if it comes before `end`; when there is none, it is `end`.
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
