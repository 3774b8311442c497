//! Timeouts, pings and limits that end a session.

use std::sync::Arc;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use wsbalancer::actors::{
    registry::{CloseById, ListSessions},
    session_info::SessionInfo,
};

use crate::support::{
    Balancer,
    client::{Client, connect, raw},
    eventually,
    frames::{BINARY, CLOSE, FIN, close_of, masked, unmasked},
    pod::{Pod, Script},
    within,
};

/// Waits for a Close and returns its code.
async fn close_code(client: &mut Client) -> u16 {
    loop {
        match within("a Close", client.next()).await.expect("a Close").expect("a Close") {
            Message::Close(Some(CloseFrame { code, .. })) => return code.into(),
            Message::Close(None) => panic!("a Close without code"),
            _ => {}
        }
    }
}

/// Reads up to the end of the connection.
async fn all(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    within("the end", stream.read_to_end(&mut all)).await.unwrap();
    all
}

/// Reads one whole Close frame.
async fn close_frame(stream: &mut TcpStream) -> (u16, String) {
    let mut frame = vec![0; 2];
    within("a Close", stream.read_exact(&mut frame)).await.unwrap();
    let rest = usize::from(frame[1] & 0x7f) + if frame[1] & 0x80 == 0 { 0 } else { 4 };
    frame.resize(2 + rest, 0);
    within("a whole Close", stream.read_exact(&mut frame[2..])).await.unwrap();
    close_of(&frame)
}

#[actix_rt::test]
async fn idle_and_old_sessions_are_closed_on_both_sides() {
    for (key, code, reason) in [
        ("balancer.idle_timeout", 1001, "idle timeout"),
        ("balancer.max_session_age", 1012, "maximum session age reached"),
    ] {
        let pod = Pod::scripted(Script::default()).await;
        let settings = [(key, "200ms"), ("balancer.close_timeout", "1h")];
        let balancer = Balancer::with([&pod], &settings).await;
        let (mut client, _) = raw(balancer.address(), "", b"").await;
        let mut session = pod.accept().await;
        let expected = (code, reason.to_owned());
        assert_eq!(close_frame(&mut client).await, expected);
        assert_eq!(close_frame(&mut session.stream).await, expected);
        balancer.until_sessions(1).await;
        client.write_all(&masked(FIN | CLOSE, &code.to_be_bytes())).await.unwrap();
        session.stream.write_all(&unmasked(FIN | CLOSE, &code.to_be_bytes())).await.unwrap();
        assert!(all(&mut client).await.is_empty());
        assert!(all(&mut session.stream).await.is_empty());
        balancer.until_sessions(0).await;
    }
}

#[actix_rt::test]
async fn a_peer_that_does_not_answer_a_close_is_disconnected() {
    let pod = Pod::scripted(Script::default()).await;
    let settings = [("balancer.idle_timeout", "100ms"), ("balancer.close_timeout", "100ms")];
    let balancer = Balancer::with([&pod], &settings).await;
    let (mut client, _) = raw(balancer.address(), "", b"").await;
    let mut session = pod.accept().await;
    assert_eq!(close_of(&all(&mut client).await).0, 1001);
    assert_eq!(close_of(&all(&mut session.stream).await).0, 1001);
    balancer.until_sessions(0).await;
}

#[actix_rt::test]
async fn an_active_session_is_not_idle_and_idle_timeout_applies_per_service() {
    let pod = Pod::echo().await;
    let balancer = Balancer::with([&pod], &[("balancer.idle_timeout", "1s")]).await;
    let mut silent = connect(balancer.address()).await;
    let mut talking = connect(balancer.address()).await;
    // Twice as many rounds as it takes until the silent session is closed.
    let mut rounds = 0;
    let mut closed_at = None;
    while closed_at.is_none_or(|at| rounds < 2 * at) {
        talking.send(Message::text("on and on")).await.unwrap();
        within("the echo", talking.next()).await.unwrap().unwrap();
        rounds += 1;
        let event = tokio::time::timeout(std::time::Duration::from_millis(20), silent.next()).await;
        if let (Ok(Some(Ok(Message::Close(_)))), None) = (event, closed_at) {
            closed_at = Some(rounds);
        }
    }
    balancer.until_sessions(1).await;
}

