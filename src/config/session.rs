//! How long sessions live, and what may pass in them.

use std::time::Duration;

use super::{reader::Reader, services::close_code};
use crate::{
    domain::session::timeouts::SessionTimeouts,
    net::tcp::{KEEPALIVE, TcpSettings},
    relay::{
        TunnelRules,
        filter::{FrameLimits, MessageRate},
    },
};

const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn timeouts(read: &mut Reader) -> SessionTimeouts {
    let mut or_never = |key, most| {
        let duration = read.duration(key, Duration::ZERO..=most);
        (!duration.is_zero()).then_some(duration)
    };
    let (idle_timeout, write_timeout, max_age, client_ping_interval, pod_ping_interval) = (
        or_never("balancer.idle_timeout", 365 * DAY),
        or_never("balancer.write_timeout", DAY),
        or_never("balancer.max_session_age", 365 * DAY),
        or_never("balancer.client_ping_interval", DAY),
        or_never("balancer.pod_ping_interval", DAY),
    );
    let ends = Duration::from_millis(10)..=DAY;
    SessionTimeouts {
        idle_timeout,
        write_timeout,
        half_closed_timeout: read.duration("balancer.half_closed_timeout", ends.clone()),
        close_timeout: read.duration("balancer.close_timeout", ends.clone()),
        max_age,
        client_ping_interval,
        pod_ping_interval,
        ping_timeout: read.duration("balancer.ping_timeout", ends),
    }
}

/// Of the connections that `section` is about.
pub(super) fn tcp(read: &mut Reader, section: &str) -> TcpSettings {
    let mut or_never = |key: &str, most| {
        let duration = read.duration(&format!("{section}.{key}"), Duration::ZERO..=most);
        (!duration.is_zero()).then_some(duration)
    };
    let keepalive = or_never("tcp_keepalive", *KEEPALIVE.end());
    let user_timeout = or_never("tcp_user_timeout", DAY);
    if keepalive.is_some_and(|time| !KEEPALIVE.contains(&time)) {
        let advice = "out of range, expected 0s, or 1s to 9h";
        read.complain(&format!("{section}.tcp_keepalive"), advice);
    }
    TcpSettings { keepalive, user_timeout }
}

pub(super) fn tunnel(read: &mut Reader, timeouts: &SessionTimeouts) -> TunnelRules {
    let mut size = |key| {
        let size = read.number(key, 0..=u64::MAX);
        (size > 0).then_some(size)
    };
    let frame_size = size("balancer.max_frame_size");
    let message_size = size("balancer.max_message_size");
    let per_second = read.limit("balancer.messages_per_second");
    let burst = read.limit("balancer.message_burst");
    let closes = read.choice("balancer.over_message_rate", &[("pause", false), ("close", true)]);
    if per_second.is_none() && burst.is_some() {
        let advice = "counts for nothing without messages_per_second";
        read.complain("balancer.message_burst", advice);
    }
    let rate = per_second.map(|per_second| MessageRate {
        per_second: per_second.get(),
        burst: burst.unwrap_or(per_second).get(),
        closes,
    });
    TunnelRules {
        limits: FrameLimits { frame_size, message_size, rate },
        pings: [timeouts.client_ping_interval.is_some(), timeouts.pod_ping_interval.is_some()],
        pod_lost: close_code(read, "balancer.close_code_pod_lost"),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Layers};

    #[test]
    fn what_tcp_cannot_count_is_a_mistake() {
        let (few, many) = ("expected 0s, or 1s to 9h", "expected 0s to 9h");
        for (value, advice) in [
            ("0s", None),
            ("1s", None),
            ("9h", None),
            ("999ms", Some(few)),
            ("1ms", Some(few)),
            ("9h 1s", Some(many)),
            ("1d", Some(many)),
        ] {
            for section in ["server", "balancer"] {
                let file =
                    format!("services = \"http://a\"\n[{section}]\ntcp_keepalive = {value:?}\n");
                let told = Layers::from_texts(Some(&file), []).and_then(Config::resolve).err();
                let told = told.map(|problems| problems.to_string());
                match (&told, advice) {
                    (None, None) => {}
                    (Some(told), Some(advice))
                        if told
                            .contains(&format!("{section}.tcp_keepalive = {value:?} (from "))
                            && told.contains(advice) => {}
                    _ => panic!("{section}, {value}: {told:?}"),
                }
            }
        }
    }
}
