//! Why sessions end: what the sides are told, what is counted, and what the log says.

use std::fmt;

use log::Level;

use crate::{
    domain::session::timeouts::Leg,
    relay::{Direction, FirstEnd},
};

/// Why a session has ended: whatever came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// This side has said Close.
    Closed(Leg),
    /// This side is gone without a Close.
    Lost(Leg),
    /// The client has sent what it may not.
    Limit,
    /// Nothing has passed for long.
    Idle,
    /// It has lived for as long as it may.
    Age,
    /// This side takes nothing.
    Stalled(Leg),
    /// This side has not answered a Ping.
    Silent(Leg),
    /// The balancer goes down.
    Shutdown,
    /// Its client is to come back to another pod.
    Moved,
    /// An operator wanted it.
    Operator,
    /// It was cut before any of that: by a second signal, or because it has panicked.
    Cut,
}

impl Ending {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Closed(Leg::Client),
        Self::Closed(Leg::Pod),
        Self::Lost(Leg::Client),
        Self::Lost(Leg::Pod),
        Self::Limit,
        Self::Idle,
        Self::Age,
        Self::Stalled(Leg::Client),
        Self::Stalled(Leg::Pod),
        Self::Silent(Leg::Client),
        Self::Silent(Leg::Pod),
        Self::Shutdown,
        Self::Moved,
        Self::Operator,
        Self::Cut,
    ];

    /// Its name among the counters.
    pub fn label(self) -> &'static str {
        match self {
            Self::Closed(Leg::Client) => "client",
            Self::Closed(Leg::Pod) => "pod",
            Self::Lost(Leg::Client) => "client_lost",
            Self::Lost(Leg::Pod) => "pod_lost",
            Self::Limit => "limit",
            Self::Idle => "idle",
            Self::Age => "age",
            Self::Stalled(Leg::Client) => "client_stalled",
            Self::Stalled(Leg::Pod) => "pod_stalled",
            Self::Silent(Leg::Client) => "client_silent",
            Self::Silent(Leg::Pod) => "pod_silent",
            Self::Shutdown => "shutdown",
            Self::Moved => "moved",
            Self::Operator => "operator",
            Self::Cut => "cut",
        }
    }

    /// The reason in our Close frames; empty where none is ours, or where the tunnel knows better.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Closed(_) | Self::Lost(_) | Self::Limit | Self::Cut => "",
            Self::Idle => "idle for long",
            Self::Age => "lived for long",
            Self::Stalled(_) => "nothing is taken",
            Self::Silent(_) => "no answer to a Ping",
            Self::Shutdown => "balancer is shutting down",
            Self::Moved => "moved to another pod",
            Self::Operator => "closed by an operator",
        }
    }

    /// How grave its line in the log is: what was meant to be is nobody's concern, nor what has been
    /// told of many sessions in one line.
    pub fn level(self) -> Level {
        match self {
            Self::Closed(_) | Self::Shutdown | Self::Moved | Self::Operator | Self::Cut => {
                Level::Debug
            }
            Self::Lost(_)
            | Self::Limit
            | Self::Idle
            | Self::Age
            | Self::Stalled(_)
            | Self::Silent(_) => Level::Info,
        }
    }
}

impl From<FirstEnd> for Ending {
    fn from(end: FirstEnd) -> Self {
        let leg = |direction| match direction {
            Direction::Up => Leg::Client,
            Direction::Down => Leg::Pod,
        };
        match end {
            FirstEnd::Close(direction) => Self::Closed(leg(direction)),
            FirstEnd::Vanished(direction) => Self::Lost(leg(direction)),
            FirstEnd::Violated => Self::Limit,
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed(Leg::Client) => "its client has closed it",
            Self::Closed(Leg::Pod) => "its pod has closed it",
            Self::Lost(Leg::Client) => "its client is gone without a Close",
            Self::Lost(Leg::Pod) => "its pod is gone without a Close",
            Self::Limit => "its client has sent what it may not",
            Self::Idle => "it has been idle for too long",
            Self::Age => "it has reached its greatest age",
            Self::Stalled(Leg::Client) => "its client takes nothing",
            Self::Stalled(Leg::Pod) => "its pod takes nothing",
            Self::Silent(Leg::Client) => "its client does not answer a Ping",
            Self::Silent(Leg::Pod) => "its pod does not answer a Ping",
            Self::Shutdown => "the balancer goes down",
            Self::Moved => "its client is to move to another pod",
            Self::Operator => "an operator wanted it",
            Self::Cut => "it was cut",
        })
    }
}
