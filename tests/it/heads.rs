//! One reading of a request: the same bytes get the same answer as the first request of a connection,
//! after another one, and right behind another one.

use std::sync::{Arc, Mutex};

use actix_http::ws::hash_key;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::support::{
    Balancer,
    client::handshake,
    eventually,
    pod::{header, read_head},
    within,
};

const BEFORE: &str = "GET /before HTTP/1.1\r\nHost: before.example\r\n\r\n";

/// Where a request stands in its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    First,
    Second,
    Pipelined,
}

/// What a client got, and what the pod got of it.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    status: String,
    connection: Option<String>,
    text: String,
    at_pod: Vec<String>,
}

/// A pod that records every request but those for `/before`.
struct Recorder {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Recorder {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let recorded = requests.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(record(stream, recorded.clone()));
            }
        });
        Self { url, requests }
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

/// Answers the requests of one connection, and records them in a form that does not vary.
async fn record(mut stream: TcpStream, requests: Arc<Mutex<Vec<String>>>) {
    while let Some(head) = read_head(&mut stream).await {
        let mut body = Vec::new();
        if let Some(length) = header(&head, "content-length") {
            body.resize(length.parse().unwrap(), 0);
            // The balancer disconnects when it refuses the body.
            if stream.read_exact(&mut body).await.is_err() {
                return;
            }
        } else if header(&head, "transfer-encoding").is_some() {
            while !body.ends_with(b"0\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { return };
                body.push(byte);
            }
        }
        let varies = ["x-request-id:", "date:", "connection:"];
        let mut lines: Vec<String> = head.lines().map(str::to_owned).collect();
        lines.retain(|line| !varies.iter().any(|name| line.to_lowercase().starts_with(name)));
        lines[1..].sort();
        let answer = match header(&head, "sec-websocket-key") {
            Some(key) => format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {}\r\n\r\n",
                String::from_utf8_lossy(&hash_key(key.as_bytes()))
            ),
            None => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(),
        };
        if !head.contains("/before") {
            let body = String::from_utf8_lossy(&body);
            requests.lock().unwrap().push(format!("{}\n{body}", lines.join("\n").trim_end()));
        }
        let answer =
            if head.starts_with("HEAD ") { answer.trim_end_matches("ok") } else { &answer };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Sends `request` at its `place` in a connection of its own.
async fn exchange(balancer: &Balancer, pod: &Recorder, request: &[u8], place: Place) -> Seen {
    let mut stream = TcpStream::connect(balancer.address()).await.unwrap();
    match place {
        Place::First => stream.write_all(request).await.unwrap(),
        Place::Second => {
            stream.write_all(BEFORE.as_bytes()).await.unwrap();
            assert_eq!(answer(&mut stream, false).await.0, "HTTP/1.1 200 OK");
            stream.write_all(request).await.unwrap();
        }
        Place::Pipelined => {
            stream.write_all(&[BEFORE.as_bytes(), request].concat()).await.unwrap();
            assert_eq!(answer(&mut stream, false).await.0, "HTTP/1.1 200 OK");
        }
    }
    let (status, connection, text) = answer(&mut stream, request.starts_with(b"HEAD ")).await;
    if connection.as_deref() == Some("close") {
        let mut rest = Vec::new();
        within("the end of the connection", stream.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"", "behind a refusal");
    }
    Seen { status, connection, text, at_pod: pod.take() }
}

/// The status line, `Connection`, and the body of the next answer.
async fn answer(stream: &mut TcpStream, without_body: bool) -> (String, Option<String>, String) {
    let head = within("an answer", read_head(stream)).await.unwrap_or_default();
    let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; if without_body { 0 } else { length }];
    within("a body", stream.read_exact(&mut body)).await.unwrap();
    let connection = header(&head, "connection").map(str::to_lowercase);
    let status = head.lines().next().unwrap_or_default().to_owned();
    (status, connection, String::from_utf8(body).unwrap())
}

