//! The sample pod of `wsbalancer pod`, the demo and the tests: `/ws` echoes messages, `/metric`
//! reports the number of connections.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use actix::{Actor, ActorContext as _, StreamHandler};
use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    dev::ServerHandle,
    http::StatusCode,
    web::{self, Payload},
};
use actix_web_actors::ws::{self, Message, ProtocolError, WebsocketContext};
use serde::Serialize;

/// Longest frame that the pod accepts, in bytes.
const MAX_FRAME_LEN: usize = 128 * 1024 * 1024;

/// The subprotocol that the pod selects if a client offers it.
pub const SUBPROTOCOL: &str = "echo.example";

/// Optional names in the pod's reports.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// `podName`
    pub name: Option<String>,
    /// `podIP`
    pub ip: Option<String>,
    /// `nodeName`
    pub node: Option<String>,
}

impl Identity {
    /// Reads `POD_NAME`, `POD_IP` and `NODE_NAME`, which the downward API of Kubernetes can set.
    pub fn from_env() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self { name: variable("POD_NAME"), ip: variable("POD_IP"), node: variable("NODE_NAME") }
    }
}

/// A running pod.
pub struct Pod {
    pub address: SocketAddr,
    connections: Arc<AtomicU64>,
    server: ServerHandle,
}

impl Pod {
    /// Returns the number of open connections.
    pub fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Stops the pod and closes its connections.
    pub async fn stop(self) {
        self.server.stop(false).await;
    }
}

/// Starts a pod on `listener`; must be called within an actix system.
///
/// # Errors
/// The listener cannot be used.
pub fn start(listener: TcpListener, identity: Identity) -> io::Result<Pod> {
    let address = listener.local_addr()?;
    let connections = Arc::<AtomicU64>::default();
    let state = PodState { connections: connections.clone(), identity };
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(state.clone()))
            .route("/ws", web::get().to(echo))
            .route("/metric", web::get().to(report))
    })
    .workers(1)
    .disable_signals()
    .listen(listener)?
    .run();
    let handle = server.handle();
    actix_rt::spawn(server);
    Ok(Pod { address, connections, server: handle })
}

#[derive(Clone)]
struct PodState {
    connections: Arc<AtomicU64>,
    identity: Identity,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    agents_connections: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_name: Option<&'a str>,
    #[serde(rename = "podIP", skip_serializing_if = "Option::is_none")]
    pod_ip: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_name: Option<&'a str>,
}

async fn report(state: web::Data<PodState>) -> HttpResponse {
    let Identity { name, ip, node } = &state.identity;
    HttpResponse::Ok().json(Report {
        agents_connections: state.connections.load(Relaxed),
        pod_name: name.as_deref(),
        pod_ip: ip.as_deref(),
        node_name: node.as_deref(),
    })
}

async fn echo(
    request: HttpRequest,
    payload: Payload,
    state: web::Data<PodState>,
) -> actix_web::Result<HttpResponse> {
    let session = Echo { _count: ConnectionCount::new(state.connections.clone()) };
    let mut response = ws::WsResponseBuilder::new(session, &request, payload)
        .protocols(&[SUBPROTOCOL])
        .frame_size(MAX_FRAME_LEN)
        .start()?;
    debug_assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    response.head_mut().no_chunking(true);
    Ok(response)
}

/// Counts one connection until it is dropped.
struct ConnectionCount(Arc<AtomicU64>);

impl ConnectionCount {
    fn new(count: Arc<AtomicU64>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for ConnectionCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

struct Echo {
    _count: ConnectionCount,
}

impl Actor for Echo {
    type Context = WebsocketContext<Self>;
}

impl StreamHandler<Result<Message, ProtocolError>> for Echo {
    fn handle(&mut self, item: Result<Message, ProtocolError>, ctx: &mut Self::Context) {
        match item {
            Ok(Message::Ping(payload)) => ctx.pong(&payload),
            Ok(message @ (Message::Text(_) | Message::Binary(_) | Message::Continuation(_))) => {
                ctx.write_raw(message);
            }
            Ok(Message::Close(reason)) => {
                ctx.close(reason);
                ctx.stop();
            }
            Ok(Message::Pong(_) | Message::Nop) => {}
            Err(_) => ctx.stop(),
        }
    }
}
