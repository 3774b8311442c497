//! What this process does with connections: serve them, leave, close them, refuse them; and which
//! accepted connections still wait for their first answer.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use tokio::sync::{Notify, watch};

/// The phases of a shutdown, in their order. The probes change first, so that load balancers stop
/// sending connections before any connection is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum ShutdownPhase {
    /// Connections are accepted and served.
    #[default]
    Serving,
    /// `/readyz` fails. New connections are still served.
    Leaving,
    /// Connections close after the answer in progress.
    Closing,
    /// Every new request is refused.
    Draining,
}

/// The shutdown phase of this process, shared by the probes, the handshakes and the connections of
/// plain requests.
#[derive(Debug, Default)]
pub struct Lifecycle(watch::Sender<ShutdownPhase>);

impl Lifecycle {
    /// Returns whether new connections are wanted.
    pub fn is_serving(&self) -> bool {
        *self.0.borrow() == ShutdownPhase::Serving
    }

    /// Makes the readiness probe fail. New connections are still served.
    pub fn start_leaving(&self) {
        self.advance(ShutdownPhase::Leaving);
    }

    /// Closes connections after the answer in progress.
    pub fn start_closing(&self) {
        self.advance(ShutdownPhase::Closing);
    }

    /// Returns whether new requests are refused.
    pub fn is_draining(&self) -> bool {
        *self.0.borrow() == ShutdownPhase::Draining
    }

    /// Refuses every new request.
    pub fn start_draining(&self) {
        self.advance(ShutdownPhase::Draining);
    }

    /// Waits until connections must close after the answer in progress.
    pub async fn wait_for_closing(&self) {
        self.wait_for(ShutdownPhase::Closing).await;
    }

    /// Waits until new requests are refused.
    pub async fn wait_for_draining(&self) {
        self.wait_for(ShutdownPhase::Draining).await;
    }

    /// Phases are never left for an earlier one.
    fn advance(&self, phase: ShutdownPhase) {
        self.0.send_if_modified(|known| std::mem::replace(known, phase.max(*known)) < phase);
    }

    async fn wait_for(&self, phase: ShutdownPhase) {
        // Fails only when the sender is gone, and `self` is the sender.
        let _ = self.0.subscribe().wait_for(|known| *known >= phase).await;
    }
}

/// The number of connections that were accepted and have had no answer yet.
///
/// A process that hands its listening socket to the next process must answer these itself: no other
/// process can.
#[derive(Debug, Default)]
pub struct UnansweredConnections {
    count: AtomicUsize,
    none: Notify,
}

/// One unanswered connection. It stops counting when this is dropped.
#[derive(Debug)]
pub struct UnansweredConnection(Arc<UnansweredConnections>);

impl UnansweredConnections {
    /// Counts one more accepted connection.
    pub fn add(self: &Arc<Self>) -> UnansweredConnection {
        self.count.fetch_add(1, SeqCst);
        UnansweredConnection(self.clone())
    }

    /// Waits until every accepted connection has been answered.
    pub async fn wait_until_none(&self) {
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

impl Drop for UnansweredConnection {
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
    async fn phases_only_advance() {
        let lifecycle = Lifecycle::default();
        let mut closing = Box::pin(lifecycle.wait_for_closing());
        assert!(lifecycle.is_serving() && !lifecycle.is_draining());
        lifecycle.start_leaving();
        assert!(!lifecycle.is_serving() && (&mut closing).now_or_never().is_none());
        lifecycle.start_closing();
        closing.await;
        assert!(!lifecycle.is_draining());
        lifecycle.start_draining();
        lifecycle.start_leaving();
        assert!(lifecycle.is_draining());
        lifecycle.wait_for_closing().await;
        lifecycle.wait_for_draining().await;
    }

    #[actix_rt::test]
    async fn the_wait_ends_when_the_last_connection_is_answered() {
        let connections = Arc::<UnansweredConnections>::default();
        connections.wait_until_none().await;
        let [first, second] = [connections.add(), connections.add()];
        let mut waiting = Box::pin(connections.wait_until_none());
        assert!((&mut waiting).now_or_never().is_none());
        drop(first);
        assert!((&mut waiting).now_or_never().is_none());
        drop(second);
        assert!(waiting.now_or_never().is_some());
    }
}
