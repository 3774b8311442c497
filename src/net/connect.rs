//! Opens connections to pods, for handshakes, plain requests and polls.

use std::{io, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use actix_http::Uri;
use actix_service::{Service as _, ServiceExt as _};
use awc::Connect;
use futures_util::{FutureExt as _, future::LocalBoxFuture};
use socket2::SockRef;
use thiserror::Error;
use tokio::{
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::{tcp::TcpSettings, tls::ClientTls};
use crate::{
    domain::balance::backend::{Backend, Transport},
    relay::Io,
};

/// Why a connection could not be opened.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConnectError {
    /// The pod or the network refused it, or TLS failed.
    #[error("cannot be reached: {0}")]
    Failed(String),
    /// The time limit was reached.
    #[error("cannot be reached within {0:?}")]
    TimedOut(Duration),
}

impl ConnectError {
    fn failed(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }
}

/// How pods are connected to.
#[derive(Clone, Debug)]
pub struct ConnectSettings {
    /// Time limit for a whole connection: DNS look-up, TCP and TLS.
    pub timeout: Duration,
    /// `None` if no pod uses TLS.
    pub tls: Option<Arc<ClientTls>>,
    pub tcp: TcpSettings,
}

impl PartialEq for ConnectSettings {
    /// TLS settings are compared by identity: a reload keeps the old ones if they are
    /// [equivalent](ClientTls::is_equivalent).
    fn eq(&self, other: &Self) -> bool {
        let same_tls = match (&self.tls, &other.tls) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        same_tls && self.timeout == other.timeout && self.tcp == other.tcp
    }
}

type Connecting = LocalBoxFuture<'static, Result<Box<dyn Io>, awc::error::ConnectError>>;

/// Opens connections to pods, on one thread.
pub struct Connector {
    /// A closure, because the type of awc's connector cannot be named.
    tcp: Box<dyn Fn(Connect) -> Connecting>,
    settings: ConnectSettings,
}

impl Connector {
    /// Creates a connector for the current thread.
    pub fn new(settings: ConnectSettings) -> Self {
        let tcp = settings.tcp;
        let tcp = actix_tls::connect::Connector::default().service().map(
            move |connection: actix_tls::connect::Connection<Uri, TcpStream>| {
                // Small frames must not wait for the acknowledgement of earlier ones.
                let _ = TcpStream::set_nodelay(connection.io_ref(), true);
                // An error is ignored: if the connection is dead, the next write fails.
                let _ = tcp.apply(SockRef::from(connection.io_ref()));
                connection
            },
        );
        // No limit: a tunnel would keep a permit for hours, and the pool limits the connections.
        let connector = awc::Connector::new().connector(tcp).timeout(settings.timeout).limit(0);
        let connector = Rc::new(connector.finish());
        let tcp = Box::new(move |connect| {
            let connector = connector.clone();
            async move { Ok(Box::new(connector.call(connect).await?) as Box<dyn Io>) }.boxed_local()
        });
        Self { tcp, settings }
    }

    /// Connects to `backend`, with TLS if its URL says so.
    ///
    /// # Errors
    /// [`ConnectError`]; a problem with the certificate is in its text.
    pub async fn connect(&self, backend: &Backend) -> Result<Box<dyn Io>, ConnectError> {
        let Backend { address, transport, .. } = backend;
        let connected = async {
            match transport {
                Transport::Tcp => self.tcp(address).await,
                Transport::Unix => Ok(Box::new(unix(address).await?) as Box<dyn Io>),
                Transport::Tls => {
                    let no_tls_settings = || ConnectError::failed("no TLS settings for this pod");
                    let tls = self.settings.tls.as_ref().ok_or_else(no_tls_settings)?;
                    let io = self.tcp(address).await?;
                    let secured = tls.connect(address, io).await;
                    Ok(Box::new(
                        secured.map_err(|error| ConnectError::Failed(format!("TLS: {error}")))?,
                    ) as Box<dyn Io>)
                }
            }
        };
        // awc's own time limit does not cover the whole DNS look-up.
        let timed_out = |_| ConnectError::TimedOut(self.settings.timeout);
        timeout(self.settings.timeout, connected).await.map_err(timed_out)?
    }

    async fn tcp(&self, address: &str) -> Result<Box<dyn Io>, ConnectError> {
        let uri = format!("http://{address}").parse::<Uri>().map_err(ConnectError::failed)?;
        // With an IP address there is no look-up, which would occupy a thread.
        let addr = address.parse::<SocketAddr>().ok();
        (self.tcp)(Connect { uri, addr }).await.map_err(|error| match error {
            awc::error::ConnectError::Timeout => ConnectError::TimedOut(self.settings.timeout),
            error => ConnectError::failed(error),
        })
    }
}

async fn unix(path: &str) -> Result<UnixStream, ConnectError> {
    UnixStream::connect(path).await.map_err(|error: io::Error| ConnectError::failed(error))
}
