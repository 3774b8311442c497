//! wsbalancer: a WebSocket connection balancer on actix actors.
//!
//! For every new connection it picks the pod with the fewest live ones, opens a WebSocket to that
//! pod and relays both ways until either side ends.
//!
//! ```text
//!  clients ──► Traefik ──► traffic listener ─ SessionActor ═ BackendActor ──► pods  /ws …
//!                                                │                             │
//!             operators ──► admin listener       │ PickBackend                 │ /metric
//!                            /balancer-metrics   ▼                             ▼
//!                      /livez /readyz /api ── RegistryActor, MetricsActor ── polls
//!                                                DiscoveryActor ── look-ups ──► DNS
//!
//!  data plane (worker threads): sessions; bytes never cross a mailbox
//!  control plane (threads of its own): pods' counts, live sessions, admin answers
//! ```
//!
//! # One connection's way
//!
//! 1. [`traffic::listener`]: the listener's service, one per worker, reads a PROXY header
//!    and does TLS where these are configured; `traffic::first_request` reads the first head. What is no
//!    handshake goes on in `traffic::plain`.
//! 2. `traffic::handshake`: the request is checked (RFC 6455 §4.2.1), `traffic::routing` finds its service
//!    by [`domain::routing`], [`traffic::headers::forwarded`] says what pods see of it, `traffic::headers::cookie` which pod it
//!    asks for, [`domain::session::admission`] lets the client in.
//! 3. `traffic::attempts`: asks for a place, pod after pod, and in `traffic::queue` when all are full.
//!    [`actors::metrics`] answers `PickBackend` with a [`domain::balance::lease::Lease`] on the preferred
//!    backend or on the one with the smallest [`domain::balance::estimate`].
//! 4. [`net::connect`]: awc's connector opens the connection, with TLS where the pod speaks it;
//!    `traffic::upstream` shakes hands, and the pod's 101 is checked.
//! 5. [`actors::session`]: the client's socket and the direction up; [`actors::backend`]: the
//!    pod's connection and the direction down. Each drives one [`relay::Pump`].
//! 6. `actors::timeouts`, once per worker, looks at all sessions of its thread a few times in the
//!    shortest time-out and asks [`domain::session::timeouts`] whether one has to end or to be asked for a Pong.
//! 7. The session ends when both directions have; dropping it returns its slot, its place in
//!    [`actors::registry`] and both sockets.
//!
//! # Other settings
//!
//! Everything that a handshake goes by hangs behind one pointer ([`traffic::worker`]), which [`app::reload`]
//! swaps when the settings have changed ([`config::diff`]). Control actors know services by indexes
//! ([`services::Indexes`]), which never become another service's.
//!
//! # Who may import whom
//!
//! `main` → [`app`], [`demo`] → [`admin`], [`traffic`] → [`services`] → [`actors`] → [`net`] →
//! [`relay`], [`domain`]. [`config`] is read by `app`, `admin`, `traffic` and `services` and knows `net`, `domain` and
//! `relay`; `relay` and `domain` know nobody. A test enforces it.
//!
//! # Words
//!
//! - *pod, backend*: one address that takes WebSocket connections.
//! - *service*: a named set of backends with one set of rules.
//! - *discovery*: looking backends up in DNS instead of listing them; *source*: what is looked up.
//! - *route*: which requests are for which service, and what becomes of their paths.
//! - *affinity*: what brings a client back to the backend it was on.
//! - *session*: one client connection and its backend connection.
//! - *handshake*: from the client's request to the 101; *tunnel*: after it.
//! - *up, down*: from client to pod, from pod to client.
//! - *report*: what a pod said on its metric path; *stale* once it is too old to be believed.
//! - *ejected*: left out for a while, because it failed too often; *cold*: new or back from that.
//! - *lease*: a session's slot on a backend, released when dropped.
//! - *metrics*: the pods' counts; *telemetry*: what the process says of itself.
//! - *reload*: other settings for a process that serves; *hand-over*: another process for a listening
//!   socket.
//! - *drain*: let live sessions be, or close them in good order, and start no new ones.
//! - *move*: close a session so that its client comes back and lands elsewhere.

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
pub mod traffic;
