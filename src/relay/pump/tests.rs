use std::{cell::RefCell, rc::Rc, sync::Arc};

use bytes::BytesMut;
use futures_util::FutureExt as _;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufStream, DuplexStream, duplex,
};

use super::*;
use crate::{
    domain::session::close_code::CloseCode,
    relay::{
        Io, Tunnel, TunnelPeer, TunnelRules,
        filter::{FrameLimits, MessageRate},
        frame,
    },
};

/// The ending of a client that did not answer a Ping.
const SILENT: Ending = Ending::Silent(Side::Client);

fn reason(ending: Ending) -> &'static str {
    ending.row().reason
}

/// A tunnel over in-memory pipes of `room` bytes: the far ends, the tunnel, its figures.
fn tunnel(
    room: usize,
    early_up: &[u8],
    early_down: &[u8],
) -> (DuplexStream, DuplexStream, Tunnel, Arc<TunnelStats>) {
    tunnel_with(room, early_up, early_down, TunnelRules::default())
}

/// A tunnel to `pod` over a pipe of `room` bytes.
fn tunnel_to(pod: impl Io + 'static, room: usize) -> (DuplexStream, Tunnel) {
    let (client, client_side) = duplex(room);
    let peers =
        (TunnelPeer::new(client_side, BytesMut::new()), TunnelPeer::new(pod, BytesMut::new()));
    (client, Tunnel::new(peers.0, peers.1, &Arc::default(), &TunnelRules::default()))
}

fn tunnel_with(
    room: usize,
    early_up: &[u8],
    early_down: &[u8],
    rules: TunnelRules,
) -> (DuplexStream, DuplexStream, Tunnel, Arc<TunnelStats>) {
    let (client, client_side) = duplex(room);
    let (pod, pod_side) = duplex(room);
    let stats = Arc::<TunnelStats>::default();
    let tunnel = Tunnel::new(
        TunnelPeer { socket: Rc::new(RefCell::new(client_side)), early: BytesMut::from(early_up) },
        TunnelPeer { socket: Rc::new(RefCell::new(pod_side)), early: BytesMut::from(early_down) },
        &stats,
        &rules,
    );
    (client, pod, tunnel, stats)
}

/// Fails instead of waiting forever when a timeout under test does not work.
async fn in_time(test: impl Future<Output = ()>) {
    let patience = std::time::Duration::from_secs(30);
    tokio::time::timeout(patience, test).await.expect("the test to end in time");
}

/// Accepts all bytes. The first flush is pending, and the second one fails.
struct Unflushable {
    inner: DuplexStream,
    was_flushed: bool,
}

