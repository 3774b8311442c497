//! The attempts to find a pod for one client: pick a pod, wait in the queue, try the next pod.

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
            backend::Backend,
            lease::{Lease, Purpose},
            pool::NoBackend,
        },
        session::admission::Ticket,
    },
};

/// The pods that have been tried for one client.
pub struct Attempts<'a> {
    routed: &'a RoutedRequest<'a>,
    purpose: Purpose,
    ticket: Option<Ticket>,
    tried: Vec<Arc<Backend>>,
    last: Option<Refusal>,
}

impl<'a> Attempts<'a> {
    /// Starts the attempts for a session. `ticket` is the session's admission.
    pub fn for_session(routed: &'a RoutedRequest<'a>, ticket: Option<Ticket>) -> Self {
        Self { routed, purpose: Purpose::Session, ticket, tried: Vec::new(), last: None }
    }

    /// Starts the attempts for a plain request.
    pub fn for_request(routed: &'a RoutedRequest<'a>) -> Self {
        Self { routed, purpose: Purpose::Request, ticket: None, tried: Vec::new(), last: None }
    }

    /// Reserves a place on the best pod that has not been tried.
    ///
    /// # Errors
    /// No pod is left: why the last one failed, or why there is none.
    pub async fn next_pod(&mut self) -> Result<SessionPermit, Refusal> {
        if self.tried.len() > self.routed.service.settings.retries {
            return Err(self.take_refusal());
        }
        let queue = &self.routed.service.queue;
        let is_session = self.purpose == Purpose::Session;
        let must_wait = is_session && self.tried.is_empty() && !queue.is_empty();
        let picked = if must_wait { Err(NoBackend::AllFull) } else { self.pick().await? };
        let lease = match picked {
            Ok(lease) => lease,
            Err(NoBackend::AllFull) if self.last.is_none() => {
                let try_pick = async || match self.pick().await {
                    Ok(Err(NoBackend::AllFull)) => None,
                    picked => Some(picked),
                };
                tokio::select! {
                    // Places that the shutdown frees are not given to waiting clients.
                    biased;
                    () = self.routed.traffic.lifecycle.wait_for_draining() => return Err(Refusal::ShuttingDown),
                    found = queue.wait(try_pick) => found.map_err(Refusal::Queue)???,
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

    /// Records that the pod of `permit` failed, and releases it.
    pub fn record_failure(&mut self, permit: SessionPermit, error: &UpstreamError) {
        let SessionPermit { lease, ticket, queue_waker } = permit;
        let backend = lease.backend().clone();
        self.ticket = ticket;
        let (address, reason) = (backend.address.clone(), error.to_string());
        log::warn!("pod {address} failed: {reason}");
        lease.record_failure(reason.clone());
        drop(queue_waker);
        self.tried.push(backend);
        self.last = Some(Refusal::Pod { address, reason, is_timeout: error.is_timeout() });
    }

    /// Returns why the last pod failed.
    pub fn take_refusal(&mut self) -> Refusal {
        self.last.take().unwrap_or(Refusal::Internal)
    }
}
