//! The queue in which clients wait while every pod is full: first in, first out, for a limited time.

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

/// How often the first client in the queue checks for a free place without being woken: a pod can also
/// have room because connections of other balancers ended, which only its next report shows.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// The queue of one service in this process.
#[derive(Debug)]
pub struct Queue {
    timeout: Duration,
    limit: usize,
    waiters: Arc<Waiters>,
}

/// The waiting clients. They keep their places when timeout and limit change.
#[derive(Debug, Default)]
struct Waiters {
    count: AtomicUsize,
    /// Held by the first client. tokio's mutex is fair, so the others wait for it in their order.
    turn: Mutex<()>,
    freed: Arc<Notify>,
}

/// Why a client got no place.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum QueueError {
    #[error("no queue is configured (queue_timeout = 0s)")]
    NoQueue,
    #[error("queue is full (queue_limit = {0})")]
    QueueFull(usize),
    #[error("no pod had room within {0:?} (queue_timeout)")]
    TimedOut(Duration),
}

impl Queue {
    /// Creates a queue for at most `limit` clients, each for at most `timeout`. With a timeout of
    /// zero there is no queue.
    pub fn new(timeout: Duration, limit: usize) -> Self {
        Self { timeout, limit, waiters: Arc::default() }
    }

    /// Returns the same queue with another timeout and limit. Waiting clients keep their places.
    pub fn with_limits(&self, timeout: Duration, limit: usize) -> Self {
        Self { timeout, limit, waiters: self.waiters.clone() }
    }

    /// Returns how long a client can wait.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Returns whether no client is waiting. New clients must not overtake waiting ones.
    pub fn is_empty(&self) -> bool {
        self.waiters.count.load(Relaxed) == 0
    }

    /// Returns what to notify when a place becomes free; `None` when there is no queue.
    pub fn waker(&self) -> Option<Arc<Notify>> {
        (!self.timeout.is_zero()).then(|| self.waiters.freed.clone())
    }

    /// Waits for its turn, then calls `try_pick` whenever there may be room, until it returns a place.
    ///
    /// # Errors
    /// [`QueueError`]: there is no place in the queue, or no pod had room in time.
    pub async fn wait<T>(
        &self,
        mut try_pick: impl AsyncFnMut() -> Option<T>,
    ) -> Result<T, QueueError> {
        if self.timeout.is_zero() {
            return Err(QueueError::NoQueue);
        }
        let _client = WaitingClient::add(self).ok_or(QueueError::QueueFull(self.limit))?;
        let picked = async {
            let _turn = self.waiters.turn.lock().await;
            loop {
                let freed = self.waiters.freed.notified();
                if let Some(picked) = try_pick().await {
                    return picked;
                }
                let _ = timeout(CHECK_INTERVAL, freed).await;
            }
        };
        timeout(self.timeout, picked).await.map_err(|_| QueueError::TimedOut(self.timeout))
    }
}

/// One waiting client in the count.
struct WaitingClient<'a>(&'a Waiters);

impl<'a> WaitingClient<'a> {
    fn add(queue: &'a Queue) -> Option<Self> {
        let admit = |count| (count < queue.limit).then_some(count + 1);
        queue.waiters.count.fetch_update(Relaxed, Relaxed, admit).ok()?;
        Some(Self(&queue.waiters))
    }
}

impl Drop for WaitingClient<'_> {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::FutureExt as _;

    use super::*;

    #[actix_rt::test]
    async fn clients_get_places_in_their_order() {
        let queue = Queue::new(Duration::from_secs(30), 2);
        let room = Cell::new(0);
        let try_pick = async || (room.get() > 0).then(|| room.set(room.get() - 1));
        let mut first = Box::pin(queue.wait(try_pick));
        let mut second = Box::pin(queue.wait(try_pick));
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        assert_eq!(queue.wait(try_pick).now_or_never(), Some(Err(QueueError::QueueFull(2))));

        room.set(1);
        queue.waker().unwrap().notify_one();
        assert!((&mut second).now_or_never().is_none(), "not its turn");
        assert_eq!(first.await, Ok(()));
        let renewed = queue.with_limits(Duration::from_secs(60), 1);
        assert!(!renewed.is_empty(), "waiting clients keep their places");
        assert_eq!(renewed.wait(try_pick).now_or_never(), Some(Err(QueueError::QueueFull(1))));
        room.set(1);
        assert_eq!(second.await, Ok(()));
        assert!(queue.is_empty());
    }

    #[actix_rt::test]
    async fn the_queue_has_a_timeout() {
        let limit = Duration::from_millis(20);
        let queue = Queue::new(limit, 2);
        assert_eq!(queue.wait(async || None::<()>).await, Err(QueueError::TimedOut(limit)));
        assert!(queue.is_empty());
        let no_queue = Queue::new(Duration::ZERO, 2);
        assert!(no_queue.waker().is_none());
        assert_eq!(no_queue.wait(async || Some(())).await, Err(QueueError::NoQueue));
    }
}
