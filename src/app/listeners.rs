//! The listening sockets: inherited from another process, or bound as configured.

use std::{fmt, io, net::TcpListener};

use crate::{
    config::{self, Config},
    net::{
        activation::{self, InheritedSockets},
        listen::{ListenAddress, Listener, bind_tcp},
    },
};

/// Listeners that are bound but not yet served, so that tests can use port 0.
#[derive(Debug)]
pub struct Listeners {
    /// For clients.
    pub traffic: Listener,
    /// For operators.
    pub admin: TcpListener,
    /// Which of them were inherited.
    pub inherited: Inherited,
}

/// Listeners that were inherited, so that another process may accept from them after this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inherited {
    pub traffic: bool,
    pub admin: bool,
}

impl Listeners {
    /// Takes the listeners that this process inherited (systemd socket activation) and binds the
    /// others as configured.
    ///
    /// # Errors
    /// A listener cannot be used or bound; the error names its key and address.
    pub fn inherit_or_bind(config: &Config) -> io::Result<Self> {
        let sockets = InheritedSockets::take(&config::socket_names())?;
        let inherited =
            Inherited { traffic: sockets.traffic.is_some(), admin: sockets.admin.is_some() };
        let traffic = match sockets.traffic {
            Some(listener) => {
                activation::log_inherited(
                    "server.listen",
                    &config.server.listen,
                    &listener.address()?,
                );
                listener
            }
            None => bind_traffic(config)?,
        };
        let admin = match sockets.admin {
            Some(listener) => {
                let configured = ListenAddress::Tcp(config.admin.listen);
                activation::log_inherited("admin.listen", &configured, &listener.address()?);
                match listener {
                    Listener::Tcp(listener) => listener,
                    Listener::Unix(..) => {
                        let message =
                            "admin.listen: inherited a Unix-domain socket, expected a TCP socket";
                        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
                    }
                }
            }
            None => bind_admin(config)?,
        };
        Ok(Self { traffic, admin, inherited })
    }

    /// Binds both listeners as configured.
    ///
    /// # Errors
    /// A listener cannot be bound; the error names its key and address.
    pub fn bind(config: &Config) -> io::Result<Self> {
        Ok(Self {
            traffic: bind_traffic(config)?,
            admin: bind_admin(config)?,
            inherited: Inherited::default(),
        })
    }
}

fn bind_traffic(config: &Config) -> io::Result<Listener> {
    let address = &config.server.listen;
    Listener::bind(address).map_err(|error| bind_error("server.listen", address, &error))
}

fn bind_admin(config: &Config) -> io::Result<TcpListener> {
    let address = config.admin.listen;
    bind_tcp(address).map_err(|error| bind_error("admin.listen", &address, &error))
}

fn bind_error(key: &str, address: &dyn fmt::Display, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot bind {key} = \"{address}\": {error}"))
}
