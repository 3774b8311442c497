//! One client's way from pod to pod until one takes it.

use std::sync::Arc;

use super::{refusal::Refusal, routing::RoutedRequest, upstream::UpstreamError};
use crate::{
    actors::{
        metrics::PickBackend,
        session::{QueueWaker, SessionPermit},
        supervision::send_retrying,
    },
    domain::{
        balance::{
            lease::{Backend, Lease, Purpose},
            pool::NoBackend,
        },
        session::admission::Ticket,
    },
};

/// The pods that a client has been offered to.
pub struct Attempts<'a> {
    routed: &'a RoutedRequest<'a>,
    purpose: Purpose,
    ticket: Option<Ticket>,
    tried: Vec<Arc<Backend>>,
    last: Option<Refusal>,
}

impl<'a> Attempts<'a> {
    /// None yet, for a session. `ticket` is the client's place in the balancer.
    pub fn for_session(routed: &'a RoutedRequest<'a>, ticket: Option<Ticket>) -> Self {
        Self { routed, purpose: Purpose::Session, ticket, tried: Vec::new(), last: None }
    }

    /// None yet, for a plain request.
    pub fn for_request(routed: &'a RoutedRequest<'a>) -> Self {
        Self { routed, purpose: Purpose::Request, ticket: None, tried: Vec::new(), last: None }
    }

    /// A place on the next best pod.
    ///
    /// # Errors
    /// No pod, no more tries: what the last one did, or why there is none.
    pub async fn next(&mut self) -> Result<SessionPermit, Refusal> {
        if self.tried.len() > self.routed.service.settings.retries {
            return Err(self.give_up());
        }
        let queue = &self.routed.service.queue;
        let is_session = self.purpose == Purpose::Session;
        let must_wait = is_session && self.tried.is_empty() && !queue.is_empty();
        let picked = if must_wait { Err(NoBackend::AllFull) } else { self.pick().await? };
        let lease = match picked {
            Ok(lease) => lease,
            Err(NoBackend::AllFull) if self.last.is_none() => {
                let look = async || match self.pick().await {
                    Ok(Err(NoBackend::AllFull)) => None,
                    settled => Some(settled),
                };
                tokio::select! {
                    // Places that the drain frees are for nobody here.
                    biased;
                    () = self.routed.traffic.lifecycle.wait_for_draining() => return Err(Refusal::ShuttingDown),
                    found = queue.wait(look) => found.map_err(Refusal::Queue)???,
                }
            }
            Err(none) => return Err(self.last.take().unwrap_or(Refusal::NoBackend(none))),
        };
        Ok(SessionPermit {
            lease,
            ticket: self.ticket.take(),
            queue_waker: QueueWaker(queue.waker()),
        })
    }

    async fn pick(&self) -> Result<Result<Lease, NoBackend>, Refusal> {
        let RoutedRequest { traffic, service, affinity_preference, .. } = self.routed;
        let pick = || PickBackend {
            service: service.id,
            purpose: self.purpose,
            preference: affinity_preference.preference,
            tried: self.tried.clone(),
        };
        send_retrying(&traffic.metrics, pick).await.map_err(|_| Refusal::Internal)
    }

    /// The pod of `permit` did not take the client.
    pub fn failed(&mut self, permit: SessionPermit, error: &UpstreamError) {
        let SessionPermit { lease, ticket, queue_waker } = permit;
        let backend = lease.backend().clone();
        self.ticket = ticket;
        let (address, reason) = (backend.address.clone(), error.to_string());
        log::warn!("{address} {reason}");
        lease.failed(reason.clone());
        drop(queue_waker);
        self.tried.push(backend);
        self.last = Some(Refusal::Pod { address, reason, timed_out: error.timed_out() });
    }

    /// What the last pod did: it must not be tried again elsewhere.
    pub fn give_up(&mut self) -> Refusal {
        self.last.take().unwrap_or(Refusal::Internal)
    }
}
