//! Shutdown: which clients are still served, when sessions are closed, and how long the process waits.

use std::net::SocketAddr;

use futures_util::{
    SinkExt as _, StreamExt as _,
    future::{join_all, select_all},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    client::{Client, connect, handshake, raw},
    eventually,
    frames::{CLOSE, FIN, unmasked},
    pod::{Pod, Script, header, read_head, report, switching},
    program::Program,
    within,
};

const DRAIN_DELAY: &str = "WSBALANCER__SERVER__DRAIN_DELAY";
const DRAIN_TIME: &str = "WSBALANCER__SERVER__DRAIN_TIME";

/// Waits until the readiness probe fails.
async fn until_not_ready(admin: SocketAddr) {
    let url = format!("http://{admin}/readyz");
    eventually("not ready", async || {
        awc::Client::new().get(&url).send().await.is_ok_and(|answer| answer.status() == 503)
    })
    .await;
}

/// Sends the request and returns the head of the response.
async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a listening balancer");
    stream.write_all(request.as_bytes()).await.unwrap();
    within("an answer", read_head(&mut stream)).await.expect("an answer")
}

/// Returns whether a message is echoed.
async fn echoes(client: &mut Client) -> bool {
    client.send(Message::text("still there?")).await.is_ok()
        && within("an echo", client.next())
            .await
            .is_some_and(|echo| echo.is_ok_and(|message| message == Message::text("still there?")))
}

/// Waits for the Close, answers it and returns its code.
async fn close_code(client: &mut Client) -> Option<u16> {
    let mut code = None;
    while let Some(message) = within("the Close", client.next()).await {
        if let Ok(Message::Close(close)) = message {
            code = close.map(|close| close.code.into());
        }
    }
    code
}

fn service_restart() -> Vec<u8> {
    let payload = [&1012u16.to_be_bytes()[..], b"balancer is shutting down"].concat();
    unmasked(FIN | CLOSE, &payload)
}

#[actix_rt::test]
async fn connections_are_accepted_during_drain_delay_and_refused_afterwards() {
    let pod = Pod::echo().await;
    let mut balancer = Program::run(&pod.url(), &[(DRAIN_DELAY, "3s")]).await;
    // It does not answer its Close, so that the balancer has to wait.
    let (mut silent, _) = raw(balancer.traffic, "", b"").await;
    balancer.until_sessions(1).await;
    balancer.terminate();
    until_not_ready(balancer.admin).await;
    let mut late = connect(balancer.traffic).await;
    assert!(echoes(&mut late).await, "served as before");

    assert_eq!(close_code(&mut late).await, Some(1012));
    let mut close = vec![0; service_restart().len()];
    within("the Close", silent.read_exact(&mut close)).await.unwrap();
    assert_eq!(close, service_restart());
    for request in [handshake(""), "GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()] {
        let head = ask(balancer.traffic, &request).await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert!(header(&head, "retry-after").is_some(), "{head}");
        assert_eq!(header(&head, "connection"), Some("close"), "{head}");
    }
    balancer.logs("closing 2 sessions over 0s").await;
    balancer.terminate();
    let (status, log) = balancer.finish().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("2 sessions were open, 1 were cut"), "{log}");
}

#[actix_rt::test]
async fn a_second_signal_stops_the_process_immediately() {
    let pod = Pod::echo().await;
    let balancer = Program::run(&pod.url(), &[(DRAIN_DELAY, "1h")]).await;
    let _client = connect(balancer.traffic).await;
    balancer.until_sessions(1).await;
    balancer.terminate();
    until_not_ready(balancer.admin).await;
    balancer.terminate();
    let (status, log) = balancer.finish().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("1 sessions were open, 1 were cut"), "{log}");
}

#[actix_rt::test]
async fn closes_are_spread_over_drain_time() {
    let pod = Pod::echo().await;
    let variables = [(DRAIN_TIME, "4s"), ("WSBALANCER__BALANCER__CLOSE_CODE_DRAIN", "4321")];
    let balancer = Program::run(&pod.url(), &variables).await;
    let mut clients = join_all((0..40).map(|_| connect(balancer.traffic))).await;
    balancer.until_sessions(40).await;
    balancer.terminate();
    let closes = clients.iter_mut().map(|client| Box::pin(close_code(client)));
    let (first, at, _) = select_all(closes).await;
    assert_eq!(first, Some(4321));
    drop(clients.remove(at));
    let mut left = Vec::new();
    for mut client in clients {
        if echoes(&mut client).await {
            left.push(client);
        }
    }
    assert!(left.len() > 20, "{} of 39 are not closed yet", left.len());
    let codes = join_all(left.iter_mut().map(close_code)).await;
    assert!(codes.iter().all(|code| *code == Some(4321)), "{codes:?}");
    let (status, log) = balancer.finish().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("40 sessions were open, 0 were cut"), "{log}");
}

/// Starts a pod that the test answers for, and a balancer in front of it.
async fn slow_pod() -> (TcpListener, Program) {
    let pod = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", pod.local_addr().unwrap());
    let balancer = Program::run(&url, &[("WSBALANCER__BALANCER__METRIC_PATH", "none")]).await;
    (pod, balancer)
}

/// Waits for the next request at the pod.
async fn accept(pod: &TcpListener) -> (TcpStream, String) {
    let (mut stream, _) = within("a connection at the pod", pod.accept()).await.unwrap();
    let head = within("a request", read_head(&mut stream)).await.unwrap();
    (stream, head)
}