/// Requests, and the status that each gets.
fn cases() -> Vec<(String, &'static str)> {
    let get = |line: &str| format!("GET /case HTTP/1.1\r\nHost: a.example\r\n{line}\r\n");
    let post = |fields: &str, body: &str| {
        format!("POST /case HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n{body}")
    };
    let many = |count: usize| get(&"X-Many: 1\r\n".repeat(count));
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    let chunked = "Transfer-Encoding: chunked\r\n";
    let good = handshake("");
    vec![
        // Forwarded.
        (get(""), "200"),
        (get("").replace("GET", "HEAD"), "200"),
        (get("").replace("\r\n", "\n"), "200"),
        (format!("\r\n\r\n{}", get("")), "200"),
        (get("X-Any:   spaced  \r\nX-Any:\r\n"), "200"),
        (get("X-Any: \u{e9}\r\n"), "200"),
        (get("Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\n"), "200"),
        (get("Upgrade: h2c\r\nConnection: Upgrade\r\n"), "200"),
        (get("").replace("/case", "http://other.example/case?x=1"), "200"),
        ("OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n".to_owned(), "200"),
        (many(94), "200"),
        (post("Content-Length: 5\r\n", "hello"), "200"),
        (post("Content-Length: 0\r\n", ""), "200"),
        (post(chunked, chunks), "200"),
        (post(chunked, "5;x=y\r\nhello\r\n0\r\nX-Trailer: 1\r\n\r\n"), "200"),
        (post("Transfer-Encoding: CHUNKED\r\n", chunks), "200"),
        ("GET /case HTTP/1.0\r\n\r\n".to_owned(), "200"),
        (good.clone(), "101"),
        (good.replace("Upgrade: websocket", "Upgrade: foo, WebSocket"), "101"),
        // Refused: the request line.
        ("GET /case HTTP/2.0\r\nHost: a.example\r\n\r\n".to_owned(), "400"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), "400"),
        ("GET  /case HTTP/1.1\r\nHost: a.example\r\n\r\n".to_owned(), "400"),
        ("G(T /case HTTP/1.1\r\nHost: a.example\r\n\r\n".to_owned(), "400"),
        ("\u{16}\u{3}\u{1}\r\n\r\n".to_owned(), "400"),
        (get("").replace("/case", "case"), "400"),
        (get("").replace("/case", "*"), "400"),
        (get("").replace("/case", "http://user@a.example/"), "400"),
        (get("").replace("/case", "ftp://a.example/"), "400"),
        (get("").replace("/case", &format!("/{}", "x".repeat(65_600))), "431"),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n".to_owned(), "405"),
        // Refused: header syntax.
        (get("X-Any : 1\r\n"), "400"),
        (get("X-Any: 1\r\n folded\r\n"), "400"),
        (get("X-Any: 1\rX-Other: 2\r\n"), "400"),
        (get("X-Any: \u{1}\r\n"), "400"),
        (get("nonsense\r\n"), "400"),
        (get(": 1\r\n"), "400"),
        (many(96), "431"),
        (get(&format!("X-Long: {}\r\n", "x".repeat(65_600))), "431"),
        // Refused: Host.
        ("GET /case HTTP/1.1\r\n\r\n".to_owned(), "400"),
        ("HEAD /case HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned(), "400"),
        (get("Host: a.example\r\n"), "400"),
        (get("").replace("a.example", "user@a.example"), "400"),
        (get("").replace("a.example", ""), "400"),
        // Refused: the length of the body.
        (post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"), "400"),
        (post("Content-Length: 5, 5\r\n", "hello"), "400"),
        (post("Content-Length: +5\r\n", "hello"), "400"),
        (post("Content-Length:\r\n", ""), "400"),
        (post("Content-Length: 18446744073709551615\r\n", ""), "400"),
        (post("Content-Length: 18446744073709551616\r\n", ""), "400"),
        (post(&format!("Content-Length: 5\r\n{chunked}"), chunks), "400"),
        (post(&format!("{chunked}{chunked}"), chunks), "400"),
        (post("Transfer-Encoding: gzip, chunked\r\n", chunks), "400"),
        (post("Transfer-Encoding: identity\r\n", "hello"), "400"),
        (post(chunked, chunks).replace("HTTP/1.1", "HTTP/1.0"), "400"),
        (post("", "").replace("HTTP/1.1", "HTTP/1.0"), "400"),
        (post(chunked, "5\nhello\r\n0\r\n\r\n"), "400"),
        (post(chunked, "x\r\nhello\r\n0\r\n\r\n"), "400"),
        (post(chunked, "5;\0\r\nhello\r\n0\r\n\r\n"), "400"),
        (post(chunked, "5\r\nhello\r\n0\r\nGET / HTTP/1.1\r\n\r\n"), "400"),
        // Refused: the handshake.
        (good.replace("GET ", "POST "), "405"),
        (good.replace("GET ", "HEAD "), "405"),
        (good.replace("HTTP/1.1", "HTTP/1.0"), "400"),
        (good.replace("Version: 13", "Version: 8"), "426"),
        (good.replace("Connection: Upgrade\r\n", ""), "400"),
        (good.replace("Key: dGhl", "Key: "), "400"),
        (good.replace("Host: chat.example.org", "Host: a, b"), "400"),
        (handshake("Content-Length: 4\r\n") + "body", "400"),
        (handshake("Content-Length: 0\r\n"), "400"),
        (handshake(chunked) + chunks, "400"),
    ]
}

#[actix_rt::test]
async fn every_place_in_a_connection_gets_the_same_answer() {
    let pod = Recorder::start().await;
    let settings = [("services", pod.url.as_str()), ("balancer.metric_path", "none")];
    let balancer = Balancer::with([], &settings).await;
    for (request, status) in cases() {
        let shown: String = request.chars().take(300).collect();
        let first = exchange(&balancer, &pod, request.as_bytes(), Place::First).await;
        assert_eq!(first.status.split(' ').nth(1), Some(status), "{shown:?} {first:?}");
        let is_forwarded = ["101", "200"].contains(&status);
        assert_eq!(first.at_pod.len(), usize::from(is_forwarded), "{shown:?} {first:?}");
        if !is_forwarded && !request.starts_with("HEAD ") {
            assert!(first.text.ends_with('\n'), "{shown:?} needs a reason: {first:?}");
        }
        for place in [Place::Second, Place::Pipelined] {
            let later = exchange(&balancer, &pod, request.as_bytes(), place).await;
            assert_eq!(later, first, "{place:?} {shown:?}");
        }
    }
    eventually("every session to end", async || balancer.sessions().await == 0).await;
}

#[actix_rt::test]
async fn a_head_that_is_too_slow_gets_the_same_answer() {
    let pod = Recorder::start().await;
    let settings = [
        ("services", pod.url.as_str()),
        ("balancer.metric_path", "none"),
        ("server.request_timeout", "100ms"),
    ];
    let balancer = Balancer::with([], &settings).await;
    let begun = b"GET /case HTTP/1.1\r\nHost: a.";
    let first = exchange(&balancer, &pod, begun, Place::First).await;
    assert_eq!(first.status, "HTTP/1.1 408 Request Timeout");
    for place in [Place::Second, Place::Pipelined] {
        assert_eq!(exchange(&balancer, &pod, begun, place).await, first, "{place:?}");
    }
    // A connection that waits for its next request ends without an answer.
    let mut idle = TcpStream::connect(balancer.address()).await.unwrap();
    idle.write_all(BEFORE.as_bytes()).await.unwrap();
    assert_eq!(answer(&mut idle, false).await.0, "HTTP/1.1 200 OK");
    assert_eq!(within("the end", idle.read(&mut [0; 1])).await.unwrap(), 0);
}

#[actix_rt::test]
async fn a_tunnel_behind_a_plain_request_carries_early_bytes() {
    let pod = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", pod.local_addr().unwrap());
    let settings = [("services", url.as_str()), ("balancer.metric_path", "none")];
    let balancer = Balancer::with([], &settings).await;
    let mut client = TcpStream::connect(balancer.address()).await.unwrap();
    let early = b"\x81\x85\0\0\0\0early";
    let requests = [BEFORE.as_bytes(), handshake("").as_bytes(), early].concat();
    client.write_all(&requests).await.unwrap();
    let (mut plain, _) = pod.accept().await.unwrap();
    within("the plain request", read_head(&mut plain)).await.unwrap();
    plain.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    assert_eq!(answer(&mut client, false).await.2, "ok");
    let (mut tunnel, _) = within("the handshake", pod.accept()).await.unwrap();
    let head = within("the handshake", read_head(&mut tunnel)).await.unwrap();
    let accept = hash_key(header(&head, "sec-websocket-key").unwrap().as_bytes());
    let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                  Sec-WebSocket-Accept: ";
    tunnel.write_all(&[switch.as_bytes(), &accept, b"\r\n\r\n"].concat()).await.unwrap();
    let mut seen = vec![0; early.len()];
    within("the early frame", tunnel.read_exact(&mut seen)).await.unwrap();
    assert_eq!(seen, early);
    assert_eq!(answer(&mut client, false).await.0, "HTTP/1.1 101 Switching Protocols");
}
