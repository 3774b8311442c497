//! The sockets at both ends of a tunnel.

use std::{cell::RefCell, rc::Rc};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream that can be one end of a tunnel.
pub trait Io: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

/// One end of a tunnel. One pump reads it and the other writes it, both on the same thread.
pub type Socket = Rc<RefCell<dyn Io>>;

/// One side of a tunnel in its state after the handshake.
pub struct TunnelPeer {
    /// The socket, used by the tunnel only.
    pub socket: Socket,
    /// Bytes that were received together with the handshake. They are relayed first.
    pub early: BytesMut,
}

impl TunnelPeer {
    /// Wraps `io` and the bytes that were already read from it.
    pub fn new(io: impl Io + 'static, early: BytesMut) -> Self {
        Self { socket: Rc::new(RefCell::new(io)), early }
    }
}
