//! Listening sockets that were opened before this process began (socket activation, sd_listen_fds(3)).
//!
//! Whoever starts the process, such as systemd, keeps the sockets open, so that none of the
//! connections that wait in them is lost while one process follows another.

use std::io;

use listenfd::ListenFd;

use super::listen::{ListenAddress, Listener};

/// Name of the socket for clients; without any of that name it is the first.
const TRAFFIC: &str = "traffic";

/// Name of the socket for operators.
const ADMIN: &str = "admin";

/// The sockets that were handed over.
#[derive(Debug, Default)]
pub struct Handed {
    /// For clients.
    pub traffic: Option<Listener>,
    /// For operators.
    pub admin: Option<Listener>,
}

impl Handed {
    /// Takes over what LISTEN_PID and LISTEN_FDS say is there; `names` are those of LISTEN_FDNAMES.
    /// Once in a process: the variables are gone afterwards.
    ///
    /// # Errors
    /// One is no listening socket that can be used.
    pub fn take(names: &[String]) -> io::Result<Self> {
        let mut sockets = ListenFd::from_env();
        let count = sockets.len();
        let (traffic, admin) = places(names, count);
        let mut handed = Self::default();
        for at in 0..count {
            let listener = match sockets.take_tcp_listener(at) {
                Ok(tcp) => tcp.map(Listener::Tcp),
                Err(_) => sockets.take_unix_listener(at)?.map(|unix| Listener::Unix(unix, None)),
            };
            match at {
                _ if Some(at) == traffic => handed.traffic = listener,
                _ if Some(at) == admin => handed.admin = listener,
                _ => log::warn!("socket {at} was handed over and has no use: it is closed"),
            }
        }
        Ok(handed)
    }
}

/// Which of `count` sockets are those for clients and for operators.
fn places(names: &[String], count: usize) -> (Option<usize>, Option<usize>) {
    let name = |at: usize| names.get(at).map_or("", String::as_str);
    let named = |wanted: &str| (0..count).find(|at| name(*at) == wanted);
    let first = || (0..count).find(|at| name(*at) != ADMIN);
    (named(TRAFFIC).or_else(first), named(ADMIN))
}

/// Says that `handed` is used, and whether it is what `configured` asks for, by `key`.
pub fn tell(key: &str, configured: &ListenAddress, handed: &ListenAddress) {
    if configured == handed {
        log::info!("{key} = \"{configured}\": the socket was handed over");
    } else {
        log::warn!("{key} = \"{configured}\" is not used: a socket on {handed} was handed over");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_known_by_name_and_else_by_place() {
        let places = |names: &[&str], count| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            places(&names, count)
        };
        assert_eq!(places(&[], 0), (None, None));
        assert_eq!(places(&[], 1), (Some(0), None));
        assert_eq!(places(&["wsbalancer.socket"], 1), (Some(0), None));
        assert_eq!(places(&["admin", "traffic"], 2), (Some(1), Some(0)));
        assert_eq!(places(&["admin", "unknown"], 2), (Some(1), Some(0)));
        assert_eq!(places(&["admin"], 1), (None, Some(0)));
        assert_eq!(
            places(&["x", "traffic", "admin"], 2),
            (Some(1), None),
            "the third is not there"
        );
    }
}