#[actix_rt::test]
async fn a_session_that_opens_during_the_drain_is_closed_too() {
    let (pod, mut balancer) = slow_pod().await;
    let mut client = TcpStream::connect(balancer.traffic).await.unwrap();
    client.write_all(handshake("").as_bytes()).await.unwrap();
    let (mut at_pod, request) = accept(&pod).await;
    balancer.terminate();
    balancer.logs("closing 0 sessions").await;
    let refused = ask(balancer.traffic, &handshake("")).await;
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    at_pod.write_all(switching(&request, "").as_bytes()).await.unwrap();
    let head = within("the 101", read_head(&mut client)).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let mut close = vec![0; service_restart().len()];
    within("the Close", client.read_exact(&mut close)).await.unwrap();
    assert_eq!(close, service_restart());
    drop((client, at_pod));
    let (status, log) = balancer.finish().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("1 sessions were open, 0 were cut"), "{log}");
}

#[actix_rt::test]
async fn plain_requests_in_progress_are_answered_completely() {
    let (pod, mut balancer) = slow_pod().await;
    let mut client = TcpStream::connect(balancer.traffic).await.unwrap();
    client.write_all(b"GET /file HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (mut at_pod, _) = accept(&pod).await;
    at_pod.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst").await.unwrap();
    let head = within("the head", read_head(&mut client)).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    balancer.terminate();
    balancer.logs("closing 0 sessions").await;
    let refused = ask(balancer.traffic, &handshake("")).await;
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    at_pod.write_all(b"-last").await.unwrap();
    let mut body = [0; 10];
    within("the body", client.read_exact(&mut body)).await.unwrap();
    assert_eq!(&body, b"first-last");
    let (status, log) = balancer.finish().await;
    assert_eq!(status.code(), Some(0), "{log}");
}

/// As proxies use it: one connection for several requests.
#[actix_rt::test]
async fn idle_keep_alive_connections_close_instead_of_refusing_a_request() {
    let (pod, balancer) = slow_pod().await;
    let address = balancer.traffic;
    let kept = async || {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let (mut at_pod, _) = accept(&pod).await;
        let empty = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        at_pod.write_all(empty).await.unwrap();
        let head = within("an answer", read_head(&mut client)).await.unwrap();
        assert_eq!(header(&head, "connection"), None, "{head}");
        client
    };
    let (mut idle, mut asks, mut opens) = (kept().await, kept().await, kept().await);
    asks.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (mut asked, _) = accept(&pod).await;
    opens.write_all(handshake("").as_bytes()).await.unwrap();
    let (mut opened, request) = accept(&pod).await;

    balancer.terminate();
    let mut nothing = Vec::new();
    within("the end", idle.read_to_end(&mut nothing)).await.unwrap();
    assert!(nothing.is_empty(), "{nothing:?}");
    asked.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    let head = within("an answer", read_head(&mut asks)).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    within("the end", asks.read_to_end(&mut nothing)).await.unwrap();
    assert!(nothing.is_empty(), "{nothing:?}");
    opened.write_all(switching(&request, "").as_bytes()).await.unwrap();
    let head = within("the 101", read_head(&mut opens)).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let mut close = vec![0; service_restart().len()];
    within("the Close", opens.read_exact(&mut close)).await.unwrap();
    assert_eq!(close, service_restart());
    drop((opens, opened));
    let (status, log) = balancer.finish().await;
    assert_eq!(status.code(), Some(0), "{log}");
}

/// A queued client must not get a place that the drain frees.
#[actix_rt::test]
async fn queued_clients_are_refused_when_the_drain_starts() {
    let pod = Pod::scripted(Script::default()).await;
    let variables = [
        ("WSBALANCER__BALANCER__MAX_SESSIONS_PER_POD", "1"),
        ("WSBALANCER__BALANCER__QUEUE_TIMEOUT", "1m"),
    ];
    let mut balancer = Program::run(&pod.url(), &variables).await;
    let (_silent, _) = raw(balancer.traffic, "", b"").await;
    let _session = pod.accept().await;
    let mut waiting = TcpStream::connect(balancer.traffic).await.unwrap();
    waiting.write_all(handshake("").as_bytes()).await.unwrap();
    balancer.until_sessions(1).await;
    balancer.terminate();
    balancer.logs("closing 1 sessions").await;
    let head = within("an answer", read_head(&mut waiting)).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    balancer.terminate();
    assert_eq!(balancer.finish().await.0.code(), Some(0));
}

/// All places are occupied by sessions of other balancers, so that the drain has no session to wait
/// for.
#[actix_rt::test]
async fn queued_clients_are_refused_by_a_balancer_without_sessions_too() {
    let pod = Pod::reporting(report(1)).await;
    let variables = [
        ("WSBALANCER__BALANCER__MAX_SESSIONS_PER_POD", "1"),
        ("WSBALANCER__BALANCER__QUEUE_TIMEOUT", "1m"),
    ];
    let balancer = Program::run(&pod.url(), &variables).await;
    let url = format!("http://{}/api/backends", balancer.admin);
    eventually("a full pod", async || {
        let body = awc::Client::new().get(&url).send().await.unwrap().body().await.unwrap();
        body.windows(6).any(|word| word == b"\"full\"")
    })
    .await;
    let mut waiting = Vec::new();
    for _ in 0..5 {
        let mut client = TcpStream::connect(balancer.traffic).await.unwrap();
        client.write_all(handshake("").as_bytes()).await.unwrap();
        waiting.push(client);
    }
    // Connections are accepted in order.
    let _ = ask(balancer.traffic, "GET / HTTP/1.0\r\nHost: a\r\nUpgrade: websocket\r\n\r\n").await;
    balancer.terminate();
    for client in &mut waiting {
        let head = within("an answer", read_head(client)).await.expect("an answer");
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert!(header(&head, "retry-after").is_some(), "{head}");
    }
    assert_eq!(balancer.finish().await.0.code(), Some(0));
}
