//! Joins two sockets into a tunnel.

use std::sync::Arc;

use super::{
    control::{ActivityView, TunnelControl},
    filter::{FrameFilter, FrameLimits},
    peer::TunnelPeer,
    pump::{Pump, Source},
    stats::TunnelStats,
};
use crate::domain::session::{close_code::CloseCodes, side::Side};

/// The rules that a tunnel applies to what it relays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelRules {
    /// Limits for frames from clients.
    pub limits: FrameLimits,
    /// Whether the balancer sends Pings of its own, by [`Side`].
    pub pings: [bool; 2],
    pub close_codes: CloseCodes,
}

/// A started tunnel: two pumps to drive, and the handle that controls them.
pub struct Tunnel {
    /// Relays from the client to the pod.
    pub from_client: Pump,
    /// Relays from the pod to the client.
    pub from_pod: Pump,
    /// Controls both pumps. Dropping it aborts them.
    pub control: TunnelControl,
}

impl Tunnel {
    /// Joins two sockets. Nothing is relayed until the pumps are polled.
    pub fn new(
        client: TunnelPeer,
        pod: TunnelPeer,
        stats: &Arc<TunnelStats>,
        rules: &TunnelRules,
    ) -> Self {
        let ping_payload = fastrand::u64(..).to_be_bytes();
        let filter = |side: Side, limits: FrameLimits| {
            (rules.pings[side as usize] || limits != FrameLimits::default())
                .then(|| Box::new(FrameFilter::new(limits, ping_payload)))
        };
        let view = ActivityView::new(ping_payload);
        let pump = |source, sink| Pump::new(source, sink, rules.close_codes, stats.clone(), &view);
        let from_client = Source {
            side: Side::Client,
            socket: client.socket.clone(),
            early: client.early,
            filter: filter(Side::Client, rules.limits),
        };
        let from_pod = Source {
            side: Side::Pod,
            socket: pod.socket.clone(),
            early: pod.early,
            filter: filter(Side::Pod, FrameLimits::default()),
        };
        Self {
            from_client: pump(from_client, pod.socket),
            from_pod: pump(from_pod, client.socket),
            control: TunnelControl::new(view),
        }
    }
}
