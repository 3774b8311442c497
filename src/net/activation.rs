//! Listening sockets that were opened before this process began (socket activation, sd_listen_fds(3)).
//!
//! Whoever starts the process, such as systemd, keeps the sockets open, so that none of the
//! connections that wait in them is lost while one process follows another.

use std::io;

use listenfd::ListenFd;
use socket2::SockRef;

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
    /// One is no listening socket; the error names it and the remedy.
    pub fn take(names: &[String]) -> io::Result<Self> {
        let mut sockets = ListenFd::from_env();
        let count = sockets.len();
        let (traffic, admin) = places(names, count);
        let mut handed = Self::default();
        for at in 0..count {
            let listener = listener(&mut sockets, at).map_err(|why| unusable(at, names, &why))?;
            match at {
                _ if Some(at) == traffic => handed.traffic = listener,
                _ if Some(at) == admin => handed.admin = listener,
                _ => log::warn!("socket {at} was handed over and has no use: it is closed"),
            }
        }
        Ok(handed)
    }
}

/// The socket at this place, unless somebody has taken it.
fn listener(sockets: &mut ListenFd, at: usize) -> io::Result<Option<Listener>> {
    let listener = match sockets.take_tcp_listener(at) {
        Ok(tcp) => tcp.map(Listener::Tcp),
        Err(_) => match sockets.take_unix_listener(at) {
            Ok(unix) => unix.map(|unix| Listener::Unix(unix, None)),
            Err(error) => {
                let why = format!("it is no stream socket of TCP or a Unix domain ({error})");
                return Err(io::Error::new(error.kind(), why));
            }
        },
    };
    // Nobody could ever be accepted from one that is bound only, or connected.
    let listens = match &listener {
        Some(Listener::Tcp(tcp)) => SockRef::from(tcp).is_listener()?,
        Some(Listener::Unix(unix, _)) => SockRef::from(unix).is_listener()?,
        None => true,
    };
    if listens {
        Ok(listener)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it does not listen"))
    }
}

fn unusable(at: usize, names: &[String], why: &io::Error) -> io::Error {
    let name = names.get(at).filter(|name| !name.is_empty());
    let name = name.map_or_else(String::new, |name| format!(" ({name:?})"));
    let told = format!(
        "socket {at}{name} that was handed over cannot be used: {why}; expected a listening \
         stream socket (of systemd: ListenStream=, with Accept=no)"
    );
    io::Error::new(why.kind(), told)
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
    if is_same(configured, handed) {
        log::info!("{key} = \"{configured}\": the socket was handed over");
    } else {
        log::warn!("{key} = \"{configured}\" is not used: a socket on {handed} was handed over");
    }
}

/// Whether `handed` is what `configured` asks for. A port of every address is: systemd binds it on
/// \[::\], where IPv4 comes in too.
fn is_same(configured: &ListenAddress, handed: &ListenAddress) -> bool {
    match (configured, handed) {
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
    fn a_port_of_any_address_is_the_same_in_both_families() {
        let same = |configured: &str, handed: &str| {
            let [configured, handed] =
                [configured, handed].map(|text| ListenAddress::Tcp(text.parse().unwrap()));
            is_same(&configured, &handed)
        };
        assert!(same("0.0.0.0:8080", "[::]:8080"), "as systemd binds ListenStream=8080");
        assert!(same("[::]:8080", "0.0.0.0:8080") && same("10.0.0.1:80", "10.0.0.1:80"));
        assert!(!same("0.0.0.0:8080", "[::]:8081"));
        assert!(!same("127.0.0.1:8080", "[::]:8080") && !same("[::]:8080", "[::1]:8080"));
        let [one, other] = ["/one", "/other"].map(|path| ListenAddress::Unix(path.into()));
        assert!(is_same(&one, &one) && !is_same(&one, &other));
    }

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
