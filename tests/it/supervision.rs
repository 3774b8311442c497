//! Control actors that panic, with `--features fault-hooks`.

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    client::{Client, connect},
    eventually,
    pod::Pod,
    program::Program,
};

/// Makes the actor called `name` panic.
async fn break_actor(balancer: &Program, name: &str) {
    let url = format!("http://{}/api/fault/{name}", balancer.admin);
    assert_eq!(awc::Client::new().post(url).send().await.unwrap().status(), 202);
}

/// Returns `/balancer-metrics`, unless the panic lost this request.
async fn metrics(balancer: &Program) -> Option<Value> {
    let url = format!("http://{}/balancer-metrics", balancer.admin);
    awc::Client::new().get(url).send().await.ok()?.json().await.ok()
}

async fn echoes(client: &mut Client) {
    client.send(Message::text("still there?")).await.unwrap();
    assert_eq!(client.next().await.unwrap().unwrap(), Message::text("still there?"));
}

#[actix_rt::test]
async fn sessions_and_counts_survive_panics_and_new_clients_are_served() {
    let pod = Pod::echo().await;
    let balancer = Program::run(&pod.url(), &[]).await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(connect(balancer.traffic).await);
    }
    for actor in ["metrics", "registry", "metrics", "registry"] {
        break_actor(&balancer, actor).await;
        clients.push(connect(balancer.traffic).await);
        eventually("counts as before", async || {
            metrics(&balancer).await.is_some_and(|metrics| {
                metrics["services"][0]["own"] == clients.len()
                    && metrics["ownSessions"] == clients.len()
            })
        })
        .await;
    }
    for client in &mut clients {
        echoes(client).await;
    }
    drop(clients);
    balancer.terminate();
    let (status, log) = balancer.finish().await;
    assert_eq!(status.code(), Some(0), "{log}");
    let expected = "MetricsActor panicked, one message is lost and the actor continues: panic requested by a test";
    assert_eq!(log.matches(expected).count(), 2, "{log}");
}

#[actix_rt::test]
async fn a_client_is_served_although_its_pick_was_lost() {
    let pod = Pod::echo().await;
    let balancer = Program::run(&pod.url(), &[]).await;
    for _ in 0..2 {
        break_actor(&balancer, "pick").await;
        echoes(&mut connect(balancer.traffic).await).await;
    }
    balancer.terminate();
    let (_, log) = balancer.finish().await;
    assert_eq!(log.matches("MetricsActor panicked, one message is lost").count(), 2, "{log}");
}

#[actix_rt::test]
async fn the_third_panic_within_a_minute_ends_the_process() {
    for (actor, name) in [("metrics", "MetricsActor"), ("registry", "RegistryActor")] {
        let pod = Pod::echo().await;
        let balancer = Program::run(&pod.url(), &[]).await;
        for _ in 0..3 {
            break_actor(&balancer, actor).await;
        }
        let (status, log) = balancer.finish().await;
        assert_eq!(status.code(), Some(1), "{log}");
        let reason =
            format!("{name} panicked 3 times within 1m, most recently: panic requested by a test");
        assert!(log.contains(&reason), "{log}");
    }
}
