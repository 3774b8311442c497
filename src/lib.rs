//! wsbalancer: a WebSocket connection balancer on actix actors.
//!
//! For every new connection it picks the pod with the fewest active connections, opens a WebSocket
//! to that pod, and relays both ways until either side ends.
//!
//! ```text
//!  clients ──► Traefik ──► traffic listener ─ SessionActor ═ BackendActor ──► pods  /ws …
//!                                                │                             │
//!             operators ──► admin listener       │ PickBackend                 │ /metric
//!                            /balancer-metrics   ▼                             ▼
//!                      /livez /readyz /api ── RegistryActor, MetricsActor ── polls
//!                                                DiscoveryActor ── lookups ──► DNS
//!
//!  data plane (worker threads): sessions; bytes never pass through a mailbox
//!  control plane (threads of its own): pods' counts, live sessions, admin answers
//! ```
//!
//! # One connection's way
//!
//! 1. [`traffic::listener`] runs on every worker. It reads a PROXY header and does the TLS handshake
//!    where these are configured. `traffic::request_reader` reads every request head; a request
//!    that is not a handshake continues in `traffic::plain`.
//! 2. `traffic::handshake` checks the request (RFC 6455 §4.2.1). `traffic::routing` finds its service,
//!    [`traffic::headers::forwarded`] builds the header fields for the pod, `traffic::headers::cookie`
//!    reads which pod the client was on, and [`domain::session::admission`] applies session limits.
//! 3. `traffic::attempts` asks for a lease, pod after pod; clients wait in `traffic::queue` while all
//!    pods are full. [`actors::metrics`] answers `PickBackend` with a
//!    [`Lease`](domain::balance::lease::Lease) on the preferred backend, or on the one with the
//!    smallest [`domain::balance::estimate`].
//! 4. [`net::connect`] opens the connection with awc's connector, over TLS if the pod uses it.
//!    `traffic::upstream` sends the handshake, and the pod's 101 is checked.
//! 5. [`actors::session`] owns the client's socket and the direction to the pod;
//!    [`actors::backend`] owns the direction to the client. Each drives one [`relay::Pump`].
//! 6. `actors::timeouts` scans all sessions of its worker thread several times per shortest time-out;
//!    [`domain::session::timeouts`] decides whether a session ends or gets a Ping.
//! 7. The session ends when both directions have ended. Dropping it releases its lease, its entry in
//!    [`actors::registry`] and both sockets.
//!
//! # Reloads
//!
//! Everything that a handshake reads is behind one pointer ([`traffic::state`]), which [`app`]
//! replaces when the settings have changed ([`config::diff`]). A
//! [`ServiceId`](domain::service_id::ServiceId) stays with its service over all reloads.
//!
//! # Layers
//!
//! `main` → [`app`], [`demo`] → [`admin`] → [`traffic`] → [`actors`] → [`net`] → [`relay`],
//! [`domain`]: a module imports only from modules further right. [`services`] stands between `app` and
//! `actors`; [`config`] is read by `app`, `admin`, `traffic` and `services`, and imports `net`,
//! `domain` and `relay`. `relay` imports the rules of sessions from `domain`, and `domain` imports no
//! other module. A test checks this for every import.
//!
//! # Glossary
//!
//! - *pod*, *backend*: one address that accepts WebSocket connections.
//! - *service*: a named set of backends with one set of rules.
//! - *discovery*: finding backends in DNS instead of listing them; *source*: the name to look up.
//! - *route*: a rule that sends requests to a service and may change their path.
//! - *affinity*: a rule that sends a client to the backend it was on before.
//! - *session*: one client connection with its backend connection.
//! - *handshake*: from the client's request to the 101; *tunnel*: after the 101.
//! - *report*: the answer of a pod's metric path; *stale*: too old to be used.
//! - *ejected*: not used for a while after failures; *cold*: new, or back after an ejection.
//! - *lease*: a session's share of a backend's count, released when dropped.
//! - *metrics*: the pods' counts; *telemetry*: counters of the balancer itself.
//! - *reload*: new settings for a running process; *hand-over*: a new process for the same listening
//!   socket.
//! - *drain*: start no new sessions on a pod, service or balancer, and let live ones end.
//! - *move*: close a session so that its client reconnects to another pod.

pub mod actors;
pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod demo;
pub mod domain;
pub mod net;
pub mod relay;
pub mod services;
pub mod telemetry;
pub mod token_bucket;
pub mod traffic;
