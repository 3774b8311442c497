//! Where clients wait while every pod is full: first come, first served, for a while.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use thiserror::Error;
use tokio::{
    sync::{Mutex, Notify},
    time::timeout,
};

/// How often the first in the queue looks again by itself: a pod may have room because others'
/// connections on it ended, which only its next report tells.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The queue of one process.
#[derive(Debug)]
pub struct Queue {
    timeout: Duration,
    limit: usize,
    line: Arc<Waiters>,
}

/// Those who wait, whatever the rules are.
#[derive(Debug, Default)]
struct Waiters {
    waiting: AtomicUsize,
    /// Held by the first; tokio's mutex is fair, so the others stand in line for it.
    turn: Mutex<()>,
    freed: Arc<Notify>,
}

/// Why waiting was in vain.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum QueueError {
    /// As many wait as may.
    #[error("as many clients wait for a place as may")]
    QueueFull,
    /// The time was up, or there is none.
    #[error("there was no place in time")]
    TimedOut,
}

impl Queue {
    /// A queue for at most `limit` clients, each for at most `timeout`; zero means that nobody
    /// waits.
    pub fn new(timeout: Duration, limit: usize) -> Self {
        Self { timeout, limit, line: Arc::default() }
    }

    /// The same queue by other rules; those who wait keep their places.
    pub fn with(&self, timeout: Duration, limit: usize) -> Self {
        Self { timeout, limit, line: self.line.clone() }
    }

    /// How long a client may wait.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether anyone waits, whom newcomers must not overtake.
    pub fn is_empty(&self) -> bool {
        self.line.waiting.load(Relaxed) == 0
    }

    /// To be told when a place is free; `None` where nobody ever waits.
    pub fn waker(&self) -> Option<Arc<Notify>> {
        (!self.timeout.is_zero()).then(|| self.line.freed.clone())
    }

    /// Waits in line, then calls `look` whenever there may be room until it finds some.
    ///
    /// # Errors
    /// [`NoTurn`] when there is no place in the queue or the time is up.
    pub async fn wait<T>(&self, mut look: impl AsyncFnMut() -> Option<T>) -> Result<T, QueueError> {
        if self.timeout.is_zero() {
            return Err(QueueError::TimedOut);
        }
        let _place = WaitingClient::take(self).ok_or(QueueError::QueueFull)?;
        let found = async {
            let _turn = self.line.turn.lock().await;
            loop {
                let freed = self.line.freed.notified();
                if let Some(found) = look().await {
                    return found;
                }
                let _ = timeout(LOOK_AGAIN, freed).await;
            }
        };
        timeout(self.timeout, found).await.map_err(|_| QueueError::TimedOut)
    }
}

/// One waiting client in the count.
struct WaitingClient<'a>(&'a Waiters);

impl<'a> WaitingClient<'a> {
    fn take(queue: &'a Queue) -> Option<Self> {
        let admit = |waiting| (waiting < queue.limit).then_some(waiting + 1);
        queue.line.waiting.fetch_update(Relaxed, Relaxed, admit).ok()?;
        Some(Self(&queue.line))
    }
}

impl Drop for WaitingClient<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::FutureExt as _;

    use super::*;

    #[actix_rt::test]
    async fn first_come_first_served() {
        let queue = Queue::new(Duration::from_secs(30), 2);
        let room = Cell::new(0);
        let take = async || (room.get() > 0).then(|| room.set(room.get() - 1));
        let mut first = Box::pin(queue.wait(take));
        let mut second = Box::pin(queue.wait(take));
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        assert_eq!(queue.wait(take).now_or_never(), Some(Err(QueueError::QueueFull)));

        room.set(1);
        queue.waker().unwrap().notify_one();
        assert!((&mut second).now_or_never().is_none(), "not its turn");
        assert_eq!(first.await, Ok(()));
        let renewed = queue.with(Duration::from_secs(60), 1);
        assert!(!renewed.is_empty(), "other rules, the same line");
        assert_eq!(renewed.wait(take).now_or_never(), Some(Err(QueueError::QueueFull)));
        room.set(1);
        assert_eq!(second.await, Ok(()));
        assert!(queue.is_empty());
    }

    #[actix_rt::test]
    async fn time_is_up_for_those_who_wait_too_long() {
        let queue = Queue::new(Duration::from_millis(20), 2);
        assert_eq!(queue.wait(async || None::<()>).await, Err(QueueError::TimedOut));
        assert!(queue.is_empty());
        let nobody_waits = Queue::new(Duration::ZERO, 2);
        assert!(nobody_waits.waker().is_none());
        assert_eq!(nobody_waits.wait(async || Some(())).await, Err(QueueError::TimedOut));
    }
}
