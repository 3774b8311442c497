//! A side that does not read costs little memory and slows no other session down.

use futures_util::{SinkExt as _, StreamExt as _};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    client::{connect, raw},
    pod::{Pod, Script},
    program::Program,
    within,
};

/// Bytes that the sender offers: much more than all buffers between the two sides.
const OFFERED: u64 = 64 << 20;

/// The buffer of one read, and the overhead of the allocator.
const ALLOWED_GROWTH: u64 = 1 << 20;

/// Sends `OFFERED` patterned bytes and returns the count of bytes that the socket has accepted.
fn send_all(mut stream: tokio::net::tcp::OwnedWriteHalf) -> Arc<AtomicU64> {
    let sent = Arc::<AtomicU64>::default();
    let counter = sent.clone();
    tokio::spawn(async move {
        while counter.load(SeqCst) < OFFERED {
            let at = counter.load(SeqCst);
            let chunk: Vec<u8> = (at..(at + 65_536).min(OFFERED)).map(pattern).collect();
            let Ok(n) = stream.write(&chunk).await else { return };
            counter.fetch_add(n as u64, SeqCst);
        }
        let _ = stream.shutdown().await;
        std::future::pending::<()>().await;
    });
    sent
}

fn pattern(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// Waits until `count` has not changed for half a second.
async fn until_stalled(count: &AtomicU64) -> u64 {
    let mut last = u64::MAX;
    let mut same = 0;
    while same < 10 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = count.load(SeqCst);
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    last
}

async fn expect_all(mut stream: TcpStream) {
    let mut at = 0;
    let mut buffer = vec![0; 1 << 20];
    while at < OFFERED {
        let n = within("more bytes", stream.read(&mut buffer)).await.unwrap();
        assert!(n > 0, "the end after {at} bytes");
        let right = buffer[..n].iter().zip(at..).all(|(byte, at)| *byte == pattern(at));
        assert!(right, "a wrong byte after {at}");
        at += n as u64;
    }
}

/// The receiver slows the sender down, the balancer buffers next to nothing, other sessions are not
/// affected, and no byte is missing when the receiver reads at last.
async fn stall(from_pod: bool) {
    let slow_pod = Pod::scripted(Script::default()).await;
    let balancer = Program::run(&slow_pod.url(), &[]).await;

    // Warm up, so that only the stalled session adds memory.
    for _ in 0..20 {
        let mut client = connect(balancer.traffic).await;
        let mut at_pod = slow_pod.accept().await.into_websocket().await;
        client.send(Message::binary(vec![1u8; 200_000])).await.unwrap();
        let message = at_pod.next().await.unwrap().unwrap();
        at_pod.send(message).await.unwrap();
        client.next().await.unwrap().unwrap();
    }

    let (client, _) = raw(balancer.traffic, "", b"").await;
    let at_pod = slow_pod.accept().await.stream;
    let before = balancer.rss();
    let (sender, receiver) = if from_pod { (at_pod, client) } else { (client, at_pod) };
    let (sender_in, sender_out) = sender.into_split();
    let sent = send_all(sender_out);
    let accepted = until_stalled(&sent).await;
    assert!(accepted < OFFERED, "the sender is not slowed down");
    let growth = balancer.rss().saturating_sub(before);
    assert!(growth < ALLOWED_GROWTH, "{growth} bytes more for a stalled session");

    // Other sessions are not slowed down.
    let mut other = connect(balancer.traffic).await;
    let mut other_at_pod = slow_pod.accept().await.into_websocket().await;
    for number in 0..100 {
        let message = Message::text(format!("{number}"));
        other.send(message.clone()).await.unwrap();
        assert_eq!(within("the message", other_at_pod.next()).await.unwrap().unwrap(), message);
    }

    expect_all(receiver).await;
    drop(sender_in);
}

#[actix_rt::test]
async fn a_client_that_does_not_read_slows_its_pod_down() {
    stall(true).await;
}

#[actix_rt::test]
async fn a_pod_that_does_not_read_slows_its_client_down() {
    stall(false).await;
}
