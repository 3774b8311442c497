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
pub mod filter;
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

use self::{
    close::CloseCode,
    filter::{Awaited, FrameLimits, Sieve},
    frame::PingPayload,
};
pub use self::{
    pump::{End, Pump},
    stats::{Direction, DirectionStats, FirstEnd, TunnelStats},
};

/// A byte stream that can stand at either end of a tunnel.
pub trait Io: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

/// One end of a tunnel: read by one pump, written by the other, both on the same thread.
pub type Socket = Rc<RefCell<dyn Io>>;

/// One side as the handshake leaves it.
pub struct TunnelPeer {
    /// The socket, now the tunnel's alone.
    pub socket: Socket,
    /// What the side sent in the same segments as its handshake; delivered first.
    pub early: BytesMut,
}

impl TunnelPeer {
    /// Takes over `io` and the bytes already read from it.
    pub fn new(io: impl Io + 'static, early: BytesMut) -> Self {
        Self { socket: Rc::new(RefCell::new(io)), early }
    }
}

/// What holds in a tunnel beside passing on everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelRules {
    /// What clients may send.
    pub limits: FrameLimits,
    /// Whether clients are sent Pings, and whether pods are.
    pub pings: [bool; 2],
    /// What a client is told whose pod is gone.
    pub pod_lost: CloseCode,
}

impl Default for TunnelRules {
    /// Everything passes.
    fn default() -> Self {
        let pod_lost = CloseCode::SERVICE_RESTART;
        Self { limits: FrameLimits::default(), pings: [false; 2], pod_lost }
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
    pub fn new(
        client: TunnelPeer,
        pod: TunnelPeer,
        stats: &Arc<TunnelStats>,
        rules: &TunnelRules,
    ) -> Self {
        let [pings_client, pings_pod] = rules.pings;
        let payload = fastrand::u64(..).to_be_bytes();
        let sieve = |limits: FrameLimits, pings: bool| {
            (pings || limits != FrameLimits::default())
                .then(|| Box::new(Sieve::new(limits, payload)))
        };
        let [up_sieve, down_sieve] =
            [sieve(rules.limits, pings_client), sieve(FrameLimits::default(), pings_pod)];
        let (up, down, turns) = Default::default();
        let pulse = Pulse { up, down, turns, payload };
        let up = Pump::new(
            Direction::Up,
            (client.socket.clone(), client.early, up_sieve),
            (pod.socket.clone(), CloseCode::GOING_AWAY),
            stats.clone(),
            &pulse,
        );
        let down = Pump::new(
            Direction::Down,
            (pod.socket, pod.early, down_sieve),
            (client.socket, rules.pod_lost),
            stats.clone(),
            &pulse,
        );
        Self { up, down, control: Control(pulse) }
    }
}

/// Ends a tunnel from outside, on the tunnel's own thread.
pub struct Control(Pulse);

impl Control {
    /// Sends a Close frame each way at the next frame boundary, then lets both sides answer.
    ///
    /// From the boundary on nothing else is relayed (RFC 6455 §5.5.1). A direction whose sender
    /// has already sent its own Close is left alone. There is no deadline here: a side that never
    /// reaches a boundary or never answers is cut by [`abort`](Self::abort).
    pub fn close(&self, to_client: CloseCode, to_pod: CloseCode, reason: &str) {
        let Pulse { up, down, .. } = &self.0;
        up.set(Command::Close(frame::close(to_pod, reason, Some(masking_key()))));
        down.set(Command::Close(frame::close(to_client, reason, None)));
    }

    /// Gives the peer up from which `direction` comes: its bytes end here, and the other side is told
    /// as if it had vanished. It gets no more than a Close with `reason`, and not even that if there
    /// is something that it has not taken.
    pub fn give_up(&self, direction: Direction, reason: &str) {
        let Pulse { up, down, .. } = &self.0;
        let (source, sink, mask) = match direction {
            Direction::Up => (up, down, None),
            Direction::Down => (down, up, Some(masking_key())),
        };
        source.set(Command::SourceLost);
        sink.set(match sink.waiting.get() {
            0 => Command::Close(frame::close(CloseCode::GOING_AWAY, reason, mask)),
            _ => Command::SinkLost,
        });
    }