impl AsyncRead for Unflushable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Unflushable {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::replace(&mut self.was_flushed, true) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

fn text(payload: &[u8]) -> Vec<u8> {
    [&[0x81, payload.len() as u8], payload].concat()
}

#[actix_rt::test]
async fn early_bytes_of_both_sides_are_relayed_first() {
    in_time(async {
        let (mut client, mut pod, Tunnel { from_client, from_pod, control: _control }, stats) =
            tunnel(1024, &text(b"early"), &text(b"bird"));
        let relay = actix_rt::spawn(async move { tokio::join!(from_client, from_pod) });
        let goodbye = [0x88, 0x80, 0, 0, 0, 0];
        client.write_all(&[&text(b"then")[..], &goodbye].concat()).await.unwrap();
        client.shutdown().await.unwrap();
        pod.shutdown().await.unwrap();
        let (mut at_pod, mut at_client) = (Vec::new(), Vec::new());
        pod.read_to_end(&mut at_pod).await.unwrap();
        client.read_to_end(&mut at_client).await.unwrap();
        assert_eq!(at_pod, [&text(b"early")[..], &text(b"then"), &goodbye].concat());
        assert_eq!(at_client, text(b"bird"));
        assert!(matches!(relay.await.unwrap(), (PumpEnd::Eof, PumpEnd::Eof)));
        assert_eq!((stats.from_client.messages(), stats.from_pod.messages()), (2, 1));
    })
    .await;
}

#[actix_rt::test]
async fn a_sink_that_buffers_is_flushed_after_every_message() {
    in_time(async {
        let (mut client, client_side) = duplex(1024);
        let (mut pod, pod_side) = duplex(16);
        let buffering = BufStream::with_capacity(64, 64, pod_side);
        let stats = Arc::<TunnelStats>::default();
        let Tunnel { from_client, from_pod, control: _control } = Tunnel::new(
            TunnelPeer { socket: Rc::new(RefCell::new(client_side)), early: BytesMut::new() },
            TunnelPeer { socket: Rc::new(RefCell::new(buffering)), early: BytesMut::new() },
            &stats,
            &TunnelRules::default(),
        );
        actix_rt::spawn(async move { tokio::join!(from_client, from_pod) });
        // Smaller than the pipe, larger than the pipe, larger than the buffer.
        for payload in [&[b'a'; 5][..], &[b'b'; 40], &[b'c'; 120]] {
            let message = text(payload);
            client.write_all(&message).await.unwrap();
            let mut received = vec![0; message.len()];
            pod.read_exact(&mut received).await.unwrap();
            assert_eq!(received, message);
        }
    })
    .await;
}

#[actix_rt::test]
async fn a_stalled_sink_stops_reading() {
    in_time(async {
        let (
            mut client,
            _pod,
            Tunnel { mut from_client, from_pod: _from_pod, control: _control },
            stats,
        ) = tunnel(1000, b"", b"");
        let sender = actix_rt::spawn(async move {
            let _ = client.write_all(&[0u8; 1_000_000]).await;
        });
        for _ in 0..200 {
            assert!((&mut from_client).now_or_never().is_none());
            tokio::task::yield_now().await;
        }
        assert!(stats.from_client.bytes() <= 3 * 1000, "one pipe full and one read held");
        assert!(!from_client.write_buffer.unwritten().is_empty());
        sender.abort();
    })
    .await;
}

#[actix_rt::test]
async fn a_close_waits_for_the_boundary_and_nothing_follows_it() {
    in_time(async {
        let (mut client, mut pod, Tunnel { from_client, from_pod, control }, _stats) =
            tunnel(4096, b"", b"");
        let relay = actix_rt::spawn(async move { tokio::join!(from_client, from_pod) });
        let message = text(b"half of this message");
        pod.write_all(&message[..7]).await.unwrap();
        let mut first = [0; 7];
        client.read_exact(&mut first).await.unwrap();

        control.end(Ending::Shutdown, CloseCodes::default());
        // Complete messages in the chunk that brings the boundary are still relayed.
        let last = [&message[7..], &text(b"in time")].concat();
        pod.write_all(&last).await.unwrap();
        let expected =
            [&last[..], &frame::close(CloseCode::SERVICE_RESTART, reason(Ending::Shutdown), None)]
                .concat();
        let mut at_client = vec![0; expected.len()];
        client.read_exact(&mut at_client).await.unwrap();
        assert_eq!(at_client, expected);
        let mut at_pod = vec![0; 2 + 4 + 2 + reason(Ending::Shutdown).len()];
        pod.read_exact(&mut at_pod).await.unwrap();
        assert_eq!(at_pod[0], 0x88);

        // Both answer their Close, the pod after one message too many.
        pod.write_all(&[&text(b"too late")[..], &[0x88, 2, 0x03, 0xe9]].concat()).await.unwrap();
        client.write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xf4]).await.unwrap();
        let mut after = Vec::new();
        client.read_to_end(&mut after).await.unwrap();
        pod.read_to_end(&mut after).await.unwrap();
        assert!(
            after.is_empty(),
            "nothing is relayed after a Close, not even the answers: {after:?}"
        );
        assert!(matches!(relay.await.unwrap(), (PumpEnd::Closed, PumpEnd::Closed)));
    })
    .await;
}

