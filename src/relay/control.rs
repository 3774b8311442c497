//! Controls the pumps of a tunnel from outside, and shows their activity.
//!
//! Everything here stays on the thread of the tunnel.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::Waker,
};

use super::{
    filter::AwaitedPongs,
    frame::{self, PingPayload},
};
use crate::domain::session::{close_code::CloseCodes, ending::Ending, side::Side};

/// Ends a tunnel from outside. Dropping it aborts the tunnel.
pub struct TunnelControl(ActivityView);

impl TunnelControl {
    pub(super) fn new(view: ActivityView) -> Self {
        Self(view)
    }

    /// Ends the tunnel for a reason of the balancer's own.
    ///
    /// If one side is dead, the other side gets the same Close as if that connection had ended. Otherwise both
    /// sides get a Close frame at the next frame boundary, after which nothing else is relayed
    /// (RFC 6455 §5.5.1) and both sides may answer. A direction whose sender has already sent its own
    /// Close is left alone.
    ///
    /// This sets no deadline: a side that never reaches a boundary or never answers has to be cut by
    /// [`abort`](Self::abort).
    pub fn end(&self, ending: Ending, close_codes: CloseCodes) {
        match ending.dead_side() {
            Some(side) => self.give_up(side, ending, close_codes),
            None => {
                for side in [Side::Pod, Side::Client] {
                    if let Some(frame) = close_frame(side, ending, close_codes) {
                        self.0.cell_to(side).set(Command::Close(frame));
                    }
                }
            }
        }
    }

    /// Ends reading from `side`. It gets a Close frame only if nothing else waits to be written to
    /// it, because a frame cannot overtake bytes that were relayed before.
    fn give_up(&self, side: Side, ending: Ending, close_codes: CloseCodes) {
        self.0.cell_from(side).set(Command::SourceLost(ending));
        let to_side = self.0.cell_to(side);
        to_side.set(match close_frame(side, ending, close_codes) {
            Some(frame) if to_side.pending.get() == 0 => Command::Close(frame),
            _ => Command::SinkLost,
        });
    }

    /// Sends a Ping to `side` at the next frame boundary. The Pong that answers it is not relayed.
    pub fn ping(&self, side: Side) {
        let ping = frame::ping(&self.0.ping_payload, frame::mask_to(side));
        self.0.cell_to(side).offer(Command::Ping(ping));
    }

    /// Returns a view of the activity of both pumps.
    pub fn view(&self) -> ActivityView {
        self.0.clone()
    }

    /// Ends both pumps at once. Bytes that are not yet written are lost.
    pub fn abort(&self) {
        for side in Side::BOTH {
            self.0.cell_from(side).set(Command::Abort);
        }
    }

    #[cfg(test)]
    pub(super) fn cell_to(&self, side: Side) -> &CommandCell {
        self.0.cell_to(side)
    }
}

impl Drop for TunnelControl {
    fn drop(&mut self) {
        self.abort();
    }
}

/// Returns the Close frame that `side` gets for this ending, if it gets one.
pub(super) fn close_frame(side: Side, ending: Ending, codes: CloseCodes) -> Option<Vec<u8>> {
    let code = ending.code_for(side, codes)?;
    Some(frame::close(code, ending.row().reason, frame::mask_to(side)))
}

/// A live view of the activity of a tunnel's pumps.
#[derive(Clone)]
pub struct ActivityView {
    from_client: Rc<CommandCell>,
    from_pod: Rc<CommandCell>,
    poll_count: Rc<Cell<u32>>,
    ping_payload: PingPayload,
}

impl ActivityView {
    pub(super) fn new(ping_payload: PingPayload) -> Self {
        let (from_client, from_pod, poll_count) = Default::default();
        Self { from_client, from_pod, poll_count, ping_payload }
    }

    /// Returns how often the pumps have been polled. While it stays the same, everything else that
    /// this view shows stays the same too.
    pub fn poll_count(&self) -> u32 {
        self.poll_count.get()
    }

