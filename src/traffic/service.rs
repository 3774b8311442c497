//! What the balancer does for one service: its rules, and each worker's way to its pods.

use std::{sync::Arc, time::Duration};

use actix_http::header::{self, HeaderMap, HeaderValue};

use super::{
    headers::{forwarded::HeaderChanges, shown},
    queue::Queue,
    refusal::Refusal,
};
use crate::{
    actors::session::SessionRules,
    config::{self, AffinitySettings},
    domain::{routing::origin::OriginPattern, service_id::ServiceId},
    net::connect::ConnectSettings,
};

/// The rules of one service, shared by all workers.
pub struct ServiceState {
    /// Identifies it to the control actors.
    pub id: ServiceId,
    /// Its name.
    pub name: String,
    /// How requests change on their way to its pods.
    pub changes: HeaderChanges,
    /// What brings clients back to their pods.
    pub affinity: AffinitySettings,
    /// Further pods tried for one connection.
    pub retries: usize,
    /// Answers to a handshake that lead to the next pod.
    pub retry_on: Vec<u16>,
    /// For a client's whole handshake.
    pub handshake_timeout: Duration,
    /// Whether connections for plain requests are kept.
    pub reuse_connections: bool,
    /// Where clients wait for a pod with room.
    pub queue: Queue,
    /// What holds for its sessions.
    pub rules: Arc<SessionRules>,
    /// How its pods are connected to.
    pub connect: ConnectSettings,
    /// For the head of a pod's answer.
    pub read_timeout: Duration,
    allowed_origins: Vec<OriginPattern>,
}

impl ServiceState {
    /// Creates the state of the service `id` as configured. Clients that wait in the queue of its
    /// state `before` a reload keep their places.
    pub fn new(id: ServiceId, service: &config::ServiceSettings, before: Option<&Self>) -> Self {
        let config::ServiceSettings { name, balancer, .. } = service;
        let (queue_timeout, queue_limit) = (balancer.queue_timeout, balancer.queue_limit);
        Self {
            id,
            name: name.clone(),
            changes: HeaderChanges {
                pass_host_header: balancer.pass_host_header,
                add: balancer.add_headers.clone(),
                set: balancer.set_headers.clone(),
                remove: balancer.remove_headers.clone(),
            },
            affinity: balancer.affinity.clone(),
            retries: balancer.retries,
            retry_on: balancer.retry_on.clone(),
            handshake_timeout: balancer.handshake_timeout,
            reuse_connections: balancer.reuse_connections,
            queue: match before {
                Some(before) => before.queue.with(queue_timeout, queue_limit),
                None => Queue::new(queue_timeout, queue_limit),
            },
            rules: Arc::new(SessionRules {
                timeouts: balancer.timeouts,
                tunnel: balancer.tunnel,
                close_code: balancer.close_code_drain,
            }),
            connect: balancer.connect_settings(),
            read_timeout: balancer.read_timeout,
            allowed_origins: balancer.allowed_origins.clone(),
        }
    }

    /// Whether the page that opens a WebSocket may (RFC 6455 §10.2). Only browsers send `Origin`;
    /// whoever does not is no page. Plain requests are the pods' to judge (CORS).
    ///
    /// # Errors
    /// [`Refusal::Origin`]
    pub fn check_origin(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if self.allowed_origins.is_empty() || !headers.contains_key(header::ORIGIN) {
            return Ok(());
        }
        let mut origins = headers.get_all(header::ORIGIN).map(HeaderValue::to_str);
        let allowed = match (origins.next(), origins.next()) {
            (Some(Ok(origin)), None) => {
                self.allowed_origins.iter().any(|pattern| pattern.matches(origin))
            }
            _ => false,
        };
        if allowed { Ok(()) } else { Err(Refusal::Origin(shown(headers, header::ORIGIN))) }
    }
}