#[actix_rt::test]
async fn a_close_after_the_peers_own_close_is_not_sent() {
    in_time(async {
        let (mut client, mut pod, Tunnel { from_client, from_pod, control }, _stats) =
            tunnel(4096, b"", b"");
        let relay = actix_rt::spawn(async move { tokio::join!(from_client, from_pod) });
        let own = [0x88, 2, 0x03, 0xe8];
        pod.write_all(&own).await.unwrap();
        let mut seen = [0; 4];
        client.read_exact(&mut seen).await.unwrap();
        control.end(Ending::Shutdown, CloseCodes::default());
        drop(pod);
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty(), "one Close per direction");
        drop(client);
        drop(control);
        relay.await.unwrap();
    })
    .await;
}

#[actix_rt::test]
async fn abort_ends_a_pump_that_is_stuck() {
    in_time(async {
        let (mut client, _pod, Tunnel { from_client, from_pod: _from_pod, control }, _stats) =
            tunnel(16, b"", b"");
        let relay = actix_rt::spawn(from_client);
        client.write_all(&[0; 32]).await.unwrap();
        control.abort();
        assert!(matches!(relay.await.unwrap(), PumpEnd::Aborted));
    })
    .await;
}

/// Reads to the end of the connection.
async fn all(stream: &mut DuplexStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    all
}

/// Returns opcode and unmasked payload of a control frame, and checks that there is only one frame.
fn control_frame(frame: &[u8]) -> (u8, Vec<u8>) {
    let header = frame::FrameHeader::parse(frame).expect("a whole header");
    let payload = &frame[header.header_len..];
    assert_eq!(payload.len() as u64, header.payload_len, "one whole frame");
    (header.opcode, frame::unmasked(payload, header.mask).collect())
}

fn close_payload(code: u16, reason: &str) -> (u8, Vec<u8>) {
    (frame::opcode::CLOSE, [&code.to_be_bytes()[..], reason.as_bytes()].concat())
}

