//! Messages of every kind are relayed unchanged in both directions.

use futures_util::{SinkExt as _, StreamExt as _, future::join_all};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    },
};

use crate::support::{
    Balancer,
    client::{connect, raw},
    frames::{FIN, RSV1, TEXT, masked, unmasked},
    pod::{Pod, Script, Upgrade},
    within,
};

#[actix_rt::test]
async fn text_binary_and_empty_messages_are_echoed() {
    let pod = Pod::echo().await;
    let balancer = Balancer::start([&pod]).await;
    let mut client = connect(balancer.address()).await;
    for message in [
        Message::text("grüße"),
        Message::text(""),
        Message::binary(vec![0u8, 255, 128]),
        Message::binary(Vec::<u8>::new()),
        Message::binary(vec![7u8; 70_000]),
    ] {
        client.send(message.clone()).await.unwrap();
        let echo = within("the echo", client.next()).await.unwrap().unwrap();
        assert_eq!(echo, message);
    }
}

#[actix_rt::test]
async fn a_ping_between_fragments_is_answered_by_the_pod() {
    let pod = Pod::echo().await;
    let balancer = Balancer::start([&pod]).await;
    let mut client = connect(balancer.address()).await;
    let fragment = |data, last| Message::Frame(Frame::message("part", OpCode::Data(data), last));
    client.send(fragment(Data::Text, false)).await.unwrap();
    client.send(fragment(Data::Continue, false)).await.unwrap();
    client.send(Message::Ping("between".into())).await.unwrap();
    client.send(fragment(Data::Continue, true)).await.unwrap();
    let pong = within("the pong", client.next()).await.unwrap().unwrap();
    assert_eq!(pong, Message::Pong("between".into()), "from the pod, not from us");
    let echo = within("the echo", client.next()).await.unwrap().unwrap();
    assert_eq!(echo, Message::text("partpartpart"));
}

#[actix_rt::test]
async fn a_message_of_64_mebibytes_is_echoed() {
    let pod = Pod::echo().await;
    let balancer = Balancer::start([&pod]).await;
    let (mut sink, mut stream) = connect(balancer.address()).await.split();
    let mut payload = vec![0; 64 << 20];
    fastrand::Rng::with_seed(64).fill(&mut payload);
    let message = Message::binary(payload);
    let sending = sink.send(message.clone());
    let (sent, echo) = within("64 MiB", async { tokio::join!(sending, stream.next()) }).await;
    sent.unwrap();
    assert!(echo.unwrap().unwrap() == message, "the echo differs");
}

#[actix_rt::test]
async fn pings_are_relayed_both_ways() {
    let pod = Pod::scripted(Script::default()).await;
    let balancer = Balancer::start([&pod]).await;
    let mut client = connect(balancer.address()).await;
    let mut at_pod = pod.accept().await.into_websocket().await;
    client.send(Message::Ping("up".into())).await.unwrap();
    assert_eq!(at_pod.next().await.unwrap().unwrap(), Message::Ping("up".into()));
    at_pod.send(Message::Ping("down".into())).await.unwrap();
    // tungstenite answers a Ping with its next write, so that the order may differ.
    let mut seen = Vec::new();
    for _ in 0..2 {
        seen.push(within("ping and pong", client.next()).await.unwrap().unwrap());
    }
    assert!(seen.contains(&Message::Pong("up".into())), "{seen:?}");
    assert!(seen.contains(&Message::Ping("down".into())), "{seen:?}");
}

#[actix_rt::test]
async fn early_bytes_of_both_sides_are_relayed() {
    let early = unmasked(FIN | TEXT, b"welcome");
    let upgrade = Upgrade::Accept { fields: "", early: early.clone() };
    let pod = Pod::scripted(Script { upgrade, ..Script::default() }).await;
    let balancer = Balancer::start([&pod]).await;
    let hello = masked(FIN | TEXT, b"hello");
    let (mut client, _) = raw(balancer.address(), "", &hello).await;
    let mut session = pod.accept().await;
    let mut at_pod = vec![0; hello.len()];
    within("the client's bytes", session.stream.read_exact(&mut at_pod)).await.unwrap();
    assert_eq!(at_pod, hello);
    let mut at_client = vec![0; early.len()];
    within("the pod's bytes", client.read_exact(&mut at_client)).await.unwrap();
    assert_eq!(at_client, early);
}

