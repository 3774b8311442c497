//! The registry of live sessions, and the ways in which it closes them.

mod departure;
mod sessions;

pub use self::{
    departure::{CountDrained, DrainAll, Drained, MoveAll, MovePace, MoveSessions},
    sessions::{
        CloseById, CloseSession, CountSessions, ListSessions, Registration, RegistryActor,
        SessionClosed, SessionOpened, Sessions, WaitUntilEmpty,
    },
};
