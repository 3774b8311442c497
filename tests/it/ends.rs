//! How sessions end: close codes, half-closes, resets.

use futures_util::{SinkExt as _, StreamExt as _};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use crate::support::{
    Balancer,
    client::{connect, raw},
    eventually,
    frames::{CLOSE, FIN, TEXT, close_of, masked, unmasked},
    pod::{Pod, Script},
    within,
};

fn close(code: u16, reason: &str) -> Option<CloseFrame> {
    Some(CloseFrame { code: CloseCode::from(code), reason: reason.into() })
}

/// Expects the pod's last bytes, the balancer's Close and the end of the stream.
async fn until_pod_is_gone(client: &mut TcpStream, last: &[u8]) {
    let mut at_client = Vec::new();
    within("the end", client.read_to_end(&mut at_client)).await.unwrap();
    let (words, farewell) = at_client.split_at(last.len());
    assert!(words == last, "{} bytes", last.len());
    assert_eq!(close_of(farewell), (1012, "pod disconnected without a Close frame".to_owned()));
}

#[actix_rt::test]
async fn close_codes_and_reasons_are_relayed_both_ways() {
    let pod = Pod::scripted(Script::default()).await;
    let balancer = Balancer::start([&pod]).await;
    for (code, reason) in
        [(1000, "done"), (1001, ""), (1008, "no"), (3456, "library"), (4999, "own")]
    {
        let mut client = connect(balancer.address()).await;
        let mut at_pod = pod.accept().await.into_websocket().await;
        client.close(close(code, reason)).await.unwrap();
        let seen = within("the Close", at_pod.next()).await.unwrap().unwrap();
        assert_eq!(seen, Message::Close(close(code, reason)));
        // tungstenite answers with the same code.
        assert!(within("the pod's end", at_pod.next()).await.is_none());
        let answer = within("the answer", client.next()).await.unwrap().unwrap();
        assert_eq!(answer, Message::Close(close(code, reason)));

        let mut client = connect(balancer.address()).await;
        let mut at_pod = pod.accept().await.into_websocket().await;
        at_pod.close(close(code, reason)).await.unwrap();
        let seen = within("the Close", client.next()).await.unwrap().unwrap();
        assert_eq!(seen, Message::Close(close(code, reason)));
    }
    balancer.until_sessions(0).await;
}

#[actix_rt::test]
async fn a_close_without_a_code_is_relayed_without_one() {
    let pod = Pod::scripted(Script::default()).await;
    let balancer = Balancer::start([&pod]).await;
    let mut client = connect(balancer.address()).await;
    let mut at_pod = pod.accept().await.into_websocket().await;
    client.send(Message::Close(None)).await.unwrap();
    assert_eq!(at_pod.next().await.unwrap().unwrap(), Message::Close(None));
}

#[actix_rt::test]
async fn a_half_close_is_relayed_and_the_other_direction_stays_open() {
    let pod = Pod::scripted(Script::default()).await;
    let balancer = Balancer::start([&pod]).await;
    let (mut client, _) = raw(balancer.address(), "", b"").await;
    let mut session = pod.accept().await;
    let last = masked(FIN | TEXT, b"my last words");
    client.write_all(&last).await.unwrap();
    client.shutdown().await.unwrap();
    let mut at_pod = Vec::new();
    within("the client's end", session.stream.read_to_end(&mut at_pod)).await.unwrap();
    let (words, farewell) = at_pod.split_at(last.len());
    assert_eq!(words, last);
    assert_eq!(close_of(farewell), (1001, "client disconnected without a Close frame".to_owned()));

    let answer = unmasked(FIN | TEXT, b"but I still talk");
    session.stream.write_all(&answer).await.unwrap();
    let mut at_client = vec![0; answer.len()];
    within("the pod's words", client.read_exact(&mut at_client)).await.unwrap();
    assert_eq!(at_client, answer);
    balancer.until_sessions(1).await;
    drop(session);
    assert_eq!(within("the pod's end", client.read(&mut [0])).await.unwrap(), 0);
    balancer.until_sessions(0).await;
}

