//! What TCP itself does about peers that have vanished without a word, and about those that are slow.

use std::{io, ops::RangeInclusive, time::Duration};

use socket2::{SockRef, TcpKeepalive};

/// Bytes that wait in the system to be sent for the first time, at most. Without a bound the system
/// takes megabytes, and then nothing until a third of them has been acknowledged: a peer that reads
/// slowly all the time looks as if it took nothing, and our own Close waits behind all that.
const UNSENT: u32 = 128 * 1024;

/// Probes without an answer until a connection is dead.
const PROBES: u32 = 3;

/// What [`TcpSettings::keepalive`] may be: Linux counts it in whole seconds, up to 32767.
pub const KEEPALIVE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(9 * 3600);

/// When TCP gives a peer up; `None` is the system's own idea.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpSettings {
    /// Silence until the peer is probed, within [`KEEPALIVE`], and a third of it between two of
    /// three probes.
    pub keepalive: Option<Duration>,
    /// How long sent bytes may go without acknowledgement (RFC 5482).
    pub user_timeout: Option<Duration>,
}

impl TcpSettings {
    /// Holds for `socket` from now on; for a listener, for whatever it accepts.
    ///
    /// # Errors
    /// The system does not have it.
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
        socket.set_tcp_notsent_lowat(UNSENT)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_shortest_and_the_longest_are_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for time in [*KEEPALIVE.start(), Duration::from_millis(1_500), *KEEPALIVE.end()] {
            let settings = TcpSettings { keepalive: Some(time), user_timeout: None };
            settings.apply(SockRef::from(&listener)).unwrap();
            let taken = SockRef::from(&listener).tcp_keepalive_time().unwrap();
            assert_eq!(taken.as_secs(), time.as_secs());
        }
    }

    #[test]
    fn what_a_listener_has_its_connections_have() {
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
        assert_eq!(accepted.tcp_notsent_lowat().unwrap(), UNSENT);

        let untouched = TcpListener::bind("127.0.0.1:0").unwrap();
        TcpSettings::default().apply(SockRef::from(&untouched)).unwrap();
        assert!(!SockRef::from(&untouched).keepalive().unwrap());
    }
}
