//! TCP socket options for peers that vanish without closing and for slow peers.

use std::{io, ops::RangeInclusive, time::Duration};

use socket2::{SockRef, TcpKeepalive};

/// Limit for unsent bytes in the socket buffer (`TCP_NOTSENT_LOWAT`). Without it the system accepts
/// megabytes, and then nothing until a third of them has been acknowledged: a peer that reads
/// slowly would look as if it did not read at all, and our Close frame would wait behind all that
/// data.
const NOTSENT_LOWAT: u32 = 128 * 1024;

/// Unanswered probes after which a connection is dead.
const PROBES: u32 = 3;

/// Range of [`TcpSettings::keepalive`]: Linux counts it in whole seconds, up to 32767.
pub const KEEPALIVE_RANGE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(9 * 3600);

/// When TCP considers a peer dead; `None` leaves the system's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpSettings {
    /// Idle time until the peer is probed, within [`KEEPALIVE_RANGE`]. The time between two probes
    /// is a third of it.
    pub keepalive: Option<Duration>,
    /// How long sent data can stay unacknowledged (RFC 5482).
    pub user_timeout: Option<Duration>,
}

impl TcpSettings {
    /// Sets the options on `socket`. The connections of a listener inherit them.
    ///
    /// # Errors
    /// The system does not support an option.
    pub fn apply(&self, socket: SockRef<'_>) -> io::Result<()> {
        if let Some(time) = self.keepalive {
            let keepalive = TcpKeepalive::new()
                .with_time(time)
                .with_interval((time / PROBES).max(Duration::from_secs(1)))
                .with_retries(PROBES);
            socket.set_tcp_keepalive(&keepalive)?;
        }
        if self.user_timeout.is_some() {
            socket.set_tcp_user_timeout(self.user_timeout)?;
        }
        socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_limits_of_the_keepalive_range_are_accepted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for time in [*KEEPALIVE_RANGE.start(), Duration::from_millis(1_500), *KEEPALIVE_RANGE.end()]
        {
            let settings = TcpSettings { keepalive: Some(time), user_timeout: None };
            settings.apply(SockRef::from(&listener)).unwrap();
            let accepted = SockRef::from(&listener).tcp_keepalive_time().unwrap();
            assert_eq!(accepted.as_secs(), time.as_secs());
        }
    }

    #[test]
    fn connections_inherit_the_options_of_their_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let settings = TcpSettings {
            keepalive: Some(Duration::from_secs(30)),
            user_timeout: Some(Duration::from_secs(7)),
        };
        settings.apply(SockRef::from(&listener)).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(30));
        assert_eq!(accepted.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
        assert_eq!(accepted.tcp_user_timeout().unwrap(), Some(Duration::from_secs(7)));
        assert_eq!(accepted.tcp_notsent_lowat().unwrap(), NOTSENT_LOWAT);

        let untouched = TcpListener::bind("127.0.0.1:0").unwrap();
        TcpSettings::default().apply(SockRef::from(&untouched)).unwrap();
        assert!(!SockRef::from(&untouched).keepalive().unwrap());
    }
}
