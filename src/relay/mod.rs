//! The tunnel: relays bytes between a client and a pod after both handshakes.
//!
//! [`Tunnel::new`] takes two sockets, each with the bytes that were read from it too early, and
//! returns one [`Pump`] per direction and a [`TunnelControl`]. Each pump is a future that an actor
//! drives; its output says how its direction ended. This module knows neither actors nor
//! configuration, so another engine can replace it behind the same functions.
//!
//! ```text
//!   client ──► from_client: read  ─► track ─► write ──► pod
//!   client ◄── from_pod:    write ◄─ track ◄─ read  ◄── pod
//! ```

mod control;
pub mod filter;
pub mod frame;
mod peer;
mod pump;
mod stats;
pub mod tracker;
mod tunnel;
mod write_buffer;

pub use self::{
    control::{ActivityView, TunnelControl},
    peer::{Io, Socket, TunnelPeer},
    pump::{Pump, PumpEnd},
    stats::{DirectionStats, TunnelStats},
    tunnel::{Tunnel, TunnelRules},
};
