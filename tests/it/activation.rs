//! Inherited listening sockets, and the hand-over from one process to the next.

use std::{
    net::{SocketAddr, TcpListener},
    os::{fd::OwnedFd, unix::net::UnixListener},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use futures_util::{SinkExt as _, StreamExt as _, future::join_all};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    client::{connect, connect_with, handshake},
    eventually,
    pod::Pod,
    program::{Program, activated},
    within,
};

/// Starts a balancer that inherits `traffic`.
async fn successor(traffic: &TcpListener, pod: &Pod) -> Program {
    let socket = OwnedFd::from(traffic.try_clone().unwrap());
    let mut command = activated(&[socket], "traffic");
    // drain_delay does not apply to an inherited socket: it would keep the next process waiting.
    command.env("WSBALANCER_SERVICES", pod.url()).env("WSBALANCER__SERVER__DRAIN_DELAY", "10m");
    Program::start(command).await
}

/// Returns a listener with a queue that is long enough for all clients of a test.
fn listener() -> (TcpListener, SocketAddr) {
    let listener = wsbalancer::net::listen::bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[actix_rt::test]
async fn inherited_sockets_are_matched_by_name_and_override_the_configuration() {
    let pod = Pod::echo().await;
    let ((admin, admin_address), (traffic, traffic_address)) = (listener(), listener());
    let mut command = activated(&[admin.into(), traffic.into()], "admin:traffic");
    command
        .env("WSBALANCER_SERVICES", pod.url())
        .env("WSBALANCER__SERVER__LISTEN", "127.0.0.1:1")
        .env("WSBALANCER__ADMIN__LISTEN", admin_address.to_string());
    let balancer = Program::start(command).await;
    assert_eq!((balancer.traffic, balancer.admin), (traffic_address, admin_address));
    drop(connect(traffic_address).await);
    let url = format!("http://{admin_address}/readyz");
    assert_eq!(awc::Client::new().get(url).send().await.unwrap().status(), 200);
    balancer.terminate();
    let (status, log) = balancer.finish().await;
    assert_eq!(status.code(), Some(0), "{log}");
}

#[actix_rt::test]
async fn an_inherited_unix_socket_is_used_and_its_file_stays() {
    let pod = Pod::echo().await;
    let name = format!("wsbalancer-{}-{:x}.sock", std::process::id(), fastrand::u64(..));
    let path = std::env::temp_dir().join(name);
    let socket = UnixListener::bind(&path).unwrap();
    let mut command = activated(&[socket.into()], "wsbalancer.socket");
    command
        .env("WSBALANCER_SERVICES", pod.url())
        .env("WSBALANCER__SERVER__LISTEN", format!("unix:{}", path.display()));
    let mut balancer = Program::spawn(command);
    balancer.logs("using the inherited socket").await;
    balancer.logs("traffic on unix:").await;
    let mut client = UnixStream::connect(&path).await.unwrap();
    client.write_all(handshake("").as_bytes()).await.unwrap();
    let mut head = [0; 12];
    client.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 101");
    drop(client);
    balancer.terminate();
    balancer.finish().await;
    assert!(path.exists(), "the balancer must not remove it");
    std::fs::remove_file(path).unwrap();
}

#[actix_rt::test]
async fn an_inherited_socket_that_cannot_accept_fails_the_start_with_its_name() {
    let pod = Pod::echo().await;
    let (listening, address) = listener();
    let bound = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    bound.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let connected = std::net::TcpStream::connect(address).unwrap();
    let (paired, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    for (socket, why) in [
        (OwnedFd::from(bound), "it is not listening"),
        (connected.into(), "it is not listening"),
        (paired.into(), "it is not listening"),
        (datagrams.into(), "not a TCP or Unix-domain stream socket"),
        (file.into(), "not a TCP or Unix-domain stream socket"),
    ] {
        let admin = listening.try_clone().unwrap();
        let mut command = activated(&[admin.into(), socket], "admin:traffic");
        command.env("WSBALANCER_SERVICES", pod.url());
        let (status, log) = within("the exit", Program::spawn(command).finish()).await;
        assert_eq!(status.code(), Some(1), "{log}");
        let expected = format!("inherited socket 1 (\"traffic\") cannot be used: {why}");
        assert!(log.contains(&expected), "{log}");
        assert!(log.contains("ListenStream=") && log.contains("Accept=no"), "{log}");
    }
}

/// Connects, sends a message, and receives its echo or the Close of a shutdown.
async fn visit(address: SocketAddr) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let (mut client, _) = connect_with(address, &[]).await.map_err(|error| text(&error))?;
    client.send(Message::text("hello")).await.map_err(|error| text(&error))?;
    match client.next().await {
        Some(Ok(Message::Text(_))) => {
            let _ = client.close(None).await;
            while let Some(Ok(_)) = client.next().await {}
            Ok(())
        }
        Some(Ok(Message::Close(Some(close)))) if u16::from(close.code) == 1012 => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

#[actix_rt::test]
async fn no_connection_is_refused_or_reset_during_a_hand_over() {
    let pod = Pod::echo().await;
    let (traffic, address) = listener();
    let first = successor(&traffic, &pod).await;
    let (stopped, visits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let visitors = (0..20).map(|_| {
        let (stopped, visits) = (stopped.clone(), visits.clone());
        tokio::spawn(async move {
            while !stopped.load(SeqCst) {
                visit(address).await?;
                visits.fetch_add(1, SeqCst);
            }
            Ok::<_, String>(())
        })
    });
    let visitors: Vec<_> = visitors.collect();
    let more = async |count: usize| {
        let until = visits.load(SeqCst) + count;
        let broken = || visitors.iter().any(|visitor| visitor.is_finished());
        eventually("visits", async || visits.load(SeqCst) >= until || broken()).await;
    };
    more(100).await;
    let mut process = first;
    for _ in 0..3 {
        let next = successor(&traffic, &pod).await;
        more(20).await;
        process.terminate();
        more(100).await;
        let (status, log) = process.finish().await;
        assert_eq!(status.code(), Some(0), "{log}");
        more(100).await;
        process = next;
    }
    stopped.store(true, SeqCst);
    for visitor in within("the visitors", join_all(visitors)).await {
        assert_eq!(visitor.unwrap(), Ok(()));
    }
}

#[actix_rt::test]
async fn connections_accepted_before_the_hand_over_are_still_served() {
    let pod = Pod::echo().await;
    let (traffic, address) = listener();
    let mut balancer = successor(&traffic, &pod).await;
    let mut early = TcpStream::connect(address).await.unwrap();
    let request = handshake("");
    let (some, rest) = request.as_bytes().split_at(20);
    early.write_all(some).await.unwrap();
    // Connections are accepted in order.
    drop(connect(address).await);
    balancer.terminate();
    balancer.logs("no longer accepting").await;
    let mut late = TcpStream::connect(address).await.unwrap();
    late.write_all(handshake("").as_bytes()).await.unwrap();
    early.write_all(rest).await.unwrap();
    let mut head = [0; 12];
    within("an answer", early.read_exact(&mut head)).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 101");
    drop(early);
    balancer.finish().await;
    let _next = successor(&traffic, &pod).await;
    within("an answer", late.read_exact(&mut head)).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 101");
}

/// On a connection that a proxy keeps, a process that shuts down would refuse the next request, while
/// the next process serves the same socket.
#[actix_rt::test]
async fn an_idle_keep_alive_connection_ends_at_the_hand_over() {
    let pod = Pod::echo().await;
    let (traffic, address) = listener();
    let balancer = successor(&traffic, &pod).await;
    let mut kept = TcpStream::connect(address).await.unwrap();
    kept.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut head = [0; 12];
    within("an answer", kept.read_exact(&mut head)).await.unwrap();
    assert_eq!(&head[..9], b"HTTP/1.1 ");
    // An open session keeps the process running.
    let _session = connect(address).await;
    balancer.until_sessions(1).await;
    balancer.terminate();
    let mut rest = Vec::new();
    within("the end", kept.read_to_end(&mut rest)).await.unwrap();
    assert!(!rest.windows(9).any(|word| word == b"HTTP/1.1 "), "only one response");
    let url = format!("http://{}/livez", balancer.admin);
    let answer = awc::Client::new().get(url).send().await;
    assert_eq!(answer.expect("a process that still runs").status(), 200);
    balancer.terminate();
    balancer.finish().await;
}
