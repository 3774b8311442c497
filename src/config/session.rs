//! Settings of sessions: time limits, TCP, and limits for frames and messages.

use std::time::Duration;

use super::reader::Reader;
use crate::{
    domain::session::{close_code::CloseCodes, timeouts::SessionTimeouts},
    net::tcp::{KEEPALIVE_RANGE, TcpSettings},
    relay::{
        TunnelRules,
        filter::{FrameLimits, MessageRate},
    },
};

const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn read_session_timeouts(reader: &mut Reader) -> SessionTimeouts {
    let range = Duration::from_millis(10)..=DAY;
    SessionTimeouts {
        idle_timeout: reader.optional_duration("balancer.idle_timeout", 365 * DAY),
        write_timeout: reader.optional_duration("balancer.write_timeout", DAY),
        half_closed_timeout: reader.duration("balancer.half_closed_timeout", range.clone()),
        close_timeout: reader.duration("balancer.close_timeout", range.clone()),
        max_age: reader.optional_duration("balancer.max_session_age", 365 * DAY),
        client_ping_interval: reader.optional_duration("balancer.client_ping_interval", DAY),
        pod_ping_interval: reader.optional_duration("balancer.pod_ping_interval", DAY),
        ping_timeout: reader.duration("balancer.ping_timeout", range),
    }
}

/// Reads the TCP settings of the connections that `section` is about.
pub(super) fn read_tcp(reader: &mut Reader, section: &str) -> TcpSettings {
    let key = |name: &str| format!("{section}.{name}");
    let keepalive = reader.optional_duration(&key("tcp_keepalive"), *KEEPALIVE_RANGE.end());
    let user_timeout = reader.optional_duration(&key("tcp_user_timeout"), DAY);
    if keepalive.is_some_and(|time| !KEEPALIVE_RANGE.contains(&time)) {
        reader.add_problem(&key("tcp_keepalive"), "out of range, expected 0s, or 1s to 9h");
    }
    TcpSettings { keepalive, user_timeout }
}

pub(super) fn read_tunnel(reader: &mut Reader, timeouts: &SessionTimeouts) -> TunnelRules {
    let mut size = |key| Some(reader.number(key, 0..=u64::MAX)).filter(|size| *size > 0);
    let frame_size = size("balancer.max_frame_size");
    let message_size = size("balancer.max_message_size");
    let per_second = reader.limit("balancer.messages_per_second");
    let burst = reader.limit("balancer.message_burst");
    let closes = reader.choice("balancer.over_message_rate", &[("pause", false), ("close", true)]);
    if per_second.is_none() && burst.is_some() {
        let advice = "has no effect without messages_per_second: set both or neither";
        reader.add_problem("balancer.message_burst", advice);
    }
    let rate = per_second.map(|per_second| MessageRate {
        per_second: per_second.get(),
        burst: burst.unwrap_or(per_second).get(),
        closes,
    });
    TunnelRules {
        limits: FrameLimits { frame_size, message_size, rate },
        pings: [timeouts.client_ping_interval.is_some(), timeouts.pod_ping_interval.is_some()],
        close_codes: CloseCodes {
            drain: reader.close_code("balancer.close_code_drain"),
            pod_lost: reader.close_code("balancer.close_code_pod_lost"),
        },
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Layers};

    #[test]
    fn a_keepalive_time_outside_the_range_of_the_kernel_is_a_problem() {
        let (too_short, too_long) = ("expected 0s, or 1s to 9h", "expected 0s to 9h");
        for (value, advice) in [
            ("0s", None),
            ("1s", None),
            ("9h", None),
            ("999ms", Some(too_short)),
            ("1ms", Some(too_short)),
            ("9h 1s", Some(too_long)),
            ("1d", Some(too_long)),
        ] {
            for section in ["server", "balancer"] {
                let file =
                    format!("services = \"http://a\"\n[{section}]\ntcp_keepalive = {value:?}\n");
                let problems = Layers::from_texts(Some(&file), []).and_then(Config::resolve).err();
                let problems = problems.map(|problems| problems.to_string());
                match (&problems, advice) {
                    (None, None) => {}
                    (Some(problems), Some(advice))
                        if problems
                            .contains(&format!("{section}.tcp_keepalive = {value:?} (from "))
                            && problems.contains(advice) => {}
                    _ => panic!("{section}, {value}: {problems:?}"),
                }
            }
        }
    }
}
