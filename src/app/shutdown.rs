//! The shutdown: announce it, drain, stop.
//!
//! ```text
//!  SIGTERM ─► /readyz answers 503 ─ drain_delay ─► new connections get 503 ─► sessions are closed,
//!             connections are served as before      idle connections end       spread over drain_time
//!                                                                              │
//!        stop ◄── nothing is open, or shutdown_timeout has passed ◄────────────┘
//! ```
//!
//! A process that inherited its listening socket does not wait for `drain_delay`: it stops accepting
//! at once, and the next process accepts from the same socket.

use std::{sync::Arc, time::Duration};

use actix::Addr;
use actix_server::ServerHandle;
use tokio::time::{sleep, timeout};

use super::listeners::Inherited;
use crate::{
    actors::{
        metrics::{MetricsActor, Snapshot},
        registry::{CountDrained, DrainAll, Drained, RegistryActor, WaitUntilEmpty},
    },
    config::live::LiveConfig,
    domain::session::admission::Admission,
    traffic::lifecycle::{Lifecycle, UnansweredConnections},
};

/// How often the shutdown checks whether requests are still in progress.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// How long the shutdown waits for answers to be sent once nothing is open. Connections that never
/// sent a request count as unanswered too, so the wait needs a bound.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(250);

/// How long an accepted connection takes to reach its worker, at most. actix-server does not report
/// when its accept thread has paused, and drops connections that no worker has taken when it stops.
const PAUSE_DELAY: Duration = Duration::from_millis(250);

/// What a shutdown needs.
pub(super) struct Shutdown {
    pub lifecycle: Arc<Lifecycle>,
    pub unanswered: Arc<UnansweredConnections>,
    pub admission: Arc<Admission>,
    pub traffic_server: ServerHandle,
    pub admin_server: ServerHandle,
    pub inherited: Inherited,
    pub live_config: Arc<LiveConfig>,
    pub metrics: Addr<MetricsActor>,
    pub registry: Arc<Addr<RegistryActor>>,
}

/// The result of a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Sessions that the shutdown had to close.
    pub sessions: usize,
    /// Sessions among them that had not ended in time and were cut.
    pub cut: usize,
}

impl Shutdown {
    /// Runs the shutdown. Stops at once when `hurry` resolves.
    pub async fn run(self, hurry: impl Future<Output = ()>) -> Summary {
        tokio::select! {
            () = self.drain() => {}
            () = hurry => log::warn!("second signal: stopping at once"),
        }
        let drained = self.registry.send(CountDrained).await;
        let Drained { sessions, live } = drained.unwrap_or(Drained { sessions: 0, live: 0 });
        self.traffic_server.stop(false).await;
        self.admin_server.stop(false).await;
        Summary { sessions, cut: live }
    }

    async fn drain(&self) {
        self.lifecycle.start_leaving();
        self.stop_accepting_from_inherited().await;
        if !self.inherited.traffic {
            sleep(self.live_config.current().server.drain_delay).await;
        }
        self.lifecycle.start_draining();
        let server = &self.live_config.current().server;
        self.registry.do_send(DrainAll { over: server.drain_time });
        let _ = timeout(server.shutdown_timeout, self.wait_until_idle()).await;
    }

    /// Waits until there is no session, no handshake that may become one, no plain request, and
    /// no refusal that is still to be sent.
    async fn wait_until_idle(&self) {
        loop {
            let _ = self.registry.send(WaitUntilEmpty).await;
            let pods = self.metrics.send(Snapshot).await;
            if self.admission.is_empty() && !pods.is_ok_and(|pods| pods.are_busy()) {
                break;
            }
            sleep(CHECK_INTERVAL).await;
        }
        let _ = timeout(ANSWER_TIMEOUT, self.unanswered.wait_until_none()).await;
    }

    /// Stops accepting from inherited sockets, so that the next process accepts the connections
    /// queued there, and answers the connections already accepted. The sockets stay open.
    async fn stop_accepting_from_inherited(&self) {
        if self.inherited.admin {
            self.admin_server.pause().await;
        }
        if self.inherited.traffic {
            self.traffic_server.pause().await;
            sleep(PAUSE_DELAY).await;
            log::info!("no longer accepting: the next process owns the socket");
            self.lifecycle.start_closing();
            let request_timeout = self.live_config.current().server.request_timeout;
            let _ = timeout(request_timeout, self.unanswered.wait_until_none()).await;
        }
    }
}