#[actix_rt::test]
async fn bytes_that_a_sink_has_not_flushed_count_as_pending() {
    in_time(async {
        let (mut pod, pod_side) = duplex(16);
        let (mut client, Tunnel { from_client, from_pod: _from_pod, control }) =
            tunnel_to(BufStream::with_capacity(64, 64, pod_side), 1024);
        let view = control.view();
        actix_rt::spawn(from_client);
        let message = text(&[b'x'; 40]);
        client.write_all(&message).await.unwrap();
        while view.pending_to(Side::Pod) == 0 {
            tokio::task::yield_now().await;
        }
        pod.read_exact(&mut vec![0; message.len()]).await.unwrap();
        while view.pending_to(Side::Pod) > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[actix_rt::test]
async fn a_flush_error_ends_the_direction_once() {
    in_time(async {
        let (_pod, inner) = duplex(64);
        let (mut client, Tunnel { from_client, from_pod: _from_pod, control: _control }) =
            tunnel_to(Unflushable { inner, was_flushed: false }, 64);
        let relay = actix_rt::spawn(from_client);
        // The client is read up to its Close: unread bytes would reset its connection.
        client.write_all(&text(&[b'x'; 120]).repeat(10)).await.unwrap();
        assert!(!relay.is_finished());
        client.write_all(&[0x88, 0x80, 0, 0, 0, 0]).await.unwrap();
        assert!(matches!(relay.await.unwrap(), PumpEnd::WriteFailed(_)));
    })
    .await;
}

#[actix_rt::test]
async fn the_pump_does_not_wait_for_a_sink_that_is_given_up() {
    in_time(async {
        let (_pod, pod_side) = duplex(16);
        let (mut client, Tunnel { from_client, from_pod: _from_pod, control }) =
            tunnel_to(BufStream::with_capacity(64, 64, pod_side), 1024);
        let relay = actix_rt::spawn(from_client);
        // Fills the buffer in front of the pod, which reads only the first bytes.
        client.write_all(&text(&[b'x'; 40])).await.unwrap();
        tokio::task::yield_now().await;
        control.cell_to(Side::Pod).set(Command::SinkLost);
        client.write_all(&[0x88, 0x80, 0, 0, 0, 0]).await.unwrap();
        assert!(matches!(relay.await.unwrap(), PumpEnd::WriteFailed(_)));
    })
    .await;
}

#[actix_rt::test]
async fn the_other_side_gets_a_close_but_not_in_the_middle_of_a_frame() {
    in_time(async {
        let message = text(b"whole");
        let fragment = [&[0x01, 3][..], b"one"].concat();
        let cases: [(&[u8], bool); 5] = [
            (b"", true),
            (&message, true),
            (&fragment, true),
            (&message[..4], false),
            (&message[..1], false),
        ];
        for (said, at_boundary) in cases {
            for pod_leaves in [true, false] {
                let (client, pod, Tunnel { from_client, from_pod, control: _control }, _) =
                    tunnel(1024, b"", b"");
                actix_rt::spawn(async move { tokio::join!(from_client, from_pod) });
                let (mut leaves, mut stays) =
                    if pod_leaves { (pod, client) } else { (client, pod) };
                leaves.write_all(said).await.unwrap();
                drop(leaves);
                let got = all(&mut stays).await;
                let (before, farewell) = got.split_at(said.len());
                assert_eq!(before, said);
                let expected = match pod_leaves {
                    true => close_payload(1012, reason(Ending::Lost(Side::Pod))),
                    false => close_payload(1001, reason(Ending::Lost(Side::Client))),
                };
                match at_boundary {
                    true => assert_eq!(control_frame(farewell), expected),
                    false => assert!(farewell.is_empty(), "{farewell:?} after {said:?}"),
                }
            }
        }
    })
    .await;
}

#[actix_rt::test]
async fn no_close_is_sent_after_a_side_has_sent_its_own() {
    in_time(async {
        let own = [0x88, 2, 0x03, 0xe8];
        let (mut client, mut pod, Tunnel { from_client, from_pod, control: _control }, _) =
            tunnel(1024, b"", b"");
        actix_rt::spawn(async move { tokio::join!(from_client, from_pod) });
        pod.write_all(&own).await.unwrap();
        drop(pod);
        assert_eq!(all(&mut client).await, own);

        let (mut client, mut pod, Tunnel { from_client, from_pod, control: _control }, _) =
            tunnel(1024, &own, b"");
        actix_rt::spawn(async move { tokio::join!(from_client, from_pod) });
        let mut at_pod = [0; 4];
        pod.read_exact(&mut at_pod).await.unwrap();
        drop(pod);
        assert!(all(&mut client).await.is_empty(), "the pod closed because of the client's Close");
    })
    .await;
}

#[actix_rt::test]
async fn the_other_side_of_a_silent_client_gets_a_close() {
    in_time(async {
        let (mut client, mut pod, Tunnel { from_client, from_pod, control }, _) =
            tunnel(64, b"", b"");
        let relay = actix_rt::spawn(async move { tokio::join!(from_client, from_pod) });
        // The client reads nothing of this.
        pod.write_all(&text(&[b'x'; 120])).await.unwrap();
        while control.view().pending_to(Side::Client) == 0 {
            tokio::task::yield_now().await;
        }
        control.end(SILENT, CloseCodes::default());
        let at_pod = all(&mut pod).await;
        assert_eq!(control_frame(&at_pod), close_payload(1001, reason(SILENT)));
        pod.write_all(&[0x88, 2, 0x03, 0xe9]).await.unwrap();
        let ends = relay.await.unwrap();
        assert!(matches!(ends, (PumpEnd::ReadFailed(_), PumpEnd::WriteFailed(_))), "{ends:?}");
        drop(control);
        let at_client = all(&mut client).await;
        assert_eq!(at_client, &text(&[b'x'; 120])[..at_client.len()], "no Close inside a frame");
    })
    .await;
}

fn with_pings() -> TunnelRules {
    TunnelRules { pings: [true; 2], ..TunnelRules::default() }
}

#[actix_rt::test]
async fn pings_are_injected_between_frames_and_their_pongs_are_not_relayed() {
    in_time(async {
        let (mut client, mut pod, Tunnel { from_client, from_pod, control }, stats) =
            tunnel_with(4096, b"", b"", with_pings());
        let view = control.view();
        actix_rt::spawn(async move { tokio::join!(from_client, from_pod) });
        let message = text(b"between whose bytes no Ping goes");
        pod.write_all(&message[..9]).await.unwrap();
        let mut first = [0; 9];
        client.read_exact(&mut first).await.unwrap();
        control.ping(Side::Client);
        pod.write_all(&[&message[9..], &text(b"next")].concat()).await.unwrap();
        let mut rest = vec![0; message.len() - 9 + 6 + 10];
        client.read_exact(&mut rest).await.unwrap();
        assert_eq!(rest[..message.len() - 9], message[9..]);
        // After the last complete frame of the chunk that brought the boundary.
        assert_eq!(rest[message.len() - 9..][..6], text(b"next"));
        let (opcode, payload) = control_frame(&rest[message.len() + 6 - 9..]);
        assert_eq!((opcode, payload.len()), (frame::opcode::PING, 8));
        assert_eq!(view.pings_to(Side::Client), 1);

        // The same payload in another frame, a Pong of the application's, and ours.
        let mut pong = frame::ping(&payload.clone().try_into().unwrap(), Some([5, 6, 7, 8]));
        pong[0] = 0x8a;
        let not_ours = [&[0x82, 8][..], &payload].concat();
        let applications = [0x8a, 0x80 | 8, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        let parts: [&[u8]; 4] = [&not_ours, &applications, &pong, &text(b"after")];
        for byte in parts.concat() {
            client.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let expected = [&not_ours[..], &applications, &text(b"after")].concat();
        let mut at_pod = vec![0; expected.len()];
        pod.read_exact(&mut at_pod).await.unwrap();
        assert_eq!(at_pod, expected);
        assert_eq!(view.pong_bytes_from(Side::Client), pong.len() as u64);
        assert_eq!(stats.from_client.bytes(), expected.len() as u64);
        // No other Ping was sent, so another Pong is relayed.
        client.write_all(&pong).await.unwrap();
        let mut unsolicited = vec![0; pong.len()];
        pod.read_exact(&mut unsolicited).await.unwrap();
        assert_eq!(unsolicited, pong);

        control.ping(Side::Pod);
        let mut ping = [0; 14];
        pod.read_exact(&mut ping).await.unwrap();
        assert_eq!(control_frame(&ping), (frame::opcode::PING, payload.clone()));
        assert_ne!(ping[1] & 0x80, 0, "masked towards a pod");
        pod.write_all(&[&[0x8a, 8][..], &payload, &text(b"end")].concat()).await.unwrap();
        let mut at_client = [0; 5];
        client.read_exact(&mut at_client).await.unwrap();
        assert_eq!(at_client[..], text(b"end"));
    })
    .await;
}

#[actix_rt::test]
async fn a_frame_or_message_that_is_too_large_ends_the_session_before_it_is_relayed() {
    in_time(async {
        let limits =
            |frame_size, message_size| FrameLimits { frame_size, message_size, rate: None };
        let fits = [&[0x01, 0x83][..], &[0; 4], b"abc", &[0x80, 0x83], &[0; 4], b"def"].concat();
        let frame = [&[0x82, 0xfe, 0x01, 0x01][..], &[0; 4]].concat();
        let ping = [0x89, 0x80, 0, 0, 0, 0];
        let third = [0x80, 0x81, 0, 0, 0, 0, b'x'];
        let fragments = [&fits[..9], &[0x00, 0x83], &[0; 4], b"def", &ping].concat();
        let cases = [
            (limits(Some(256), None), [&fits[..], &ping, &frame].concat(), fits.len() + 6),
            (limits(None, Some(256)), [&fits[..], &ping, &frame].concat(), fits.len() + 6),
            (limits(None, Some(6)), [&fragments[..], &third].concat(), fragments.len()),
        ];
        for (limits, said, passes) in cases {
            for split in [1, 3, 10, said.len()] {
                let rules = TunnelRules { limits, ..TunnelRules::default() };
                let (mut client, mut pod, Tunnel { from_client, from_pod, control: _control }, _) =
                    tunnel_with(4096, b"", b"", rules);
                let relay = actix_rt::spawn(async move { tokio::join!(from_client, from_pod) });
                for chunk in said.chunks(split) {
                    client.write_all(chunk).await.unwrap();
                    tokio::task::yield_now().await;
                }
                let mut received = [0; 4];
                client.read_exact(&mut received).await.unwrap();
                assert_eq!((received[0], &received[2..]), (0x88, &1009u16.to_be_bytes()[..]));
                // The client finishes its frame and then answers the Close.
                let rest = match said.ends_with(&third) {
                    true => vec![],
                    false => vec![0; 257],
                };
                client.write_all(&rest).await.unwrap();
                client.write_all(&[0x88, 0x80, 0, 0, 0, 0]).await.unwrap();
                let at_pod = all(&mut pod).await;
                assert_eq!(at_pod[..passes], said[..passes]);
                assert_eq!(control_frame(&at_pod[passes..]).1[..2], 1001u16.to_be_bytes());
                pod.write_all(&[0x88, 0]).await.unwrap();
                let ends = relay.await.unwrap();
                assert!(matches!(ends, (PumpEnd::OverLimit(_), PumpEnd::Closed)), "{ends:?}");
            }
        }
    })
    .await;
}

#[actix_rt::test]
async fn bytes_of_a_dead_side_are_delivered_after_a_write_to_it_failed() {
    in_time(async {
        let early = text(b"much").repeat(50);
        let (mut client, mut pod, Tunnel { from_client, from_pod, control }, stats) =
            tunnel(64, b"", &early);
        let view = control.view();
        let relay = actix_rt::spawn(async move { tokio::join!(from_client, from_pod) });
        let last = text(b"my last words");
        pod.write_all(&last).await.unwrap();
        drop(pod);
        client.write_all(&text(b"hello?")).await.unwrap();
        while stats.from_client.messages() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(!view.is_closing(), "the client has yet to take {} bytes", early.len());
        let close = frame::close(CloseCode::SERVICE_RESTART, reason(Ending::Lost(Side::Pod)), None);
        let expected = [&early[..], &last, &close];
        let mut at_client = vec![0; expected.concat().len()];
        client.read_exact(&mut at_client).await.unwrap();
        assert_eq!(at_client, expected.concat());
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        assert!(view.is_closing(), "everything is delivered");
        drop(client);
        assert!(matches!(relay.await.unwrap(), (PumpEnd::WriteFailed(_), PumpEnd::Eof)));
    })
    .await;
}

#[actix_rt::test]
async fn a_limit_does_not_apply_after_a_close() {
    in_time(async {
        let limits = FrameLimits { frame_size: Some(10), ..FrameLimits::default() };
        let rules = TunnelRules { limits, ..TunnelRules::default() };
        let (mut client, mut pod, Tunnel { from_client, from_pod, control: _control }, stats) =
            tunnel_with(1024, b"", b"", rules);
        actix_rt::spawn(async move { tokio::join!(from_client, from_pod) });
        let close = frame::close(CloseCode::GOING_AWAY, "bye", Some([0; 4]));
        client.write_all(&[&close[..], &[0x82, 0xff], &[1; 12]].concat()).await.unwrap();
        assert_eq!(all(&mut pod).await, close);
        let answer = frame::close(CloseCode::GOING_AWAY, "bye", None);
        pod.write_all(&answer).await.unwrap();
        drop(pod);
        assert_eq!(all(&mut client).await, answer);
        assert_eq!(stats.first_ending(), Some(Ending::Closed(Side::Client)));
    })
    .await;
}

/// The filter has not checked them.
#[actix_rt::test]
async fn bytes_held_back_from_a_stalled_side_are_not_relayed() {
    in_time(async {
        let (mut client, mut pod, Tunnel { from_client, from_pod, control }, _) =
            tunnel_with(1024, b"", b"", rated(1, 1, false));
        actix_rt::spawn(async move { tokio::join!(from_client, from_pod) });
        let message = text(b"one");
        client.write_all(&message.repeat(3)).await.unwrap();
        let mut first = vec![0; message.len()];
        pod.read_exact(&mut first).await.unwrap();
        assert_eq!(first, message);
        let stalled = Ending::Stalled(Side::Client);
        control.end(stalled, CloseCodes::default());
        let received = all(&mut pod).await;
        assert_eq!(control_frame(&received), close_payload(1001, reason(stalled)));
    })
    .await;
}

fn rated(per_second: u32, burst: u32, closes: bool) -> TunnelRules {
    let rate = Some(MessageRate { per_second, burst, closes });
    TunnelRules { limits: FrameLimits { rate, ..FrameLimits::default() }, ..TunnelRules::default() }
}

#[actix_rt::test]
async fn a_sender_over_the_rate_waits_or_is_closed() {
    in_time(async {
        let message = [&[0x81, 0x81][..], &[0; 4], b"m"].concat();
        let (mut client, mut pod, Tunnel { from_client, from_pod, control }, stats) =
            tunnel_with(65_536, b"", b"", rated(100, 3, false));
        actix_rt::spawn(async move { tokio::join!(from_client, from_pod) });
        tokio::time::pause();
        let began = Instant::now();
        client.write_all(&message.repeat(10)).await.unwrap();
        let mut got = message.repeat(10);
        pod.read_exact(&mut got[..3 * message.len()]).await.unwrap();
        assert!(began.elapsed().is_zero(), "a burst");
        pod.read_exact(&mut got[3 * message.len()..]).await.unwrap();
        assert_eq!((stats.from_client.messages(), began.elapsed().as_millis() / 10), (10, 7));
        assert!(control.view().poll_count() < 50, "the pump is idle while it waits");

        let (mut client, mut pod, Tunnel { from_client, from_pod, control: _control }, _) =
            tunnel_with(65_536, b"", b"", rated(1, 3, true));
        actix_rt::spawn(async move { tokio::join!(from_client, from_pod) });
        client.write_all(&message.repeat(4)).await.unwrap();
        let mut received = [0; 4];
        client.read_exact(&mut received).await.unwrap();
        assert_eq!((received[0], &received[2..]), (0x88, &1008u16.to_be_bytes()[..]));
        pod.read_exact(&mut got[..3 * message.len()]).await.unwrap();
        let mut received = [0; 2];
        pod.read_exact(&mut received).await.unwrap();
        assert_eq!(received[0], 0x88, "a Close instead of the fourth");
    })
    .await;
}

#[actix_rt::test]
async fn a_close_that_comes_in_pieces_does_not_wait_for_the_rate() {
    in_time(async {
        let message = [&[0x81, 0x81][..], &[0; 4], b"m"].concat();
        let rules = rated(1, 3, false);
        let (mut client, mut pod, Tunnel { from_client, from_pod, control: _control }, stats) =
            tunnel_with(65_536, b"", b"", rules);
        actix_rt::spawn(async move { tokio::join!(from_client, from_pod) });
        tokio::time::pause();
        let began = Instant::now();
        client.write_all(&message.repeat(3)).await.unwrap();
        let mut got = message.repeat(3);
        pod.read_exact(&mut got).await.unwrap();
        let close = [0x88, 0x80, 0, 0, 0, 0];
        for byte in close {
            client.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut received = [0; 6];
        pod.read_exact(&mut received).await.unwrap();
        assert_eq!((received, stats.from_client.messages()), (close, 3));
        assert!(began.elapsed().is_zero());
    })
    .await;
}

#[actix_rt::test]
async fn a_sender_under_the_rate_never_waits() {
    in_time(async {
        let message = [&[0x81, 0x81][..], &[0; 4], b"m"].concat();
        let rules = rated(500, 1, true);
        let (mut client, mut pod, Tunnel { from_client, from_pod, control: _control }, stats) =
            tunnel_with(1024, b"", b"", rules);
        actix_rt::spawn(async move { tokio::join!(from_client, from_pod) });
        tokio::time::pause();
        for messages in 1..=10 {
            client.write_all(&message).await.unwrap();
            pod.read_exact(&mut vec![0; message.len()]).await.unwrap();
            assert_eq!(stats.from_client.messages(), messages);
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[actix_rt::test]
async fn a_silent_side_gets_the_reason_if_nothing_else_waits_for_it() {
    in_time(async {
        let (mut client, mut pod, Tunnel { from_client, from_pod, control }, _) =
            tunnel(64, b"", b"");
        let relay = actix_rt::spawn(async move { tokio::join!(from_client, from_pod) });
        tokio::task::yield_now().await;
        control.end(SILENT, CloseCodes::default());
        let mut received = vec![0; 2 + 2 + reason(SILENT).len()];
        client.read_exact(&mut received).await.unwrap();
        assert_eq!(control_frame(&received), close_payload(1001, reason(SILENT)));
        assert_eq!(control_frame(&all(&mut pod).await), close_payload(1001, reason(SILENT)));
        pod.write_all(&[0x88, 2, 0x03, 0xe9]).await.unwrap();
        assert!(all(&mut client).await.is_empty());
        let ends = relay.await.unwrap();
        assert!(matches!(ends, (PumpEnd::ReadFailed(_), PumpEnd::Closed)), "{ends:?}");
    })
    .await;
}

#[actix_rt::test]
async fn exactly_one_close_is_sent_whatever_comes_with_the_boundary() {
    in_time(async {
        let (message, own) = (text(b"cut by a chunk"), [0x88, 2, 0x03, 0xe9]);
        let ours = frame::close(CloseCode::SERVICE_RESTART, reason(Ending::Shutdown), None);
        let (cut, rest) = message.split_at(5);
        // What the pod has sent when we close, what it sends then, and what the client gets.
        let cases = [
            // The pod's Close may be the answer to ours, so ours goes first.
            (cut, [rest, &own].concat(), [rest, &ours].concat()),
            (cut, [rest, &text(b"more"), &own].concat(), [rest, &text(b"more"), &ours].concat()),
            // The pod's Close started before ours.
            (&own[..3], own[3..].to_vec(), own[3..].to_vec()),
        ];
        for (first, then, expected) in cases {
            let (mut client, mut pod, Tunnel { from_client, from_pod, control }, _) =
                tunnel(4096, b"", b"");
            actix_rt::spawn(async move { tokio::join!(from_client, from_pod) });
            pod.write_all(first).await.unwrap();
            let mut seen = vec![0; first.len()];
            client.read_exact(&mut seen).await.unwrap();
            control.end(Ending::Shutdown, CloseCodes::default());
            pod.write_all(&then).await.unwrap();
            drop(pod);
            assert_eq!(all(&mut client).await, expected);
        }
    })
    .await;
}

#[actix_rt::test]
async fn a_client_over_a_limit_gets_the_reason_even_if_the_pod_answers_first() {
    in_time(async {
        let limits = FrameLimits { frame_size: Some(3), ..FrameLimits::default() };
        let rules = TunnelRules { limits, ..TunnelRules::default() };
        let (mut client, mut pod, Tunnel { from_client, from_pod, control: _control }, _) =
            tunnel_with(4096, b"", b"", rules);
        actix_rt::spawn(async move { tokio::join!(from_client, from_pod) });
        let message = text(b"cut by a chunk");
        let (cut, rest) = message.split_at(5);
        pod.write_all(cut).await.unwrap();
        let mut seen = [0; 5];
        client.read_exact(&mut seen).await.unwrap();
        client.write_all(&[&[0x81, 0x84][..], &[0; 8]].concat()).await.unwrap();
        let mut received = [0; 2];
        pod.read_exact(&mut received).await.unwrap();
        pod.write_all(&[rest, &[0x88, 2, 0x03, 0xe9]].concat()).await.unwrap();
        drop(pod);
        let reason = "frame too large: 4 bytes";
        let ours = frame::close(CloseCode::MESSAGE_TOO_BIG, reason, None);
        assert_eq!(all(&mut client).await, [rest, &ours].concat());
    })
    .await;
}