    /// Sends a Ping against `direction`, to the peer from which it comes, at the next frame
    /// boundary. Its answer is swallowed.
    pub fn ping(&self, direction: Direction) {
        let Pulse { up, down, payload, .. } = &self.0;
        match direction {
            Direction::Up => down.offer(Command::Ping(frame::ping(payload, None))),
            Direction::Down => up.offer(Command::Ping(frame::ping(payload, Some(masking_key())))),
        }
    }

    /// What can be seen of the pumps from outside.
    pub fn pulse(&self) -> Pulse {
        self.0.clone()
    }

    /// Ends both pumps at once; what they still hold is lost.
    pub fn abort(&self) {
        let Pulse { up, down, .. } = &self.0;
        up.set(Command::Abort);
        down.set(Command::Abort);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.abort();
    }
}

fn masking_key() -> [u8; 4] {
    fastrand::u32(..).to_be_bytes()
}

/// Live figures of a tunnel's pumps, on the tunnel's own thread.
#[derive(Clone)]
pub struct Pulse {
    up: Rc<Switch>,
    down: Rc<Switch>,
    turns: Rc<Cell<u32>>,
    payload: PingPayload,
}

impl Pulse {
    /// Counts the turns of both pumps: as long as it stays, nothing that can be seen here changes.
    pub fn turns(&self) -> u32 {
        self.turns.get()
    }

    /// Whether nobody else holds on to the tunnel.
    pub fn is_gone(&self) -> bool {
        Rc::strong_count(&self.turns) == 1
    }

    /// Bytes of `direction` that its sink has yet to take. Those that it holds itself, as TLS does,
    /// count as one.
    pub fn waiting(&self, direction: Direction) -> usize {
        self.of(direction).waiting.get()
    }

    /// Pings that have gone along with `direction`.
    pub fn pings(&self, direction: Direction) -> u32 {
        self.of(direction).pings.get()
    }

    /// Bytes of `direction` that answered our Pings; the tunnel's figures are without them.
    pub fn swallowed(&self, direction: Direction) -> u64 {
        self.of(direction).awaited.swallowed.get()
    }

    /// A Close of ours is on its way, or a peer is dead and all that it has sent is delivered: the end
    /// has begun, and should not take long.
    pub fn is_closing(&self) -> bool {
        let (up, down) = (&self.up, &self.down);
        let is_in_vain = |pump: &Switch, other: &Switch| {
            pump.is_closing.get() || (pump.has_lost_sink.get() && other.is_over.get())
        };
        is_in_vain(up, down) || is_in_vain(down, up)
    }

    fn of(&self, direction: Direction) -> &Switch {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }
}

/// What a pump is told to do beside relaying.
#[derive(Default)]
enum Command {
    #[default]
    Relay,
    /// Inject this frame at the next boundary.
    Ping(Vec<u8>),
    /// Inject this frame at the next boundary, and nothing after it.
    Close(Vec<u8>),
    /// Nothing more comes from the source.
    SourceLost,
    /// The sink takes nothing more.
    SinkLost,
    Abort,
}

/// A pump's mailbox of one, the latest command and the pump's waker; and what it shows of itself.
#[derive(Default)]
struct Switch {
    command: Cell<Command>,
    waker: RefCell<Option<Waker>>,
    /// See [`Pulse::waiting`].
    waiting: Cell<usize>,
    /// Pings that have gone to the sink.
    pings: Cell<u32>,
    /// Answers that the source owes to the Pings of the other direction.
    awaited: Awaited,
    /// See [`Pulse::is_closing`].
    is_closing: Cell<bool>,
    /// What still comes from the source is for nobody.
    has_lost_sink: Cell<bool>,
    /// All that came from the source is delivered.
    is_over: Cell<bool>,
}

impl Switch {
    fn set(&self, command: Command) {
        self.command.set(command);
        self.wake();
    }

    /// Sets `command` unless there is a greater one.
    fn offer(&self, command: Command) {
        match self.command.take() {
            Command::Relay | Command::Ping(_) => self.set(command),
            greater => self.command.set(greater),
        }
    }

    fn wake(&self) {
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
