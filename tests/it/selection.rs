//! Selection of a pod for a new session.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::{Message, protocol::CloseFrame};
use wsbalancer::{
    actors::registry::MoveSessions,
    domain::balance::{
        backend::{Backend, Transport},
        rebalance::MovePlan,
    },
};

use crate::support::{
    Balancer,
    client::{connect, connect_with},
    eventually,
    pod::{Pod, Script, answer, report},
    within,
};

/// Connects `count` clients and returns them.
async fn open(balancer: &Balancer, count: usize) -> Vec<crate::support::client::Client> {
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        clients.push(connect(balancer.address()).await);
    }
    clients
}

fn spread<const N: usize>(pods: &[Pod; N]) -> [usize; N] {
    pods.each_ref().map(Pod::open)
}

#[actix_rt::test]
async fn the_pod_with_the_lowest_report_gets_new_sessions_until_it_is_level() {
    let pods = [
        Pod::reporting(report(10)).await,
        Pod::reporting(report(4)).await,
        Pod::reporting(report(7)).await,
    ];
    let balancer = Balancer::start(&pods).await;
    balancer.until_polled().await;
    let _first = open(&balancer, 3).await;
    assert_eq!(spread(&pods), [0, 3, 0]);
    let _then = open(&balancer, 6).await;
    assert_eq!(spread(&pods), [0, 6, 3], "10 + 0, 4 + 6, 7 + 3");
    let _more = open(&balancer, 30).await;
    assert_eq!(spread(&pods), [10, 16, 13]);
}

#[actix_rt::test]
async fn own_counts_are_used_without_reports() {
    let pods = [
        Pod::reporting(answer("404 Not Found", "")).await,
        Pod::reporting(answer("404 Not Found", "")).await,
        Pod::reporting(answer("404 Not Found", "")).await,
    ];
    let balancer = Balancer::start(&pods).await;
    let mut clients = open(&balancer, 30).await;
    assert_eq!(spread(&pods), [10, 10, 10]);
    // Five sessions end anywhere; the next five fill exactly these gaps.
    clients.drain(..5);
    balancer.until_sessions(25).await;
    let _five = open(&balancer, 5).await;
    eventually("level again", async || spread(&pods) == [10, 10, 10]).await;
}

#[actix_rt::test]
async fn a_bad_report_does_not_attract_sessions() {
    for bad in [
        answer("503 Service Unavailable", "{\"agentsConnections\": 0}"),
        answer("200 OK", "{\"error\": \"no such route\"}"),
        answer("200 OK", "{\"agentsConnections\": -5}"),
        answer("200 OK", "<html></html>"),
        answer(
            "200 OK",
            &format!("{{\"agentsConnections\": 0, \"x\": \"{}\"}}", "y".repeat(70_000)),
        ),
    ] {
        let pods = [Pod::reporting(bad.clone()).await, Pod::reporting(report(0)).await];
        let balancer = Balancer::start(&pods).await;
        eventually("both polled", async || {
            let metrics = balancer.metrics().await;
            let pod = metrics["podMetrics"][pods[0].url()][0].clone();
            !pod["error"].is_null() && metrics["services"][1]["state"] == "up"
        })
        .await;
        let _clients = open(&balancer, 20).await;
        assert_eq!(spread(&pods), [10, 10], "{}", String::from_utf8_lossy(&bad[..60]));
        let metrics = balancer.metrics().await;
        assert_eq!(metrics["services"][0]["state"], "unknown");
        assert!(metrics["services"][0].get("reported").is_none(), "{metrics}");
    }
}

#[actix_rt::test]
async fn pods_whose_reports_stay_at_zero_are_balanced_at_any_poll_interval() {
    let pods = [Pod::echo().await, Pod::echo().await, Pod::echo().await, Pod::echo().await];
    let balancer = Balancer::with(&pods, &[("balancer.poll_interval", "100ms")]).await;
    balancer.until_polled().await;
    let _clients = open(&balancer, 200).await;
    assert_eq!(spread(&pods), [50; 4]);
}

#[actix_rt::test]
async fn a_pod_whose_reports_stay_at_fifty_gets_no_session_until_the_others_reach_it() {
    let pods =
        [Pod::reporting(report(50)).await, Pod::echo().await, Pod::echo().await, Pod::echo().await];
    let balancer = Balancer::with(&pods, &[("balancer.poll_interval", "100ms")]).await;
    balancer.until_polled().await;
    let _first = open(&balancer, 120).await;
    assert_eq!(spread(&pods), [0, 40, 40, 40]);
    let _next = open(&balancer, 160).await;
    let [frozen, others @ ..] = spread(&pods);
    // 32 if only its report counted, 70 if only our own counts did.
    assert!((32..=70).contains(&frozen), "{frozen} {others:?}");
    assert!(
        others.iter().all(|count| *count >= frozen),
        "never more sessions than the others: {others:?}"
    );
}

