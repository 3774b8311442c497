//! Finds the service of a request, and builds what depends on it: the request for the pod and the
//! answer for the client.

use std::sync::Arc;

use actix_http::{
    RequestHead, Response, ResponseHead, StatusCode,
    header::{self, HeaderMap, HeaderValue},
};

use super::{
    headers::{
        cookie::AffinityPreference,
        end_to_end,
        forwarded::{ForwardedHeaders, PeerInfo, host, x_request_id},
        keep_upgrade_required, request,
    },
    refusal::Refusal,
    service::ServiceState,
    state::TrafficState,
    worker::{UpstreamHandle, WorkerState},
};
use crate::domain::{
    balance::backend::Backend,
    routing::route::{Rewrite, has_dot_segments},
    service_id::ServiceId,
};

/// A request whose service is known.
pub struct RoutedRequest<'a> {
    /// What all workers share.
    pub traffic: &'a TrafficState,
    pub service: &'a ServiceState,
    /// This worker's handle to the pods of the service.
    pub upstream: &'a UpstreamHandle,
    pub forwarded: ForwardedHeaders,
    /// The target for the pod, in origin form.
    pub target: String,
    /// The pod that the request prefers.
    pub affinity_preference: AffinityPreference,
}

impl<'a> RoutedRequest<'a> {
    /// Finds the route of `request`, which `peer` has sent.
    ///
    /// # Errors
    /// [`Refusal::NoRoute`] or [`Refusal::DotSegments`]
    pub fn new(
        state: &'a WorkerState,
        request: &RequestHead,
        peer: PeerInfo,
    ) -> Result<Self, Refusal> {
        let traffic = &state.traffic;
        let (id, rewrite) = route(traffic, request)?;
        let service = &traffic.services[id];
        let mut forwarded = traffic.settings.forwarding.apply(request, peer);
        let affinity_preference = AffinityPreference::from_request(
            &service.settings.affinity,
            &service.name,
            &request.headers,
            forwarded.client,
        );
        forwarded.record_rewrite(rewrite, request.uri.path());
        forwarded.apply_changes(&service.settings.header_changes);
        let target = request::target(&request.uri, rewrite);
        Ok(Self {
            traffic,
            service,
            upstream: &state.upstreams[id],
            forwarded,
            target,
            affinity_preference,
        })
    }

    /// Returns the fields of the request for `backend`.
    pub fn headers(&self, backend: &Backend) -> HeaderMap {
        self.forwarded.headers(&self.service.settings.header_changes, backend)
    }

    /// Returns the fields of an answer of `backend` as the client gets them.
    pub fn answer_fields(
        &self,
        status: StatusCode,
        received: &HeaderMap,
        backend: &Arc<Backend>,
    ) -> HeaderMap {
        let mut fields = end_to_end(received);
        keep_upgrade_required(status, received, &mut fields);
        if !fields.contains_key(x_request_id()) {
            fields.insert(x_request_id(), self.forwarded.request_id.clone());
        }
        let Self { traffic, service, forwarded, affinity_preference, .. } = self;
        let counters = &traffic.counters;
        if let Some(cookie) = affinity_preference.cookie(
            &service.settings.affinity,
            backend,
            forwarded.secure,
            counters,
        ) {
            fields.append(header::SET_COOKIE, cookie);
        }
        fields
    }

    /// Returns the head of an answer of `backend` as the client gets it.
    pub fn answer(&self, head: &ResponseHead, backend: &Arc<Backend>) -> Response<()> {
        let mut response = Response::with_body(head.status, ());
        response.head_mut().headers = self.answer_fields(head.status, &head.headers, backend);
        response
    }

    /// Returns a 101 of `backend` as the client gets it.
    pub fn switching(&self, head: &ResponseHead, backend: &Arc<Backend>) -> Response<()> {
        let mut response = self.answer(head, backend);
        response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        response
    }
}

/// Returns the service of the request, and how its route changes the path.
fn route<'a>(
    traffic: &'a TrafficState,
    request: &RequestHead,
) -> Result<(ServiceId, &'a Rewrite), Refusal> {
    const KEEP: &Rewrite = &Rewrite::Keep;
    if let Some(id) = traffic.only_service {
        return Ok((id, KEEP));
    }
    let path = request.uri.path();
    if has_dot_segments(path) {
        return Err(Refusal::DotSegments(path.to_owned()));
    }
    let host = host(request);
    let host = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default();
    let route = traffic.router.find(host, path, request.method.as_str());
    let route = route.ok_or_else(|| Refusal::NoRoute(format!("{host}{path}")))?;
    Ok((route.service, &route.rewrite))
}
