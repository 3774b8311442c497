//! Binds listening sockets: TCP or Unix-domain.

use std::{
    fmt, fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::{
        fs::FileTypeExt as _,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use socket2::{Domain, SockAddr, Socket, Type};

/// Length of the accept queue: after a restart all clients reconnect at once. The kernel limits it
/// to `net.core.somaxconn`, 4096 by default.
const BACKLOG: i32 = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    /// A Unix-domain socket, with its file unless the socket is inherited.
    Unix(UnixListener, Option<SocketFile>),
}

/// The file of a Unix-domain socket; it is removed on drop.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Binds to `address`. The file of a Unix-domain socket without a listener is replaced.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn bind(address: &ListenAddress) -> io::Result<Self> {
        match address {
            ListenAddress::Tcp(address) => bind_tcp(*address).map(Self::Tcp),
            ListenAddress::Unix(path) => {
                remove_stale(path)?;
                let listener = listen(Domain::UNIX, &SockAddr::unix(path)?)?;
                Ok(Self::Unix(listener.into(), Some(SocketFile(path.clone()))))
            }
        }
    }

    /// Returns the address it listens on.
    ///
    /// # Errors
    /// The system cannot return it.
    pub fn address(&self) -> io::Result<ListenAddress> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(ListenAddress::Tcp),
            Self::Unix(listener, _) => {
                let address = listener.local_addr()?;
                Ok(ListenAddress::Unix(address.as_pathname().unwrap_or(Path::new("")).to_owned()))
            }
        }
    }
}

/// Binds like `TcpListener::bind`, but with a longer accept queue than the standard library's 128.
///
/// # Errors
/// The address cannot be bound.
pub fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    listen(Domain::for_address(address), &address.into()).map(Into::into)
}

fn listen(domain: Domain, address: &SockAddr) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Removes the socket file of a process that was killed: it would prevent binding.
fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if is_socket && UnixStream::connect(path).is_err_and(refused) {
        fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_or_another_file_is_not() {
        let name = format!("wsbalancer-{}-{:x}.sock", std::process::id(), fastrand::u64(..));
        let path = std::env::temp_dir().join(name);
        let address = ListenAddress::Unix(path.clone());
        let first = Listener::bind(&address).unwrap();
        assert_eq!(first.address().unwrap(), address);
        assert!(Listener::bind(&address).is_err(), "it has a listener");
        let Listener::Unix(listener, file) = first else { panic!("not a Unix listener") };
        drop(listener);
        assert!(path.exists(), "a killed process leaves its file");
        let second = Listener::bind(&address).unwrap();
        std::mem::forget(file);
        drop(second);
        assert!(!path.exists(), "removed with its listener");
        fs::write(&path, "no socket").unwrap();
        assert!(Listener::bind(&address).is_err());
        fs::remove_file(&path).unwrap();
    }
}
