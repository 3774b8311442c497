//! How sessions end: one table with the Close code for each side, the metric label and the log text.
//!
//! The first cause of an ending counts. The same reason appears in Close frames and in the log.

use log::Level;

use super::{
    close_code::{CloseCode, CloseCodes},
    side::Side,
};

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// This side sent a Close frame, which was relayed.
    Closed(Side),
    /// The connection of this side ended without a Close frame.
    Lost(Side),
    /// This side did not read for `write_timeout` although data was waiting.
    Stalled(Side),
    /// This side did not answer a Ping within `ping_timeout`.
    Silent(Side),
    /// The client exceeded `max_frame_size`.
    FrameTooLarge,
    /// The client exceeded `max_message_size`.
    MessageTooLarge,
    /// The client exceeded `messages_per_second`.
    MessageRateExceeded,
    /// No data passed for `idle_timeout`.
    Idle,
    /// The session reached `max_session_age`.
    MaxAge,
    /// The balancer shuts down.
    Shutdown,
    /// The session was closed so that its client reconnects to another pod.
    Moved,
    /// An operator closed the session.
    Operator,
    /// The session was cut without any other cause: by a second shutdown signal or by a panic.
    Aborted,
}

/// One row of the table of endings.
#[derive(Clone, Copy, Debug)]
pub struct EndingRow {
    /// Value of the label `reason` of the metric that counts ended sessions.
    pub label: &'static str,
    /// Code of the Close frame that the balancer sends to the client.
    pub to_client: FrameCode,
    /// Code of the Close frame that the balancer sends to the pod.
    pub to_pod: FrameCode,
    /// Level of the log line. Expected endings are `Debug`, also those that are logged once for many
    /// sessions.
    pub level: Level,
    /// Reason in both Close frames, and in the log.
    pub reason: &'static str,
}

/// The code of a Close frame of the balancer's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameCode {
    /// The balancer sends no Close frame.
    NoFrame,
    Fixed(CloseCode),
    /// [`CloseCodes::drain`]
    Drain,
    /// [`CloseCodes::pod_lost`]
    PodLost,
}

impl Ending {
    pub const ALL: [Self; 17] = [
        Self::Closed(Side::Client),
        Self::Closed(Side::Pod),
        Self::Lost(Side::Client),
        Self::Lost(Side::Pod),
        Self::Stalled(Side::Client),
        Self::Stalled(Side::Pod),
        Self::Silent(Side::Client),
        Self::Silent(Side::Pod),
        Self::FrameTooLarge,
        Self::MessageTooLarge,
        Self::MessageRateExceeded,
        Self::Idle,
        Self::MaxAge,
        Self::Shutdown,
        Self::Moved,
        Self::Operator,
        Self::Aborted,
    ];

