//! Owns the pool: takes the pods' reports in, hands backends out.

use std::{sync::Arc, time::Instant};

use actix::{Actor, AsyncContext as _, Context, Handler, Message, MessageResponse};

use super::poll::{PollSettings, Poller};
use crate::domain::{
    lease::{Backend, Lease},
    pool::{BackendSnapshot, NoBackend, Poll, Pool},
    report::{Report, ReportError},
};

/// Asks for a slot on the least-loaded backend.
#[derive(Debug, Default, Message)]
#[rtype(result = "Result<Lease, NoBackend>")]
pub struct PickBackend {
    /// Backends that have already failed this connection.
    pub tried: Vec<Arc<Backend>>,
}

/// What one poll of one backend brought.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Polled {
    /// The poll, begun when its request was sent.
    pub poll: Poll,
    /// The report, or why there is none.
    pub result: Result<Report, ReportError>,
}

/// Asks for every backend as it stands.
#[derive(Debug, Message)]
#[rtype(result = "Backends")]
pub struct Snapshot;

/// Answer to [`Snapshot`], in configured order.
#[derive(Debug, MessageResponse)]
pub struct Backends(pub Vec<BackendSnapshot>);

/// Polls every backend and answers who gets the next connection.
pub struct MetricsActor {
    pool: Pool,
    /// `None` where pods have no metric route.
    polls: Option<PollSettings>,
    /// One per backend; they stop when the actor does.
    pollers: Vec<Poller>,
}

impl MetricsActor {
    /// An actor over `pool` that polls once started, unless there is nothing to ask.
    pub fn new(pool: Pool, polls: Option<PollSettings>) -> Self {
        Self { pool, polls, pollers: Vec::new() }
    }
}

impl Actor for MetricsActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if let Some(polls) = &self.polls {
            let reports = ctx.address().recipient();
            self.pollers = Poller::start_all(self.pool.poll_targets(), polls, &reports);
        }
    }
}

impl Handler<PickBackend> for MetricsActor {
    type Result = Result<Lease, NoBackend>;

    fn handle(&mut self, message: PickBackend, _: &mut Self::Context) -> Self::Result {
        self.pool.pick(&message.tried, Instant::now())
    }
}

impl Handler<Polled> for MetricsActor {
    type Result = ();

    fn handle(&mut self, Polled { poll, result }: Polled, _: &mut Self::Context) {
        let url = &poll.backend().url;
        match (&result, self.pool.last_error(poll.backend())) {
            (Err(error), known) if known != Some(error) => {
                log::warn!("{url}: its count is unknown or ages: {error}");
            }
            (Ok(_), Some(_)) => log::info!("{url}: reports again"),
            _ => {}
        }
        self.pool.record(poll, result, Instant::now());
    }
}

impl Handler<Snapshot> for MetricsActor {
    type Result = Backends;

    fn handle(&mut self, _: Snapshot, _: &mut Self::Context) -> Backends {
        Backends(self.pool.snapshot(Instant::now()))
    }
}
