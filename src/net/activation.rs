//! Listening sockets that this process inherits (socket activation, sd_listen_fds(3)).
//!
//! The parent process, such as systemd, keeps the sockets open, so that connections that wait in
//! them are not lost during a restart.

use std::io;

use listenfd::ListenFd;
use socket2::SockRef;

use super::listen::{ListenAddress, Listener};

/// Name of the traffic listener's socket. Without a socket of that name it is the first one.
const TRAFFIC: &str = "traffic";

/// Name of the admin listener's socket.
const ADMIN: &str = "admin";

/// The listening sockets that were passed to this process.
#[derive(Debug, Default)]
pub struct InheritedSockets {
    pub traffic: Option<Listener>,
    pub admin: Option<Listener>,
}

impl InheritedSockets {
    /// Takes the sockets of LISTEN_PID and LISTEN_FDS; `names` are those of LISTEN_FDNAMES. It
    /// works once in a process, because it removes the variables.
    ///
    /// # Errors
    /// One is not a listening socket; the error names it and gives the expected kind.
    pub fn take(names: &[String]) -> io::Result<Self> {
        let mut sockets = ListenFd::from_env();
        let count = sockets.len();
        let (traffic, admin) = positions(names, count);
        let mut inherited = Self::default();
        for at in 0..count {
            let listener =
                listener(&mut sockets, at).map_err(|error| unusable(at, names, &error))?;
            match at {
                _ if Some(at) == traffic => inherited.traffic = listener,
                _ if Some(at) == admin => inherited.admin = listener,
                _ => log::warn!("inherited socket {at} is not used and is closed"),
            }
        }
        Ok(inherited)
    }
}

/// Takes the socket at a position; `None` if it was taken before.
fn listener(sockets: &mut ListenFd, at: usize) -> io::Result<Option<Listener>> {
    let listener = match sockets.take_tcp_listener(at) {
        Ok(tcp) => tcp.map(Listener::Tcp),
        Err(_) => match sockets.take_unix_listener(at) {
            Ok(unix) => unix.map(|unix| Listener::Unix(unix, None)),
            Err(error) => {
                let message = format!("not a TCP or Unix-domain stream socket ({error})");
                return Err(io::Error::new(error.kind(), message));
            }
        },
    };
    // A socket that is only bound, or connected, accepts no connections.
    let is_listening = match &listener {
        Some(Listener::Tcp(tcp)) => SockRef::from(tcp).is_listener()?,
        Some(Listener::Unix(unix, _)) => SockRef::from(unix).is_listener()?,
        None => true,
    };
    if is_listening {
        Ok(listener)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not listening"))
    }
}

fn unusable(at: usize, names: &[String], error: &io::Error) -> io::Error {
    let name = names.get(at).filter(|name| !name.is_empty());
    let name = name.map_or_else(String::new, |name| format!(" ({name:?})"));
    let message = format!(
        "inherited socket {at}{name} cannot be used: {error}; expected a listening stream socket \
         (systemd: ListenStream= with Accept=no)"
    );
    io::Error::new(error.kind(), message)
}

/// Returns the positions of the traffic and the admin listener's socket among `count` sockets.
fn positions(names: &[String], count: usize) -> (Option<usize>, Option<usize>) {
    let name = |at: usize| names.get(at).map_or("", String::as_str);
    let named = |wanted: &str| (0..count).find(|at| name(*at) == wanted);
    let first = || (0..count).find(|at| name(*at) != ADMIN);
    (named(TRAFFIC).or_else(first), named(ADMIN))
}

/// Logs that the socket at `inherited` is used, and warns if `key` configures another address.
pub fn log_inherited(key: &str, configured: &ListenAddress, inherited: &ListenAddress) {
    if is_same(configured, inherited) {
        log::info!("{key} = \"{configured}\": using the inherited socket");
    } else {
        log::warn!(
            "{key} = \"{configured}\" is ignored: using the inherited socket on {inherited}"
        );
    }
}

/// Whether both addresses are the same. A port of all IPv4 addresses is the same as that of all
/// IPv6 addresses: systemd binds to \[::\], which includes IPv4.
fn is_same(configured: &ListenAddress, inherited: &ListenAddress) -> bool {
    match (configured, inherited) {
        (ListenAddress::Tcp(one), ListenAddress::Tcp(other)) => {
            let are_unspecified = one.ip().is_unspecified() && other.ip().is_unspecified();
            one == other || are_unspecified && one.port() == other.port()
        }
        (one, other) => one == other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_all_addresses_is_the_same_in_both_families() {
        let same = |configured: &str, inherited: &str| {
            let [configured, inherited] =
                [configured, inherited].map(|text| ListenAddress::Tcp(text.parse().unwrap()));
            is_same(&configured, &inherited)
        };
        assert!(same("0.0.0.0:8080", "[::]:8080"), "systemd binds ListenStream=8080 like this");
        assert!(same("[::]:8080", "0.0.0.0:8080") && same("10.0.0.1:80", "10.0.0.1:80"));
        assert!(!same("0.0.0.0:8080", "[::]:8081"));
        assert!(!same("127.0.0.1:8080", "[::]:8080") && !same("[::]:8080", "[::1]:8080"));
        let [one, other] = ["/one", "/other"].map(|path| ListenAddress::Unix(path.into()));
        assert!(is_same(&one, &one) && !is_same(&one, &other));
    }

    #[test]
    fn sockets_are_found_by_name_or_else_by_position() {
        let positions = |names: &[&str], count| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            positions(&names, count)
        };
        assert_eq!(positions(&[], 0), (None, None));
        assert_eq!(positions(&[], 1), (Some(0), None));
        assert_eq!(positions(&["wsbalancer.socket"], 1), (Some(0), None));
        assert_eq!(positions(&["admin", "traffic"], 2), (Some(1), Some(0)));
        assert_eq!(positions(&["admin", "unknown"], 2), (Some(1), Some(0)));
        assert_eq!(positions(&["admin"], 1), (None, Some(0)));
        assert_eq!(
            positions(&["x", "traffic", "admin"], 2),
            (Some(1), None),
            "the third was not passed"
        );
    }
}