    /// Returns whether the tunnel is gone: this view is the last one that refers to it.
    pub fn is_orphaned(&self) -> bool {
        Rc::strong_count(&self.poll_count) == 1
    }

    /// Returns how many bytes wait to be written to `side`. Bytes that the socket itself buffers, as
    /// TLS does, count as one byte.
    pub fn pending_to(&self, side: Side) -> usize {
        self.cell_to(side).pending.get()
    }

    /// Returns how many Pings have been sent to `side`.
    pub fn pings_to(&self, side: Side) -> u32 {
        self.cell_to(side).pings_sent.get()
    }

    /// Returns how many bytes of `side` answered Pings of the balancer. They are not relayed and not
    /// part of the tunnel's statistics.
    pub fn pong_bytes_from(&self, side: Side) -> u64 {
        self.cell_from(side).awaited_pongs.received_bytes.get()
    }

    /// Returns whether the tunnel is closing: a Close frame of the balancer is on its way, or a side is
    /// dead and everything that it sent is delivered. From here on `close_timeout` counts.
    pub fn is_closing(&self) -> bool {
        let (from_client, from_pod) = (&self.from_client, &self.from_pod);
        let is_over = |cell: &CommandCell, opposite: &CommandCell| {
            cell.is_closing.get() || (cell.has_lost_sink.get() && opposite.is_over.get())
        };
        is_over(from_client, from_pod) || is_over(from_pod, from_client)
    }

    /// Returns the cell of the pump that reads from `side`.
    pub(super) fn cell_from(&self, side: Side) -> &Rc<CommandCell> {
        match side {
            Side::Client => &self.from_client,
            Side::Pod => &self.from_pod,
        }
    }

    /// Returns the cell of the pump that writes to `side`.
    pub(super) fn cell_to(&self, side: Side) -> &Rc<CommandCell> {
        self.cell_from(side.other())
    }

    pub(super) fn poll_counter(&self) -> &Rc<Cell<u32>> {
        &self.poll_count
    }
}

/// A command to a pump.
#[derive(Default)]
pub(super) enum Command {
    /// Relays on: there is no command.
    #[default]
    Relay,
    /// Injects this frame at the next boundary.
    Ping(Vec<u8>),
    /// Injects this frame at the next boundary and relays nothing after it.
    Close(Vec<u8>),
    /// Stops reading: the source is treated as dead.
    SourceLost(Ending),
    /// Stops writing: the sink is treated as dead.
    SinkLost,
    Abort,
}

/// Holds the latest command to a pump, the pump's waker, and the state that the pump shows.
#[derive(Default)]
pub(super) struct CommandCell {
    command: Cell<Command>,
    waker: RefCell<Option<Waker>>,
    /// See [`ActivityView::pending_to`].
    pub pending: Cell<usize>,
    pub pings_sent: Cell<u32>,
    /// Pongs that the source owes to the Pings that the other pump has sent.
    pub awaited_pongs: AwaitedPongs,
    /// See [`ActivityView::is_closing`].
    pub is_closing: Cell<bool>,
    /// The sink is dead: what the source still sends cannot be delivered.
    pub has_lost_sink: Cell<bool>,
    /// Everything that the source has sent is delivered.
    pub is_over: Cell<bool>,
}

impl CommandCell {
    pub fn set(&self, command: Command) {
        self.command.set(command);
        self.wake();
    }

    /// Sets `command` unless a more important one waits.
    fn offer(&self, command: Command) {
        match self.command.take() {
            Command::Relay | Command::Ping(_) => self.set(command),
            more_important => self.command.set(more_important),
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Removes and returns the latest command, or [`Command::Relay`] if there is none.
    pub fn take(&self) -> Command {
        self.command.take()
    }

    pub fn set_waker(&self, waker: &Waker) {
        let mut current = self.waker.borrow_mut();
        if !current.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *current = Some(waker.clone());
        }
    }
}