#[actix_rt::test]
async fn a_peer_that_does_not_read_is_disconnected() {
    let flood = [0; 1 << 16];
    let settings = [("balancer.write_timeout", "300ms")];

    let pod = Pod::scripted(Script::default()).await;
    let balancer = Balancer::with([&pod], &settings).await;
    let (client, _) = raw(balancer.address(), "", b"").await;
    let mut session = pod.accept().await;
    let (mut read, mut write) = session.stream.split();
    let message = unmasked(FIN | BINARY, &flood);
    let mut received = Vec::new();
    let flooding = async { while write.write_all(&message).await.is_ok() {} };
    tokio::select! {
        () = flooding => {}
        _ = within("the Close at the pod", read.read_to_end(&mut received)) => {}
    }
    assert_eq!(close_of(&received), (1001, "write timed out: client is not reading".to_owned()));
    drop(session);
    balancer.until_sessions(0).await;
    drop(client);

    let (mut client, _) = raw(balancer.address(), "", b"").await;
    let session = pod.accept().await;
    let (mut read, mut write) = client.split();
    let message = masked(FIN | BINARY, &flood);
    let mut received = Vec::new();
    let flooding = async { while write.write_all(&message).await.is_ok() {} };
    tokio::select! {
        () = flooding => {}
        _ = within("the Close at the client", read.read_to_end(&mut received)) => {}
    }
    assert_eq!(close_of(&received), (1012, "write timed out: pod is not reading".to_owned()));
    drop(client);
    balancer.until_sessions(0).await;
    drop(session);
}

#[actix_rt::test]
async fn a_half_closed_session_ends_when_the_other_half_is_silent() {
    let pod = Pod::scripted(Script::default()).await;
    let balancer = Balancer::with([&pod], &[("balancer.half_closed_timeout", "200ms")]).await;
    let (mut client, _) = raw(balancer.address(), "", b"").await;
    let _session = pod.accept().await;
    client.shutdown().await.unwrap();
    balancer.until_sessions(0).await;
}

#[actix_rt::test]
async fn silent_peers_that_answer_pings_stay_and_dead_peers_are_disconnected() {
    let pod = Pod::scripted(Script::default()).await;
    let settings = [("balancer.client_ping_interval", "60ms"), ("balancer.ping_timeout", "1s")];
    let balancer = Balancer::with([&pod], &settings).await;
    // Its library answers Pings; the client itself sends nothing.
    let mut silent = connect(balancer.address()).await;
    let mut silent_at_pod = pod.accept().await;
    let listening = tokio::spawn(async move {
        loop {
            match silent.next().await {
                Some(Ok(Message::Ping(_))) => {}
                other => return (other, silent),
            }
        }
    });
    let (_dead, _) = raw(balancer.address(), "", b"").await;
    let mut dead_at_pod = pod.accept().await;
    let received = all(&mut dead_at_pod.stream).await;
    assert_eq!(close_of(&received), (1001, "ping timed out: client did not answer".to_owned()));
    drop(dead_at_pod);
    balancer.until_sessions(1).await;
    assert!(!listening.is_finished(), "the client has received only Pings");
    let word = unmasked(FIN | BINARY, b"still there?");
    silent_at_pod.stream.write_all(&word).await.unwrap();
    let (heard, mut client) = within("the message", listening).await.unwrap();
    assert_eq!(heard.unwrap().unwrap(), Message::binary(&b"still there?"[..]));
    let answer = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    client.close(Some(answer)).await.unwrap();
    let goodbye = close_frame(&mut silent_at_pod.stream).await;
    assert_eq!(goodbye.0, 1000, "no Pong reaches the pod");
}

#[actix_rt::test]
async fn a_pod_that_does_not_answer_pings_is_disconnected() {
    let pod = Pod::scripted(Script::default()).await;
    let settings = [("balancer.pod_ping_interval", "60ms"), ("balancer.ping_timeout", "200ms")];
    let balancer = Balancer::with([&pod], &settings).await;
    let mut client = connect(balancer.address()).await;
    let mut session = pod.accept().await;
    let mut ping = [0; 14];
    within("a Ping", session.stream.read_exact(&mut ping)).await.unwrap();
    assert_eq!(ping[..2], [0x89, 0x88]);
    assert_eq!(close_code(&mut client).await, 1012);
}

#[actix_rt::test]
async fn a_message_that_is_too_large_is_closed_with_1009() {
    let pod = Pod::echo().await;
    let balancer = Balancer::with([&pod], &[("balancer.max_message_size", "1000")]).await;
    let mut client = connect(balancer.address()).await;
    client.send(Message::binary(vec![1; 1000])).await.unwrap();
    let echo = within("the echo", client.next()).await.unwrap().unwrap();
    assert_eq!(echo.len(), 1000);
    client.send(Message::binary(vec![1; 1001])).await.unwrap();
    assert_eq!(close_code(&mut client).await, 1009);
    balancer.until_sessions(0).await;
}

