//! Scripted pods on raw TCP, so that tests see the bytes on the wire.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use actix_http::ws::hash_key;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::protocol::{Role, WebSocketConfig},
};

use super::within;

/// The responses of a pod.
#[derive(Clone, Debug)]
pub struct Script {
    /// The whole response to a metric request.
    pub metric: Vec<u8>,
    /// The response to an upgrade.
    pub upgrade: Upgrade,
    /// The whole response to each plain request on a connection.
    pub plain: Vec<u8>,
}

/// The reaction of a pod to an upgrade.
#[derive(Clone, Debug)]
pub enum Upgrade {
    /// Sends a 101 with these header lines and, in the same segment, these bytes.
    Accept { fields: &'static str, early: Vec<u8> },
    /// Sends this response and closes the connection.
    Answer(Vec<u8>),
    /// Sends nothing and keeps the connection open.
    Silence,
    /// Closes the connection.
    HangUp,
}

impl Default for Script {
    fn default() -> Self {
        let upgrade = Upgrade::Accept { fields: "", early: Vec::new() };
        let plain = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain".to_vec();
        Self { metric: report(0), upgrade, plain }
    }
}

/// Returns a metric response with `connections`.
pub fn report(connections: u64) -> Vec<u8> {
    answer("200 OK", &format!("{{\"agentsConnections\": {connections}}}"))
}

/// Returns a whole response with `body`.
pub fn answer(status: &str, body: &str) -> Vec<u8> {
    let len = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}")
        .into_bytes()
}

/// An upgraded connection that the test controls.
pub struct Session {
    /// The request head as received.
    pub request: String,
    pub stream: TcpStream,
}

impl Session {
    /// Returns the pod's side as a WebSocket.
    pub async fn into_websocket(self) -> WebSocketStream<TcpStream> {
        WebSocketStream::from_raw_socket(self.stream, Role::Server, Some(no_limits())).await
    }
}

/// Returns a configuration without limits of sizes.
pub fn no_limits() -> WebSocketConfig {
    WebSocketConfig::default().max_message_size(None).max_frame_size(None)
}

/// A listening pod.
pub struct Pod {
    pub address: SocketAddr,
    script: Arc<Mutex<Script>>,
    sessions: tokio::sync::Mutex<mpsc::UnboundedReceiver<Session>>,
    upgrades: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    listening: JoinHandle<()>,
}

impl Pod {
    /// Starts a pod that passes upgraded connections to the test, through [`accept`](Self::accept).
    pub async fn scripted(script: Script) -> Self {
        Self::start(script, false).await
    }

    /// Starts a scripted pod that answers plain requests with its name.
    pub async fn named(name: &str) -> Self {
        let length = name.len();
        let plain = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}");
        Self::scripted(Script { plain: plain.into_bytes(), ..Script::default() }).await
    }

    /// Starts a pod that echoes every message.
    pub async fn echo() -> Self {
        Self::start(Script::default(), true).await
    }

    /// Starts a pod that echoes every message and answers metric requests with `metric`.
    pub async fn reporting(metric: Vec<u8>) -> Self {
        Self::start(Script { metric, ..Script::default() }, true).await
    }

    async fn start(script: Script, echo: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(script));
        let (sender, sessions) = mpsc::unbounded_channel();
        let upgrades = Arc::<AtomicUsize>::default();
        let open = Arc::<AtomicUsize>::default();
        let (scripts, counted, opened) = (script.clone(), upgrades.clone(), open.clone());
        let listening = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let script = scripts.lock().unwrap().clone();
                let (counted, opened) = (counted.clone(), opened.clone());
                let sender = (!echo).then(|| sender.clone());
                tokio::spawn(async move {
                    let Some(session) = answer_one(stream, script, &counted).await else { return };
                    opened.fetch_add(1, SeqCst);
                    match sender {
                        Some(sender) => drop(sender.send(session)),
                        None => echo_all(session).await,
                    }
                    opened.fetch_sub(1, SeqCst);
                });
            }
        });
        let sessions = tokio::sync::Mutex::new(sessions);
        Self { address, script, sessions, upgrades, open, listening }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits for the next upgraded connection of a scripted pod.
    pub async fn accept(&self) -> Session {
        let mut sessions = self.sessions.lock().await;
        within("a connection at the pod", sessions.recv()).await.expect("a running pod")
    }

    /// Returns the number of upgrade requests so far.
    pub fn upgrades(&self) -> usize {
        self.upgrades.load(SeqCst)
    }

    /// Returns the number of open connections of an echoing pod.
    pub fn open(&self) -> usize {
        self.open.load(SeqCst)
    }

    pub fn set_metric(&self, metric: Vec<u8>) {
        self.script.lock().unwrap().metric = metric;
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Reads and answers one request, and returns the connection if it is upgraded.
async fn answer_one(
    mut stream: TcpStream,
    script: Script,
    upgrades: &AtomicUsize,
) -> Option<Session> {
    let request = read_head(&mut stream).await?;
    if request.starts_with("GET /metric ") {
        let _ = stream.write_all(&script.metric).await;
        return None;
    }
    if header(&request, "upgrade").is_none() {
        let mut next = Some(request);
        while next.is_some() {
            stream.write_all(&script.plain).await.ok()?;
            next = read_head(&mut stream).await;
        }
        return None;
    }
    upgrades.fetch_add(1, SeqCst);
    match script.upgrade {
        Upgrade::Accept { fields, early } => {
            let head = switching(&request, fields);
            stream.write_all(&[head.as_bytes(), &early].concat()).await.ok()?;
            stream.set_nodelay(true).ok()?;
            Some(Session { request, stream })
        }
        Upgrade::Answer(answer) => {
            let _ = stream.write_all(&answer).await;
            None
        }
        Upgrade::Silence => {
            // Until the balancer closes the connection.
            let _ = stream.read(&mut [0]).await;
            None
        }
        Upgrade::HangUp => None,
    }
}

/// Returns the 101 for `request`, with further header lines.
pub fn switching(request: &str, fields: &str) -> String {
    let key = header(request, "sec-websocket-key").expect("a handshake");
    let accept = String::from_utf8(hash_key(key.as_bytes()).to_vec()).unwrap();
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{fields}\r\n"
    )
}

/// Reads byte by byte up to the empty line, so that the following bytes stay in the socket.
pub async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// Returns the value of the first field `name` in a head.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

async fn echo_all(session: Session) {
    let mut socket = session.into_websocket().await;
    while let Some(Ok(message)) = socket.next().await {
        let data = message.is_text() || message.is_binary();
        if data && socket.send(message).await.is_err() {
            return;
        }
    }
}
