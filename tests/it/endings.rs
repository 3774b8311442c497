//! The counter of ended sessions by reason.

use std::time::Duration;

use awc::http::Method;
use futures_util::StreamExt as _;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use wsbalancer::actors::registry::DrainAll;

use crate::support::{
    Balancer,
    client::{connect, raw},
    frames::{BINARY, CLOSE, FIN, masked, unmasked},
    pod::{Pod, Script, Session},
    within,
};

/// A balancer with one session between sockets that the test controls.
struct Stage {
    balancer: Balancer,
    client: TcpStream,
    pod: Session,
}

impl Stage {
    async fn set(settings: &[(&str, &str)]) -> Self {
        let scripted = Pod::scripted(Script::default()).await;
        let balancer = Balancer::with([&scripted], settings).await;
        let (client, _) = raw(balancer.address(), "", b"").await;
        let pod = scripted.accept().await;
        balancer.until_sessions(1).await;
        Self { balancer, client, pod }
    }

    /// Waits for the end of the session and checks that only this reason is counted.
    async fn ends(&self, reason: &str) {
        self.balancer.until_sessions(0).await;
        assert_eq!(endings(&self.balancer).await, [(reason.to_owned(), 1)]);
    }
}

/// Returns the counters that are not zero.
async fn endings(balancer: &Balancer) -> Vec<(String, u64)> {
    let url = balancer.admin_url("/telemetry");
    let mut answer = awc::Client::new().get(url).send().await.unwrap();
    let text = String::from_utf8(answer.body().await.unwrap().to_vec()).unwrap();
    let counts = text.lines().filter_map(|line| {
        let (reason, count) =
            line.strip_prefix("wsbalancer_sessions_ended_total{reason=\"")?.split_once("\"} ")?;
        Some((reason.to_owned(), count.parse().unwrap()))
    });
    counts.filter(|(_, count)| *count > 0).collect()
}

#[actix_rt::test]
async fn closes_and_disconnects_are_counted_by_side() {
    for (reason, client_closes) in [("client", true), ("pod", false)] {
        let pod = Pod::scripted(Script::default()).await;
        let balancer = Balancer::start([&pod]).await;
        let mut client = connect(balancer.address()).await;
        let mut at_pod = pod.accept().await.into_websocket().await;
        balancer.until_sessions(1).await;
        let (first, second) =
            if client_closes { (&mut client, &mut at_pod) } else { (&mut at_pod, &mut client) };
        first.close(None).await.unwrap();
        within("the Close", second.next()).await.unwrap().unwrap();
        drop((client, at_pod));
        balancer.until_sessions(0).await;
        assert_eq!(endings(&balancer).await, [(reason.to_owned(), 1)]);
    }
    for (reason, client_goes) in [("client_lost", true), ("pod_lost", false)] {
        let mut stage = Stage::set(&[]).await;
        let stream = if client_goes { &mut stage.client } else { &mut stage.pod.stream };
        stream.shutdown().await.unwrap();
        let other = if client_goes { &mut stage.pod.stream } else { &mut stage.client };
        within("the Close at the other side", other.read_u8()).await.unwrap();
        other.shutdown().await.unwrap();
        stage.ends(reason).await;
    }
}

/// The peer does not answer a Close, or stays silent after a half-close.
#[actix_rt::test]
async fn the_first_cause_is_counted_and_not_the_cut_that_follows() {
    let settings = [("balancer.close_timeout", "50ms"), ("balancer.half_closed_timeout", "50ms")];
    let mut stage = Stage::set(&settings).await;
    stage.client.write_all(&masked(FIN | CLOSE, &1000u16.to_be_bytes())).await.unwrap();
    stage.ends("client").await;
    let mut stage = Stage::set(&settings).await;
    stage.pod.stream.shutdown().await.unwrap();
    stage.ends("pod_lost").await;
}