#[actix_rt::test]
async fn a_report_includes_clients_of_other_balancers() {
    let pods = [Pod::reporting(report(0)).await, Pod::reporting(report(0)).await];
    let balancer = Balancer::with(&pods, &[("balancer.poll_interval", "100ms")]).await;
    balancer.until_polled().await;
    // Six clients connect to the first pod directly.
    pods[0].set_metric(report(6));
    eventually("the new report", async || balancer.metrics().await["services"][0]["reported"] == 6)
        .await;
    let _clients = open(&balancer, 4).await;
    assert_eq!(spread(&pods), [0, 4]);
}

#[actix_rt::test]
async fn rebalancing_moves_the_youngest_idle_sessions_and_each_client_once() {
    let pod = Pod::echo().await;
    let balancer = Balancer::with([&pod], &[("server.trusted_proxies", "127.0.0.1")]).await;
    let mut clients = Vec::new();
    for client in 0..6 {
        let address = format!("10.0.0.{client}");
        let fields = [("x-forwarded-for", address.as_str())];
        clients.push(connect_with(balancer.address(), &fields).await.unwrap().0);
    }
    balancer.until_sessions(6).await;
    let mut busy = clients.pop().unwrap();
    busy.send(Message::text("not idle")).await.unwrap();
    within("an echo", busy.next()).await.unwrap().unwrap();
    let chat = actix_rt::spawn(async move {
        loop {
            busy.send(Message::text("still here")).await.unwrap();
            busy.next().await.unwrap().unwrap();
        }
    });
    let from = Backend {
        service: "default".to_owned(),
        url: pod.url(),
        address: pod.address.to_string(),
        transport: Transport::Tcp,
    };
    let moves = || MoveSessions(MovePlan { from: from.clone().into(), count: 2 });
    balancer.control.registry.send(moves()).await.unwrap();
    for moved in [4, 3] {
        let message = within("a Close", clients[moved].next()).await.unwrap().unwrap();
        let Message::Close(Some(frame)) = message else { panic!("{message:?}") };
        assert_eq!(u16::from(frame.code), 1012);
    }
    drop(clients.drain(3..));
    balancer.until_sessions(4).await;
    // They reconnect immediately, are the youngest, and are not moved again for an hour.
    let mut back = Vec::new();
    for client in [3, 4] {
        let address = format!("10.0.0.{client}");
        let fields = [("x-forwarded-for", address.as_str())];
        back.push(connect_with(balancer.address(), &fields).await.unwrap().0);
    }
    balancer.until_sessions(6).await;
    balancer.control.registry.send(moves()).await.unwrap();
    for moved in [2, 1] {
        let message = within("a Close", clients[moved].next()).await.unwrap().unwrap();
        assert!(message.is_close(), "{message:?}");
    }
    for client in &mut back {
        client.send(Message::text("undisturbed")).await.unwrap();
        let echo = within("an echo", client.next()).await.unwrap().unwrap();
        assert_eq!(echo, Message::text("undisturbed"));
    }
    chat.abort();
}

#[actix_rt::test]
async fn a_pod_that_drops_its_sessions_is_ejected() {
    let script = Script { metric: report(0), ..Script::default() };
    let (bad, good) = (Pod::scripted(script).await, Pod::reporting(report(100)).await);
    let balancer = Balancer::start([&bad, &good]).await;
    balancer.until_polled().await;
    for drops in 1..=3 {
        let mut client = connect(balancer.address()).await;
        drop(bad.accept().await);
        let _ = within("the end", client.next()).await;
        drop(client);
        balancer.until_sessions(0).await;
        assert_eq!(bad.upgrades(), drops);
    }
    eventually("the ejection", async || {
        balancer.metrics().await["services"][0]["state"] == "ejected"
    })
    .await;
    let clients = [connect(balancer.address()).await, connect(balancer.address()).await];
    balancer.until_sessions(2).await;
    assert_eq!((bad.upgrades(), good.open()), (3, 2));
    let metrics = balancer.metrics().await;
    assert!(metrics["services"][0]["reason"].as_str().unwrap().contains("3 sessions dropped"));
    assert!(metrics["services"][0]["ejectedForMs"].as_u64().is_some());
    drop(clients);
}

#[actix_rt::test]
async fn application_closes_do_not_eject_a_pod() {
    let pod = Pod::scripted(Script::default()).await;
    let balancer = Balancer::start([&pod]).await;
    for _ in 0..6 {
        let mut client = connect(balancer.address()).await;
        let mut session = pod.accept().await.into_websocket().await;
        let close = CloseFrame { code: 4401.into(), reason: "log in again".into() };
        session.close(Some(close)).await.unwrap();
        assert!(within("a Close", client.next()).await.unwrap().unwrap().is_close());
        drop((client, session));
        balancer.until_sessions(0).await;
    }
    assert_eq!(balancer.metrics().await["services"][0]["state"], "up");
}
