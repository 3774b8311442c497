//! The actors, and the messages between them.
//!
//! | message | from → to | answer |
//! |---|---|---|
//! | [`metrics::PickBackend`] | handshake, plain request → [`MetricsActor`] | `Lease` or `NoBackend` |
//! | [`poll::PollFinished`] | poll task → [`MetricsActor`] | – |
//! | [`metrics::SetDrain`] | admin handler → [`MetricsActor`] | the backends concerned |
//! | [`metrics::Snapshot`] | admin handler, shutdown → [`MetricsActor`] | the state of every backend |
//! | [`metrics::Reconfigure`] | reload → [`MetricsActor`] | when new services are known |
//! | [`discovery::SetLookups`] | reload → [`DiscoveryActor`] | – |
//! | [`discovery::BackendsChanged`], [`discovery::ReplicasChanged`] | [`DiscoveryActor`] → [`MetricsActor`] | – |
//! | [`discovery::GetLookups`] | admin handler → [`DiscoveryActor`] | the state of every lookup |
//! | [`registry::SessionOpened`], [`registry::SessionClosed`] | session → [`RegistryActor`] | – |
//! | [`registry::CountSessions`], [`registry::ListSessions`] | admin handler → [`RegistryActor`] | live sessions |
//! | [`registry::CloseById`] | admin handler → [`RegistryActor`] | the session, if it is live |
//! | [`registry::MoveSessions`], [`registry::MoveAll`] | [`MetricsActor`] → [`RegistryActor`] | – |
//! | [`registry::DrainAll`] | shutdown → [`RegistryActor`] | – |
//! | [`registry::WaitUntilEmpty`], [`registry::CountDrained`] | shutdown → [`RegistryActor`] | when no session is live; how many there were |
//! | [`registry::CloseSession`] | [`RegistryActor`] → [`SessionActor`] | – |
//! | `timeouts::ApplyTimeout` | timeout scan of a worker → [`SessionActor`] | – |
//! | [`backend::PodSideEnded`] | [`BackendActor`] → [`SessionActor`] | – |
//!
//! The control actors [`MetricsActor`], [`DiscoveryActor`] and [`RegistryActor`] share a thread of
//! their own, so that health and metrics answer while the workers are busy; [`supervision`] keeps
//! them running after a panic. A [`SessionActor`] and its [`BackendActor`] run on the worker that
//! accepted the client; the bytes between them never pass through a mailbox.
//!
//! [`DiscoveryActor`]: discovery::DiscoveryActor
//! [`MetricsActor`]: metrics::MetricsActor
//! [`RegistryActor`]: registry::RegistryActor
//! [`SessionActor`]: session::SessionActor
//! [`BackendActor`]: backend::BackendActor

pub mod backend;
pub mod discovery;
pub mod metrics;
pub mod poll;
pub mod registry;
pub mod session;
pub mod session_info;
pub mod supervision;
mod timeouts;
