//! The tunnel: bytes between a client and a pod, once both have shaken hands.
//!
//! One entry, [`Tunnel::new`], takes two sockets with the bytes that came early and gives back one
//! [`Pump`] per direction and a [`Control`]. Each pump is a future that its actor drives; it ends
//! with the reason why its direction did. This module knows neither actors nor configuration, so
//! that another engine can stand behind the same entry.
//!
//! ```text
//!   client ──► up:   read ─► track ─► write ──► pod
//!   client ◄── down: write ◄─ track ◄─ read ◄── pod
//! ```

pub mod close;
pub mod frame;
mod pump;
mod stats;
pub mod tracker;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    task::Waker,
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};

use self::close::CloseCode;
pub use self::{
    pump::{End, Pump},
    stats::{Direction, DirectionStats, TunnelStats},
};

/// A byte stream that can stand at either end of a tunnel.
pub trait Io: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

/// One end of a tunnel: read by one pump, written by the other, both on the same thread.
pub type Socket = Rc<RefCell<dyn Io>>;

/// One side as the handshake leaves it.
pub struct Peer {
    /// The socket, now the tunnel's alone.
    pub socket: Socket,
    /// What the side sent in the same segments as its handshake; delivered first.
    pub early: BytesMut,
}

impl Peer {
    /// Takes over `io` and the bytes already read from it.
    pub fn new(io: impl Io + 'static, early: BytesMut) -> Self {
        Self { socket: Rc::new(RefCell::new(io)), early }
    }
}

/// A started tunnel: two pumps to drive and the handle that steers them.
pub struct Tunnel {
    /// From the client to the pod.
    pub up: Pump,
    /// From the pod to the client.
    pub down: Pump,
    /// Steers both pumps; dropping it aborts them.
    pub control: Control,
}

impl Tunnel {
    /// Joins two sockets. Nothing moves until the pumps are polled.
    pub fn new(client: Peer, pod: Peer, stats: &Arc<TunnelStats>) -> Self {
        let control = Control { up: Rc::default(), down: Rc::default() };
        let pump = |direction, from: &Socket, to: &Socket, early, switch: &Rc<Switch>| {
            Pump::new(direction, from.clone(), to.clone(), early, stats.clone(), switch.clone())
        };
        let up = pump(Direction::Up, &client.socket, &pod.socket, client.early, &control.up);
        let down = pump(Direction::Down, &pod.socket, &client.socket, pod.early, &control.down);
        Self { up, down, control }
    }
}

/// Ends a tunnel from outside, on the tunnel's own thread.
pub struct Control {
    up: Rc<Switch>,
    down: Rc<Switch>,
}

impl Control {
    /// Sends a Close frame each way at the next frame boundary, then lets both sides answer.
    ///
    /// From the boundary on nothing else is relayed (RFC 6455 §5.5.1). A direction whose sender
    /// has already sent its own Close is left alone. There is no deadline here: a side that never
    /// reaches a boundary or never answers is cut by [`abort`](Self::abort).
    pub fn close(&self, to_client: CloseCode, to_pod: CloseCode, reason: &str) {
        let key = fastrand::u32(..).to_be_bytes();
        self.up.set(Command::Close(frame::close(to_pod, reason, Some(key))));
        self.down.set(Command::Close(frame::close(to_client, reason, None)));
    }

    /// Ends both pumps at once; what they still hold is lost.
    pub fn abort(&self) {
        self.up.set(Command::Abort);
        self.down.set(Command::Abort);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.abort();
    }
}

/// What a pump is told to do beside relaying.
#[derive(Default)]
enum Command {
    #[default]
    Relay,
    /// Inject this frame at the next boundary.
    Close(Vec<u8>),
    Abort,
}

/// A pump's mailbox of one: the latest command and the pump's waker.
#[derive(Default)]
struct Switch {
    command: Cell<Command>,
    waker: RefCell<Option<Waker>>,
}

impl Switch {
    fn set(&self, command: Command) {
        self.command.set(command);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Takes the latest command; [`Command::Relay`] when there is none.
    fn take(&self) -> Command {
        self.command.take()
    }

    fn listen(&self, waker: &Waker) {
        let mut slot = self.waker.borrow_mut();
        if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }
}
