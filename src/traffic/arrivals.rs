//! Connections that have been accepted and have yet to hear what becomes of them.
//!
//! A process that hands its listening socket on must answer them itself: nobody else can.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use tokio::sync::Notify;

/// How many there are.
#[derive(Debug, Default)]
pub struct Arrivals {
    count: AtomicUsize,
    none: Notify,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Arrival(Arc<Arrivals>);

impl Arrivals {
    /// One more has been accepted.
    pub fn begin(self: &Arc<Self>) -> Arrival {
        self.count.fetch_add(1, SeqCst);
        Arrival(self.clone())
    }

    /// Resolves when there are none.
    pub async fn none_left(&self) {
        loop {
            let mut none = std::pin::pin!(self.none.notified());
            none.as_mut().enable();
            if self.count.load(SeqCst) == 0 {
                return;
            }
            none.await;
        }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, SeqCst) == 1 {
            self.0.none.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[actix_rt::test]
    async fn those_who_wait_hear_when_the_last_is_gone() {
        let arrivals = Arc::<Arrivals>::default();
        arrivals.none_left().await;
        let [one, other] = [arrivals.begin(), arrivals.begin()];
        let mut waiting = Box::pin(arrivals.none_left());
        assert!((&mut waiting).now_or_never().is_none());
        drop(one);
        assert!((&mut waiting).now_or_never().is_none());
        drop(other);
        assert!(waiting.now_or_never().is_some());
    }
}
