//! Who holds state and who talks to whom.
//!
//! | message | from → to | answer |
//! |---|---|---|
//! | [`metrics::PickBackend`] | handshake → [`MetricsActor`] | `Lease` or `NoBackend` |
//! | [`metrics::Polled`] | poll task → [`MetricsActor`] | – |
//! | [`metrics::OperatorDrain`] | admin handler → [`MetricsActor`] | the backends that are meant |
//! | [`metrics::Snapshot`] | admin handler → [`MetricsActor`] | every backend as it stands |
//! | [`metrics::Reconfigure`] | reload → [`MetricsActor`] | once new indexes may be asked for |
//! | [`discovery::SetWatches`] | reload → [`DiscoveryActor`] | – |
//! | [`discovery::BackendsChanged`], [`discovery::ReplicasChanged`] | [`DiscoveryActor`] → [`MetricsActor`] | – |
//! | [`discovery::Discovered`] | admin handler → [`DiscoveryActor`] | what DNS has said |
//! | [`registry::SessionOpened`], [`registry::SessionClosed`] | session → [`RegistryActor`] | – |
//! | [`registry::CountSessions`], [`registry::ListSessions`] | admin handler → [`RegistryActor`] | how many live; which |
//! | [`registry::CloseOne`] | admin handler → [`RegistryActor`] | the session, if it lives |
//! | [`registry::MoveSessions`] | [`MetricsActor`] → [`RegistryActor`] | – |
//! | [`registry::DrainAll`], [`registry::AwaitEmpty`], [`registry::CountDrained`] | shutdown → [`RegistryActor`] | when all are gone; how many there were |
//! | [`registry::MoveAll`] | [`MetricsActor`] → [`RegistryActor`] | – |
//! | [`session::CloseSession`] | [`RegistryActor`] → [`SessionActor`] | – |
//! | `timeouts::Act` | a worker's sweep → [`SessionActor`] | – |
//! | [`session::PodSideEnded`] | [`BackendActor`] → [`SessionActor`] | – |
//!
//! [`MetricsActor`], [`DiscoveryActor`] and [`RegistryActor`] live on a control thread of their own,
//! so that health and metrics answer while the workers are busy; [`supervision`] keeps them going
//! when a handler panics. A [`SessionActor`] and its [`BackendActor`] live on the worker that accepted
//! the client; the bytes between them cross no mailbox.
//!
//! [`DiscoveryActor`]: discovery::DiscoveryActor
//! [`MetricsActor`]: metrics::MetricsActor
//! [`RegistryActor`]: registry::RegistryActor
//! [`SessionActor`]: session::SessionActor
//! [`BackendActor`]: backend::BackendActor

pub mod backend;
pub mod discovery;
pub mod ending;
pub mod metrics;
pub mod poll;
pub mod registry;
pub mod session;
pub mod supervision;
mod timeouts;