/// A session over a limit is counted as such whether its client answers the Close or not.
#[actix_rt::test]
async fn exceeded_limits_are_counted() {
    for answers in [true, false] {
        let settings = [("balancer.max_frame_size", "200"), ("balancer.close_timeout", "100ms")];
        let mut stage = Stage::set(&settings).await;
        stage.client.write_all(&masked(FIN | BINARY, &[0; 201])).await.unwrap();
        if answers {
            stage.client.shutdown().await.unwrap();
        }
        stage.ends("limit").await;
    }
}

#[actix_rt::test]
async fn time_outs_are_counted() {
    let soon = ("balancer.close_timeout", "50ms");
    for (reason, settings) in [
        ("idle", [("balancer.idle_timeout", "100ms"), soon]),
        ("age", [("balancer.max_session_age", "100ms"), soon]),
        (
            "client_silent",
            [("balancer.client_ping_interval", "60ms"), ("balancer.ping_timeout", "60ms")],
        ),
        ("pod_silent", [("balancer.pod_ping_interval", "60ms"), ("balancer.ping_timeout", "60ms")]),
    ] {
        let mut stage = Stage::set(&settings).await;
        let (mut client, mut pod) = (Vec::new(), Vec::new());
        let ends = [stage.client.read_to_end(&mut client), stage.pod.stream.read_to_end(&mut pod)];
        within("both ends", futures_util::future::select_all(ends.map(Box::pin))).await.0.unwrap();
        drop((stage.client.shutdown().await, stage.pod.stream.shutdown().await));
        stage.ends(reason).await;
    }
}

#[actix_rt::test]
async fn write_time_outs_are_counted() {
    let settings = [("balancer.write_timeout", "200ms"), ("balancer.close_timeout", "50ms")];
    for (reason, client_floods) in [("pod_stalled", true), ("client_stalled", false)] {
        let mut stage = Stage::set(&settings).await;
        let (stream, message) = match client_floods {
            true => (&mut stage.client, masked(FIN | BINARY, &[0; 1 << 16])),
            false => (&mut stage.pod.stream, unmasked(FIN | BINARY, &[0; 1 << 16])),
        };
        while within("the end", stream.write_all(&message)).await.is_ok() {}
        stage.ends(reason).await;
    }
}

/// The balancer does not read from a client over its rate, so that only a write reveals the disconnect.
/// The bytes that the client has sent would take a minute.
#[actix_rt::test]
async fn a_lost_client_that_only_a_write_reveals_is_counted() {
    let settings = [("balancer.messages_per_second", "1"), ("balancer.close_timeout", "50ms")];
    let Stage { balancer, mut client, mut pod } = Stage::set(&settings).await;
    let message = masked(FIN | BINARY, b"one");
    client.write_all(&message.repeat(60)).await.unwrap();
    within("the first message", pod.stream.read_exact(&mut vec![0; message.len()])).await.unwrap();
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    pod.stream.write_all(&unmasked(FIN | BINARY, b"still there?")).await.unwrap();
    balancer.until_sessions(0).await;
    assert_eq!(endings(&balancer).await, [("client_lost".to_owned(), 1)]);
}

#[actix_rt::test]
async fn closes_by_the_balancer_are_counted() {
    let soon = [("balancer.close_timeout", "50ms")];
    let stage = Stage::set(&soon).await;
    stage.balancer.control.registry.do_send(DrainAll { over: Duration::ZERO });
    stage.ends("shutdown").await;

    for (reason, method, path) in [
        ("moved", Method::POST, "/api/services/default/drain?over=1ms"),
        ("operator", Method::DELETE, "/api/sessions/"),
    ] {
        let stage = Stage::set(&soon).await;
        let url = stage.balancer.admin_url("/api/sessions");
        let mut listed = awc::Client::new().get(url).send().await.unwrap();
        let sessions: serde_json::Value = listed.json().await.unwrap();
        let id = if path.ends_with('/') { sessions[0]["id"].to_string() } else { String::new() };
        let url = stage.balancer.admin_url(&format!("{path}{id}"));
        let answer = awc::Client::new().request(method, url).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        stage.ends(reason).await;
    }
}