    /// Returns the row of this ending: the only place where codes, reasons, labels and levels are
    /// chosen.
    #[rustfmt::skip]
    pub const fn row(self) -> EndingRow {
        use FrameCode::{Drain, Fixed, NoFrame, PodLost};
        use Level::{Debug, Info};
        use Side::{Client, Pod};
        const GOING_AWAY: FrameCode = Fixed(CloseCode::GOING_AWAY);
        const POLICY: FrameCode = Fixed(CloseCode::POLICY_VIOLATION);
        const RESTART: FrameCode = Fixed(CloseCode::SERVICE_RESTART);
        const TOO_BIG: FrameCode = Fixed(CloseCode::MESSAGE_TOO_BIG);

        let (label, to_client, to_pod, level, reason) = match self {
            Self::Closed(Client)      => ("client",         NoFrame,    NoFrame,    Debug, "client closed the session"),
            Self::Closed(Pod)         => ("pod",            NoFrame,    NoFrame,    Debug, "pod closed the session"),
            Self::Lost(Client)        => ("client_lost",    NoFrame,    GOING_AWAY, Info,  "client disconnected without a Close frame"),
            Self::Lost(Pod)           => ("pod_lost",       PodLost,    NoFrame,    Info,  "pod disconnected without a Close frame"),
            Self::Stalled(Client)     => ("client_stalled", GOING_AWAY, GOING_AWAY, Info,  "write timed out: client is not reading"),
            Self::Stalled(Pod)        => ("pod_stalled",    PodLost,    GOING_AWAY, Info,  "write timed out: pod is not reading"),
            Self::Silent(Client)      => ("client_silent",  GOING_AWAY, GOING_AWAY, Info,  "ping timed out: client did not answer"),
            Self::Silent(Pod)         => ("pod_silent",     PodLost,    GOING_AWAY, Info,  "ping timed out: pod did not answer"),
            Self::FrameTooLarge       => ("limit",          TOO_BIG,    GOING_AWAY, Info,  "frame too large"),
            Self::MessageTooLarge     => ("limit",          TOO_BIG,    GOING_AWAY, Info,  "message too large"),
            Self::MessageRateExceeded => ("limit",          POLICY,     GOING_AWAY, Info,  "message rate exceeded"),
            Self::Idle                => ("idle",           GOING_AWAY, GOING_AWAY, Info,  "idle timeout"),
            Self::MaxAge              => ("age",            RESTART,    RESTART,    Info,  "maximum session age reached"),
            Self::Shutdown            => ("shutdown",       Drain,      GOING_AWAY, Debug, "balancer is shutting down"),
            Self::Moved               => ("moved",          Drain,      GOING_AWAY, Debug, "moved to another pod"),
            Self::Operator            => ("operator",       Drain,      GOING_AWAY, Debug, "closed by an operator"),
            Self::Aborted             => ("cut",            NoFrame,    NoFrame,    Debug, "aborted"),
        };
        EndingRow { label, to_client, to_pod, level, reason }
    }

    /// Returns the labels of all endings, each once.
    pub fn labels() -> Vec<&'static str> {
        let mut labels: Vec<_> = Self::ALL.iter().map(|ending| ending.row().label).collect();
        labels.dedup();
        labels
    }

    /// Returns the code of the Close frame that the balancer sends to `side`, if it sends one.
    pub fn code_for(self, side: Side, configured: CloseCodes) -> Option<CloseCode> {
        let EndingRow { to_client, to_pod, .. } = self.row();
        let code = match side {
            Side::Client => to_client,
            Side::Pod => to_pod,
        };
        match code {
            FrameCode::NoFrame => None,
            FrameCode::Fixed(code) => Some(code),
            FrameCode::Drain => Some(configured.drain),
            FrameCode::PodLost => Some(configured.pod_lost),
        }
    }

    /// Returns the side that is treated as dead: nothing more is expected from it.
    pub fn dead_side(self) -> Option<Side> {
        match self {
            Self::Lost(side) | Self::Stalled(side) | Self::Silent(side) => Some(side),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_fits_into_a_close_frame() {
        for ending in Ending::ALL {
            assert!(ending.row().reason.len() <= 123, "RFC 6455 §5.5: {ending:?}");
        }
    }

    #[test]
    fn every_ending_is_listed_once_and_labels_are_unique() {
        for (at, ending) in Ending::ALL.iter().enumerate() {
            assert!(!Ending::ALL[..at].contains(ending), "{ending:?}");
        }
        let mut labels = Ending::labels();
        let count = labels.len();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!((count, labels.len()), (15, 15));
    }

    #[test]
    fn configured_codes_go_to_clients() {
        let [drain, pod_lost] = [4000, 4001].map(|code| CloseCode::new(code).unwrap());
        let configured = CloseCodes { drain, pod_lost };
        for (ending, code) in [(Ending::Moved, drain), (Ending::Lost(Side::Pod), pod_lost)] {
            assert_eq!(ending.code_for(Side::Client, configured), Some(code));
            assert_ne!(ending.code_for(Side::Pod, configured), Some(code));
        }
    }
}
