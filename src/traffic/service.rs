//! The state of one service that all workers share.

use std::sync::Arc;

use actix_http::header::{self, HeaderMap, HeaderValue};

use super::{headers::shown, queue::Queue, refusal::Refusal};
use crate::{
    actors::session_info::SessionRules,
    config::{BalancerSettings, ServiceSettings},
    domain::service_id::ServiceId,
};

/// The settings and the queue of one service.
pub struct ServiceState {
    /// Identifies the service to the control actors.
    pub id: ServiceId,
    pub name: String,
    pub settings: BalancerSettings,
    /// Where clients wait while all pods are full.
    pub queue: Queue,
    /// Rules of its sessions.
    pub rules: Arc<SessionRules>,
}

impl ServiceState {
    /// Creates the state of the service `id` as configured. Clients that wait in the queue of its
    /// `previous` state keep their places.
    pub fn new(id: ServiceId, service: &ServiceSettings, previous: Option<&Self>) -> Self {
        let ServiceSettings { name, balancer: settings, .. } = service;
        let (queue_timeout, queue_limit) = (settings.queue_timeout, settings.queue_limit);
        Self {
            id,
            name: name.clone(),
            queue: match previous {
                Some(previous) => previous.queue.with_limits(queue_timeout, queue_limit),
                None => Queue::new(queue_timeout, queue_limit),
            },
            rules: Arc::new(SessionRules { timeouts: settings.timeouts, tunnel: settings.tunnel }),
            settings: settings.clone(),
        }
    }

    /// Checks whether a page of this origin can open WebSockets (RFC 6455 §10.2). Only browsers send
    /// `Origin`, so requests without it are allowed. Pods check plain requests themselves (CORS).
    ///
    /// # Errors
    /// [`Refusal::Origin`]
    pub fn check_origin(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if self.settings.allowed_origins.is_empty() || !headers.contains_key(header::ORIGIN) {
            return Ok(());
        }
        let mut origins = headers.get_all(header::ORIGIN).map(HeaderValue::to_str);
        let allowed = match (origins.next(), origins.next()) {
            (Some(Ok(origin)), None) => {
                self.settings.allowed_origins.iter().any(|pattern| pattern.matches(origin))
            }
            _ => false,
        };
        if allowed { Ok(()) } else { Err(Refusal::Origin(shown(headers, header::ORIGIN))) }
    }
}