#[actix_rt::test]
async fn compressed_frames_are_relayed_unchanged() {
    let fields = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n";
    let upgrade = Upgrade::Accept { fields, early: Vec::new() };
    let pod = Pod::scripted(Script { upgrade, ..Script::default() }).await;
    let balancer = Balancer::start([&pod]).await;
    let offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
    let (mut client, head) = raw(balancer.address(), offer, b"").await;
    assert!(head.contains("permessage-deflate; server_no_context_takeover"), "{head}");
    let mut session = pod.accept().await;
    assert!(session.request.contains("permessage-deflate; client_max_window_bits"));

    // "Hello", compressed (RFC 7692 §7.2.3.1).
    let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
    let up = masked(FIN | RSV1 | TEXT, &hello);
    client.write_all(&up).await.unwrap();
    let mut at_pod = vec![0; up.len()];
    within("the frame", session.stream.read_exact(&mut at_pod)).await.unwrap();
    assert_eq!(at_pod, up);
    let down = unmasked(FIN | RSV1 | TEXT, &hello);
    session.stream.write_all(&down).await.unwrap();
    let mut at_client = vec![0; down.len()];
    within("the frame", client.read_exact(&mut at_client)).await.unwrap();
    assert_eq!(at_client, down);
}

#[actix_rt::test]
async fn a_thousand_concurrent_sessions_are_spread_evenly() {
    let pods = [Pod::echo().await, Pod::echo().await, Pod::echo().await, Pod::echo().await];
    let balancer = Balancer::start(&pods).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.extend(join_all((0..50).map(|_| connect(balancer.address()))).await);
    }
    balancer.until_sessions(1000).await;
    assert_eq!(pods.each_ref().map(Pod::open), [250; 4]);
    let talks = clients.iter_mut().enumerate().map(|(number, client)| async move {
        let message = Message::text(format!("client {number}"));
        client.send(message.clone()).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), message);
    });
    within("all echoes", join_all(talks)).await;
    drop(clients);
    balancer.until_sessions(0).await;
}

/// Random sizes in both directions at once, so that partial writes occur at every position.
#[actix_rt::test]
async fn bytes_keep_their_order_in_both_directions_at_once() {
    let pod = Pod::scripted(Script::default()).await;
    let balancer = Balancer::start([&pod]).await;
    let client = connect(balancer.address()).await;
    let at_pod = pod.accept().await.into_websocket().await;
    let up = messages(1);
    let down = messages(2);
    let (client_out, client_in) = client.split();
    let (pod_out, pod_in) = at_pod.split();
    within("all messages", async {
        tokio::join!(
            send_all(client_out, &up),
            send_all(pod_out, &down),
            expect_all(pod_in, &up),
            expect_all(client_in, &down),
        )
    })
    .await;

    async fn send_all<S>(mut sink: S, messages: &[Message])
    where
        S: futures_util::Sink<Message> + Unpin,
        S::Error: std::fmt::Debug,
    {
        for message in messages {
            sink.send(message.clone()).await.unwrap();
        }
    }

    async fn expect_all<S, E>(mut stream: S, messages: &[Message])
    where
        S: futures_util::Stream<Item = Result<Message, E>> + Unpin,
        E: std::fmt::Debug,
    {
        for message in messages {
            assert!(stream.next().await.unwrap().unwrap() == *message, "a message differs");
        }
    }

    fn messages(seed: u64) -> Vec<Message> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let sizes = [1..64, 1..64, 1_000..100_000, 1_000_000..4_000_000];
        (0..60)
            .map(|index| {
                let mut payload = vec![0; rng.usize(sizes[index % sizes.len()].clone())];
                rng.fill(&mut payload);
                Message::binary(payload)
            })
            .collect()
    }
}