#[actix_rt::test]
async fn a_client_that_sends_too_fast_is_slowed_down_or_closed() {
    let pod = Pod::echo().await;
    let rate = [("balancer.messages_per_second", "200"), ("balancer.message_burst", "20")];
    let balancer = Balancer::with([&pod], &rate).await;
    let (mut write, mut read) = connect(balancer.address()).await.split();
    let sending = async {
        for number in 0..100 {
            write.feed(Message::text(number.to_string())).await.unwrap();
        }
        write.flush().await.unwrap();
    };
    let receiving = async {
        for number in 0..100 {
            let echo = within("the echo", read.next()).await.unwrap().unwrap();
            assert_eq!(echo, Message::text(number.to_string()));
        }
    };
    tokio::join!(sending, receiving);

    let close = [rate[0], rate[1], ("balancer.over_message_rate", "close")];
    let balancer = Balancer::with([&pod], &close).await;
    let mut client = connect(balancer.address()).await;
    for number in 0..100 {
        client.feed(Message::text(number.to_string())).await.unwrap();
    }
    client.flush().await.unwrap();
    assert_eq!(close_code(&mut client).await, 1008);
}

async fn sessions(balancer: &Balancer) -> Vec<Arc<SessionInfo>> {
    balancer.control.registry.send(ListSessions).await.expect("a registry").0
}

/// Waits until a session has relayed this many bytes of its pod.
async fn until_relayed(balancer: &Balancer, bytes: u64) {
    eventually("relayed bytes", async || {
        sessions(balancer).await.iter().any(|session| session.stats.from_pod.bytes() == bytes)
    })
    .await;
}

/// The cause of the end of a session in the table below.
#[derive(Clone, Copy)]
enum Fault {
    PodLeaves,
    PodResets,
    /// A timeout of the settings.
    Time,
    /// The client sends a message of this many bytes.
    Message(usize),
    /// An operator closes the session.
    Operator,
}

/// The rows of the fault table, each at several positions in the stream from the pod, as
/// tokio-tungstenite reports them.
#[actix_rt::test]
async fn a_client_library_receives_a_close_at_every_position_in_the_stream() {
    let whole = unmasked(FIN | BINARY, b"whole");
    let fragment = unmasked(BINARY, b"a part");
    let said: [(&[u8], bool); 5] = [
        (b"", true),
        (&whole, true),
        (&fragment, true),
        (&whole[..4], false),
        (&whole[..1], false),
    ];
    let calm = ("balancer.close_timeout", "200ms");
    let rows: [(Fault, (&str, &str), u16, &str); 7] = [
        (Fault::PodLeaves, calm, 1012, "pod disconnected without a Close frame"),
        (Fault::PodResets, calm, 1012, "pod disconnected without a Close frame"),
        (
            Fault::PodLeaves,
            ("balancer.close_code_pod_lost", "4000"),
            4000,
            "pod disconnected without a Close frame",
        ),
        (Fault::Time, ("balancer.idle_timeout", "300ms"), 1001, "idle timeout"),
        (Fault::Time, ("balancer.max_session_age", "300ms"), 1012, "maximum session age reached"),
        (
            Fault::Message(11),
            ("balancer.max_message_size", "10"),
            1009,
            "message too large: at least 11 bytes",
        ),
        (Fault::Operator, calm, 1012, "closed by an operator"),
    ];
    for (fault, setting, code, reason) in rows {
        let pod = Pod::scripted(Script::default()).await;
        let balancer = Balancer::with([&pod], &[calm, setting]).await;
        for (said, at_boundary) in said {
            let mut client = connect(balancer.address()).await;
            let mut session = pod.accept().await;
            session.stream.write_all(said).await.unwrap();
            match fault {
                Fault::Message(size) => client.send(Message::binary(vec![0; size])).await.unwrap(),
                Fault::Operator => {
                    // The bytes have to be relayed first, or the Close would overtake them.
                    until_relayed(&balancer, said.len() as u64).await;
                    for session in sessions(&balancer).await {
                        let close = CloseById { id: session.id };
                        balancer.control.registry.send(close).await.unwrap();
                    }
                }
                Fault::PodResets => {
                    until_relayed(&balancer, said.len() as u64).await;
                    let linger = Some(std::time::Duration::ZERO);
                    socket2::SockRef::from(&session.stream).set_linger(linger).unwrap();
                    drop(session);
                }
                Fault::PodLeaves => drop(session),
                Fault::Time => {}
            }
            let received = loop {
                match within("an end", client.next()).await {
                    Some(Ok(Message::Close(frame))) => break frame,
                    Some(Ok(_)) => {}
                    None | Some(Err(_)) => break None,
                }
            };
            let what = format!("{code} {reason} after {said:?}");
            match received {
                Some(CloseFrame { code: received, reason: why }) if at_boundary => {
                    assert_eq!(u16::from(received), code, "{what}");
                    assert!(why.starts_with(reason), "{what}: {why}");
                }
                None if !at_boundary => {}
                received => panic!("{what}: {received:?}"),
            }
            drop(client);
            balancer.until_sessions(0).await;
        }
    }
}
