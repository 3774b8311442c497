//! Opens connections to pods: handshakes, plain requests and polls all go this way.

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
    domain::balance::lease::{Backend, Transport},
    relay::Io,
};

/// Why there is no connection.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConnectError {
    /// The pod or the network said no.
    #[error("cannot be reached: {0}")]
    Failed(String),
    /// Nobody said anything.
    #[error("cannot be reached within {0:?}")]
    TimedOut(Duration),
}

impl ConnectError {
    fn failed(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }
}

/// How pods are reached.
#[derive(Clone, Debug)]
pub struct ConnectSettings {
    /// For a whole connection: name look-up, TCP and TLS.
    pub timeout: Duration,
    /// For pods that speak TLS; `None` where none does.
    pub tls: Option<Arc<ClientTls>>,
    /// When TCP gives a pod up.
    pub tcp: TcpSettings,
}

impl PartialEq for ConnectSettings {
    /// TLS is the same where it is one and the same: [`ClientTls::is_like`] says whether it need be
    /// another.
    fn eq(&self, other: &Self) -> bool {
        let same_tls = match (&self.tls, &other.tls) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        same_tls && self.timeout == other.timeout && self.tcp == other.tcp
    }
}

type Connecting = LocalBoxFuture<'static, Result<Box<dyn Io>, awc::error::ConnectError>>;

/// Opens connections on one thread.
pub struct Connector {
    /// A closure, because awc's connector has no type that can be named.
    tcp: Box<dyn Fn(Connect) -> Connecting>,
    settings: ConnectSettings,
}

impl Connector {
    /// A connector for the current thread.
    pub fn new(settings: ConnectSettings) -> Self {
        let tcp = settings.tcp;
        let tcp = actix_tls::connect::Connector::default().service().map(
            move |connection: actix_tls::connect::Connection<Uri, TcpStream>| {
                // Small frames must not wait for the acknowledgement of earlier ones.
                let _ = TcpStream::set_nodelay(connection.io_ref(), true);
                // A connection that is dead already shows so when it is written to.
                let _ = tcp.apply(SockRef::from(connection.io_ref()));
                connection
            },
        );
        // No limit: a tunnel keeps its permit for hours, and capacity is the pool's to judge.
        let connector = awc::Connector::new().connector(tcp).timeout(settings.timeout).limit(0);
        let connector = Rc::new(connector.finish());
        let tcp = Box::new(move |connect| {
            let connector = connector.clone();
            async move { Ok(Box::new(connector.call(connect).await?) as Box<dyn Io>) }.boxed_local()
        });
        Self { tcp, settings }
    }

    /// A connection to `backend`, through TLS where it speaks that.
    ///
    /// # Errors
    /// [`ConnectError`]; what TLS has against the pod is in its text.
    pub async fn connect(&self, backend: &Backend) -> Result<Box<dyn Io>, ConnectError> {
        let Backend { address, transport, .. } = backend;
        let connected = async {
            match transport {
                Transport::Tcp => self.tcp(address).await,
                Transport::Unix => Ok(Box::new(unix(address).await?) as Box<dyn Io>),
                Transport::Tls => {
                    let no_tls = || ConnectError::failed("TLS is not set up for this pod");
                    let tls = self.settings.tls.as_ref().ok_or_else(no_tls)?;
                    let io = self.tcp(address).await?;
                    let secured = tls.connect(address, io).await;
                    Ok(Box::new(
                        secured.map_err(|error| ConnectError::Failed(format!("TLS: {error}")))?,
                    ) as Box<dyn Io>)
                }
            }
        };
        // awc's own time-out covers neither its permit nor the whole of the look-up.
        let too_late = |_| ConnectError::TimedOut(self.settings.timeout);
        timeout(self.settings.timeout, connected).await.map_err(too_late)?
    }

    async fn tcp(&self, address: &str) -> Result<Box<dyn Io>, ConnectError> {
        let uri = format!("http://{address}").parse::<Uri>().map_err(ConnectError::failed)?;
        // A literal address saves the look-up, which would block a thread.
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
