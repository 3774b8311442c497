//! Whether this process takes new connections, and what becomes of those that it has.

use tokio::sync::watch;

/// What a process does about connections, in the order in which it goes down. The probes go first,
/// so that whoever routes to this process stops before anybody is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// They are welcome.
    #[default]
    Ready,
    /// None are wanted; those that come are served all the same.
    Leaving,
    /// Those that are here get the answer that is under way, and end.
    Parting,
    /// None are taken, not even for a request.
    Draining,
}

/// Shared by the probes, the handshakes and the connections of plain requests.
#[derive(Debug, Default)]
pub struct Health(watch::Sender<Phase>);

impl Health {
    /// Whether the balancer wants new connections.
    pub fn is_ready(&self) -> bool {
        *self.0.borrow() == Phase::Ready
    }

    /// From now on no further connection is wanted; those that come are served all the same.
    pub fn leave(&self) {
        self.advance(Phase::Leaving);
    }

    /// From now on no connection stays for another request.
    pub fn part(&self) {
        self.advance(Phase::Parting);
    }

    /// Whether the balancer refuses new connections.
    pub fn is_draining(&self) -> bool {
        *self.0.borrow() == Phase::Draining
    }

    /// From now on no connection is taken.
    pub fn drain(&self) {
        self.advance(Phase::Draining);
    }

    /// Resolves when connections that wait for another request are to end.
    pub async fn parting(&self) {
        self.reached(Phase::Parting).await;
    }

    /// Resolves when new connections are refused.
    pub async fn draining(&self) {
        self.reached(Phase::Draining).await;
    }

    fn advance(&self, phase: Phase) {
        self.0.send_if_modified(|known| std::mem::replace(known, phase.max(*known)) < phase);
    }

    async fn reached(&self, phase: Phase) {
        // It cannot fail as long as we are here.
        let _ = self.0.subscribe().wait_for(|known| *known >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[actix_rt::test]
    async fn a_process_only_ever_goes_down() {
        let health = Health::default();
        let mut parting = Box::pin(health.parting());
        assert!(health.is_ready() && !health.is_draining());
        health.leave();
        assert!(!health.is_ready() && (&mut parting).now_or_never().is_none());
        health.part();
        parting.await;
        assert!(!health.is_draining());
        health.drain();
        health.leave();
        assert!(health.is_draining());
        health.parting().await;
        health.draining().await;
    }
}