#[actix_rt::test]
async fn a_pod_that_half_closes_still_receives_from_the_client() {
    let pod = Pod::scripted(Script::default()).await;
    let balancer = Balancer::start([&pod]).await;
    let (mut client, _) = raw(balancer.address(), "", b"").await;
    let mut session = pod.accept().await;
    session.stream.shutdown().await.unwrap();
    until_pod_is_gone(&mut client, b"").await;
    let words = masked(FIN | TEXT, b"are you there?");
    client.write_all(&words).await.unwrap();
    let mut at_pod = vec![0; words.len()];
    within("the client's words", session.stream.read_exact(&mut at_pod)).await.unwrap();
    assert_eq!(at_pod, words);
}

#[actix_rt::test]
async fn the_last_bytes_of_a_pod_that_dies_are_delivered() {
    let pod = Pod::scripted(Script::default()).await;
    let balancer = Balancer::start([&pod]).await;
    let (mut client, _) = raw(balancer.address(), "", b"").await;
    let mut session = pod.accept().await;
    let words = unmasked(FIN | TEXT, &[b'x'; 300_000]);
    session.stream.write_all(&words).await.unwrap();
    drop(session);
    until_pod_is_gone(&mut client, &words).await;
    drop(client);
    balancer.until_sessions(0).await;
}

#[actix_rt::test]
async fn a_reset_on_one_side_ends_the_other() {
    let pod = Pod::scripted(Script::default()).await;
    let balancer = Balancer::start([&pod]).await;
    // Makes closing the socket send an RST.
    let reset = |stream: &TcpStream| {
        SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    };
    let (mut client, _) = raw(balancer.address(), "", b"").await;
    let session = pod.accept().await;
    reset(&session.stream);
    drop(session);
    // The client gets a Close instead of a reset.
    until_pod_is_gone(&mut client, b"").await;
    drop(client);

    let (client, _) = raw(balancer.address(), "", b"").await;
    let mut session = pod.accept().await;
    reset(&client);
    drop(client);
    let mut farewell = Vec::new();
    within("the end of the pod", session.stream.read_to_end(&mut farewell)).await.unwrap();
    assert_eq!(close_of(&farewell), (1001, "client disconnected without a Close frame".to_owned()));
    drop(session);
    balancer.until_sessions(0).await;
    eventually("all leases are returned", async || {
        balancer.metrics().await["services"][0]["own"] == 0
    })
    .await;
}

/// If the balancer did not read from the client to the end, the client would be reset and might lose
/// the Close that it has not read yet.
#[actix_rt::test]
async fn a_client_that_keeps_sending_is_not_reset_when_its_pod_disconnects() {
    let pod = Pod::scripted(Script::default()).await;
    let balancer = Balancer::start([&pod]).await;
    let (mut client, _) = raw(balancer.address(), "", b"").await;
    let mut session = pod.accept().await;
    let goodbye = unmasked(FIN | CLOSE, &1000u16.to_be_bytes());
    session.stream.write_all(&goodbye).await.unwrap();
    drop(session);
    let mut seen = vec![0; goodbye.len()];
    within("the Close", client.read_exact(&mut seen)).await.unwrap();
    assert_eq!(seen, goodbye);
    // Much more than the buffers of two sockets.
    let words = masked(FIN | TEXT, &[b'x'; 100_000]);
    for _ in 0..200 {
        within("room in the buffers", client.write_all(&words))
            .await
            .expect("a client whose bytes are still read");
    }
    client.shutdown().await.unwrap();
    assert_eq!(within("the end", client.read(&mut [0])).await.unwrap(), 0, "no reset");
    drop(client);
    balancer.until_sessions(0).await;
}

#[actix_rt::test]
async fn the_end_of_one_session_does_not_affect_others() {
    let pod = Pod::echo().await;
    let balancer = Balancer::start([&pod]).await;
    let mut stays = connect(balancer.address()).await;
    for _ in 0..50 {
        drop(connect(balancer.address()).await);
    }
    balancer.until_sessions(1).await;
    stays.send(Message::text("still here")).await.unwrap();
    assert_eq!(stays.next().await.unwrap().unwrap(), Message::text("still here"));
}
