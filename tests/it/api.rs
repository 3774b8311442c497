//! The API of the admin listener.

use std::{collections::HashMap, sync::Arc};

use awc::http::Method;
use futures_util::{
    SinkExt as _, StreamExt as _,
    future::{join_all, select_all},
};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpListener};
use tokio_tungstenite::tungstenite::Message;
use wsbalancer::{
    actors::{
        metrics::Reconfigure,
        registry::{MoveAll, MovePace},
    },
    domain::balance::backend::{Backend, Transport},
    services,
};

use crate::support::{
    Balancer,
    client::{Client, connect, connect_with},
    eventually,
    pod::{Pod, answer, read_head, report, switching},
    program::Program,
    within,
};

/// Calls the API with further header fields and returns the status and the JSON.
async fn call(url: &str, method: Method, fields: &[(&str, &str)], body: &str) -> (u16, Value) {
    let mut request = awc::Client::new().request(method, url);
    for (name, value) in fields {
        request = request.insert_header((*name, *value));
    }
    let mut response = request.send_body(body.to_owned()).await.expect("an answer");
    let status = response.status().as_u16();
    (status, response.json().await.unwrap_or(Value::Null))
}

async fn get(balancer: &Balancer, path: &str) -> Value {
    let (status, json) = call(&balancer.admin_url(path), Method::GET, &[], "").await;
    assert_eq!(status, 200, "{path}: {json}");
    json
}

async fn post(balancer: &Balancer, path: &str) -> (u16, Value) {
    call(&balancer.admin_url(path), Method::POST, &[], "").await
}

/// Returns whether a message is echoed.
async fn echoes(client: &mut Client) -> bool {
    client.send(Message::text("there?")).await.is_ok()
        && within("an echo", client.next())
            .await
            .is_some_and(|echo| echo.is_ok_and(|message| message == Message::text("there?")))
}

/// Waits for the Close, answers it and returns its code and reason.
async fn close(client: &mut Client) -> Option<(u16, String)> {
    let mut close = None;
    while let Some(message) = within("the Close", client.next()).await {
        if let Ok(Message::Close(Some(frame))) = message {
            close = Some((frame.code.into(), frame.reason.to_string()));
        }
    }
    close
}

fn moved() -> Option<(u16, String)> {
    Some((1012, "moved to another pod".to_owned()))
}

/// Connects `count` clients and returns them by the address of their pod.
async fn clients(balancer: &Balancer, count: usize) -> HashMap<String, Vec<Client>> {
    let mut clients = Vec::new();
    for at in 0..count {
        clients.push(connect(balancer.address()).await);
        balancer.until_sessions(at + 1).await;
    }
    // Sessions are listed in the order in which they opened.
    let sessions = get(balancer, "/api/sessions").await;
    let mut by_pod = HashMap::<String, Vec<Client>>::new();
    for (client, session) in clients.into_iter().zip(sessions.as_array().unwrap()) {
        let address = session["address"].as_str().unwrap().to_owned();
        by_pod.entry(address).or_default().push(client);
    }
    by_pod
}

async fn all_echo(clients: &mut [Client]) -> bool {
    join_all(clients.iter_mut().map(echoes)).await.into_iter().all(|echoes| echoes)
}

/// Waits until the first of `clients` is closed, and removes it.
async fn first_moved(clients: &mut Vec<Client>) {
    let closes = clients.iter_mut().map(|client| Box::pin(close(client)));
    let (first, at, _) = select_all(closes).await;
    assert_eq!(first, moved());
    clients.remove(at);
}

/// Returns `state` and `reason` of the pod at `address`.
async fn state(balancer: &Balancer, address: &str) -> (String, Option<String>) {
    let backends = get(balancer, "/api/backends").await;
    let mut backends = backends.as_array().unwrap().iter();
    let backend = backends.find(|backend| backend["address"] == address).expect("the pod");
    let text = |key: &str| backend[key].as_str().map(ToOwned::to_owned);
    (text("state").unwrap(), text("reason"))
}

#[actix_rt::test]
async fn backends_sessions_and_the_version_are_listed() {
    let pod = Pod::reporting(report(0)).await;
    let balancer = Balancer::start([&pod]).await;
    balancer.until_polled().await;
    let mut client = connect_with(balancer.address(), &[]).await.unwrap().0;
    assert!(echoes(&mut client).await);
    let mut backends = get(&balancer, "/api/backends").await;
    let mut expected = balancer.metrics().await["services"].take();
    expected[0]["address"] = json!(pod.address.to_string());
    for list in [&mut backends, &mut expected] {
        assert!(list[0]["reportAgeMs"].take().is_u64());
    }
    assert_eq!(backends, expected);

    let mut sessions = get(&balancer, "/api/sessions").await;
    for time in ["ageMs", "idleMs"] {
        assert!(sessions[0][time].take().is_u64());
    }
    let id = sessions[0]["id"].take();
    assert!(id.as_u64() > Some(0));
    assert_eq!(
        sessions,
        json!([{
            "id": null, "client": "127.0.0.1", "backend": pod.url(),
            "address": pod.address.to_string(), "service": "default", "ageMs": null, "idleMs": null,
            "bytesUp": 12, "bytesDown": 8, "messagesUp": 1, "messagesDown": 1,
        }])
    );
    let version = json!({"name": "wsbalancer", "version": env!("CARGO_PKG_VERSION")});
    assert_eq!(get(&balancer, "/api/version").await, version);
}

#[actix_rt::test]
async fn idle_sessions_are_distinguished_from_busy_ones() {
    let pod = Pod::echo().await;
    let balancer = Balancer::with([&pod], &[("balancer.close_timeout", "100ms")]).await;
    let mut by_pod = clients(&balancer, 2).await;
    let both = by_pod.get_mut(&pod.address.to_string()).unwrap();
    let busy = tokio::sync::Mutex::new(both.remove(0));
    eventually("one session idle for longer than the other", async || {
        assert!(echoes(&mut *busy.lock().await).await);
        let sessions = get(&balancer, "/api/sessions").await;
        let [busy, idle] = [0, 1].map(|at: usize| sessions[at]["idleMs"].as_u64().unwrap());
        idle > busy + 100
    })
    .await;
}

#[actix_rt::test]
async fn draining_a_pod_moves_only_its_sessions_spread_over_the_given_time() {
    let pods = [Pod::echo().await, Pod::echo().await];
    let [drained, other] = [0, 1].map(|at: usize| pods[at].address.to_string());
    let balancer = Balancer::start(&pods).await;
    let mut by_pod = clients(&balancer, 40).await;
    let (mut go, mut stay) = (by_pod.remove(&drained).unwrap(), by_pod.remove(&other).unwrap());
    assert_eq!((go.len(), stay.len()), (20, 20));

    let (status, body) = post(&balancer, &format!("/api/backends/{drained}/drain?over=4s")).await;
    assert_eq!(
        (status, &body[0]["address"], &body[0]["state"]),
        (200, &json!(drained), &json!("draining")),
        "{body}"
    );
    assert_eq!(body.as_array().unwrap().len(), 1);
    first_moved(&mut go).await;
    let mut left = Vec::new();
    for mut client in go {
        if echoes(&mut client).await {
            left.push(client);
        }
    }
    assert!(left.len() > 10, "{} of 19 are left alone for now", left.len());
    for client in &mut left {
        assert_eq!(close(client).await, moved());
    }
    assert!(all_echo(&mut stay).await);
    balancer.until_sessions(20).await;

    let new_clients = join_all((0..5).map(|_| connect(balancer.address()))).await;
    balancer.until_sessions(25).await;
    eventually("no new session on the draining pod", async || {
        (pods[0].open(), pods[1].open()) == (0, 25)
    })
    .await;
    let reason = Some("requested by an operator".to_owned());
    assert_eq!(state(&balancer, &drained).await, ("draining".to_owned(), reason));
    let (status, body) = post(&balancer, &format!("/api/backends/{drained}/undrain")).await;
    assert_eq!((status, body[0]["state"] == "draining"), (200, false), "{body}");
    let _back = connect(balancer.address()).await;
    eventually("a session on the undrained pod", async || pods[0].open() == 1).await;
    drop(new_clients);
}

#[actix_rt::test]
async fn undrain_stops_moving_sessions_and_a_drain_without_a_time_moves_none() {
    let pods = [Pod::echo().await, Pod::echo().await, Pod::echo().await];
    let [first, second, third] = [0, 1, 2].map(|at: usize| pods[at].address.to_string());
    let balancer = Balancer::start(&pods).await;
    let mut by_pod = clients(&balancer, 60).await;
    let mut of = |pod: &String| by_pod.remove(pod).unwrap();
    let (mut kept, mut moved_away, mut undisturbed) = (of(&first), of(&second), of(&third));
    post(&balancer, &format!("/api/backends/{third}/drain")).await;
    post(&balancer, &format!("/api/backends/{first}/drain?over=3s")).await;
    first_moved(&mut kept).await;
    post(&balancer, &format!("/api/backends/{first}/undrain")).await;
    // Some may have been closed before the call arrived.
    let mut still = Vec::new();
    for mut client in kept {
        if echoes(&mut client).await {
            still.push(client);
        }
    }
    assert!(still.len() > 5, "{}", still.len());
    // As long as the drain would have taken.
    post(&balancer, &format!("/api/backends/{second}/drain?over=3s")).await;
    let codes = join_all(moved_away.iter_mut().map(close)).await;
    assert!(codes.iter().all(|code| *code == moved()), "{codes:?}");
    assert!(all_echo(&mut still).await, "sessions stay after undrain");
    assert!(all_echo(&mut undisturbed).await, "without a time, a drain affects new sessions only");
}

#[actix_rt::test]
async fn a_session_that_opens_on_a_draining_pod_is_moved_too() {
    let pod = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = pod.local_addr().unwrap();
    let url = format!("http://{address}");
    let settings = [("services", &*url), ("balancer.metric_path", "none")];
    let balancer = Balancer::with([], &settings).await;
    let client = tokio::spawn(connect_with(balancer.address(), &[]));
    let (mut at_pod, _) = within("a connection at the pod", pod.accept()).await.unwrap();
    let request = within("a request", read_head(&mut at_pod)).await.unwrap();
    let drained = post(&balancer, &format!("/api/backends/{address}/drain?over=100ms")).await;
    assert_eq!((drained.0, &drained.1[0]["connecting"]), (200, &json!(1)), "{}", drained.1);
    // As if the pod were ejected in the meantime.
    let (service, address) = ("default".to_owned(), address.to_string());
    let from = Arc::new(Backend { service, url, address, transport: Transport::Tcp });
    balancer.control.registry.do_send(MoveAll { from, pace: MovePace::AtOnce });
    at_pod.write_all(switching(&request, "").as_bytes()).await.unwrap();
    let (mut client, _) = within("the 101", client).await.unwrap().expect("a tunnel");
    let first = within("the Close", client.next()).await.unwrap().unwrap();
    assert!(matches!(&first, Message::Close(Some(close)) if u16::from(close.code) == 1012));
}

#[actix_rt::test]
async fn sessions_of_a_pod_that_reports_draining_or_leaves_are_moved_over_pod_drain_time() {
    let pods = [Pod::echo().await, Pod::echo().await, Pod::echo().await];
    let settings = [("balancer.pod_drain_time", "500ms"), ("balancer.poll_interval", "100ms")];
    let balancer = Balancer::with(&pods, &settings).await;
    balancer.until_polled().await;
    let mut by_pod = clients(&balancer, 15).await;
    let mut of = |at: usize| by_pod.remove(&pods[at].address.to_string()).unwrap();
    let (mut says_so, mut leaves, mut stays) = (of(0), of(1), of(2));
    let draining = "{\"agentsConnections\": 5, \"draining\": true}";
    pods[0].set_metric(answer("200 OK", draining));
    for client in &mut says_so {
        assert_eq!(close(client).await, moved());
    }
    assert!(all_echo(&mut leaves).await);

    let without = Balancer::config([&pods[0], &pods[2]], &settings);
    let changed = Reconfigure(services::rules(&mut balancer.control.ids.clone(), &without));
    balancer.control.metrics.send(changed).await.unwrap();
    for client in &mut leaves {
        assert_eq!(close(client).await, moved());
    }
    assert!(all_echo(&mut stays).await);
    balancer.until_sessions(stays.len()).await;
}

#[actix_rt::test]
async fn sessions_of_an_ejected_pod_stay_or_are_closed_as_configured() {
    let pod = Pod::echo().await;
    let polls = ("balancer.poll_interval", "100ms");
    let leaving = Balancer::with([&pod], &[polls]).await;
    let closing = Balancer::with([&pod], &[polls, ("balancer.on_ejected", "close")]).await;
    let mut stays = connect(leaving.address()).await;
    let mut goes = connect(closing.address()).await;
    let address = pod.address.to_string();
    // Its connections stay open, but it accepts no new ones.
    drop(pod);
    assert_eq!(close(&mut goes).await, moved());
    eventually("the other balancer ejects the pod too", async || {
        state(&leaving, &address).await.0 == "ejected"
    })
    .await;
    assert!(echoes(&mut stays).await);
}

#[actix_rt::test]
async fn a_draining_service_accepts_no_session() {
    let pod = Pod::echo().await;
    let balancer = Balancer::start([&pod]).await;
    let mut stays = connect(balancer.address()).await;
    let (status, body) = post(&balancer, "/api/services/default/drain").await;
    assert_eq!((status, &body[0]["state"]), (200, &json!("draining")), "{body}");
    let refused = connect_with(balancer.address(), &[]).await.unwrap_err().to_string();
    assert!(refused.contains("503"), "{refused}");
    assert!(echoes(&mut stays).await);
    assert_eq!(post(&balancer, "/api/services/default/undrain").await.0, 200);
    connect(balancer.address()).await;
}

#[actix_rt::test]
async fn deleting_a_session_closes_only_that_session() {
    let pod = Pod::echo().await;
    let balancer = Balancer::start([&pod]).await;
    let (mut goes, mut stays) = {
        let mut of_pod = clients(&balancer, 2).await.remove(&pod.address.to_string()).unwrap();
        (of_pod.remove(0), of_pod.remove(0))
    };
    let id = get(&balancer, "/api/sessions").await[0]["id"].as_u64().unwrap();
    let url = balancer.admin_url(&format!("/api/sessions/{id}"));
    let (status, body) = call(&url, Method::DELETE, &[], "").await;
    assert_eq!((status, body["id"].as_u64()), (200, Some(id)), "{body}");
    assert_eq!(close(&mut goes).await, Some((1012, "closed by an operator".to_owned())));
    assert!(echoes(&mut stays).await);
    balancer.until_sessions(1).await;
    assert_eq!(call(&url, Method::DELETE, &[], "").await.0, 404);
}

#[actix_rt::test]
async fn unknown_targets_and_impossible_requests_are_answered_with_a_sentence() {
    let pod = Pod::echo().await;
    let balancer = Balancer::start([&pod]).await;
    let of_pod = format!("/api/backends/{}", pod.address);
    for (method, path, status, named) in [
        (Method::POST, "/api/backends/missing:80/drain", 404, "\"missing:80\""),
        (Method::POST, "/api/backends/%2Frun%2Fpod.sock/undrain", 404, "\"/run/pod.sock\""),
        (Method::POST, "/api/services/chat/drain", 404, "\"chat\""),
        (Method::DELETE, "/api/sessions/0", 404, "id 0"),
        (Method::DELETE, "/api/sessions/x", 404, "id x"),
        (Method::GET, "/api/nothing", 404, "no such route: GET /api/nothing"),
        (Method::PUT, "/api/log-level", 400, "expected one of error, warn, info, debug, trace"),
        (Method::POST, &format!("{of_pod}/drain?over=20"), 400, "over = \"20\""),
        (Method::POST, &format!("{of_pod}/drain?over=25h"), 400, "from 0s to 24h"),
        (
            Method::POST,
            &format!("{of_pod}/drain?ovr=1m"),
            400,
            "unknown query parameter \"ovr\": expected over",
        ),
        (Method::POST, &format!("{of_pod}/drain?over=1m&x"), 400, "unknown query parameter \"x\""),
        (
            Method::POST,
            "/api/services/default/undrain?over=1m",
            400,
            "unknown query parameter \"over\": undrain has no parameters",
        ),
        (Method::POST, "/api/reload", 501, "reads its settings only at its start"),
    ] {
        let (actual, json) = call(&balancer.admin_url(path), method, &[], "loud").await;
        let sentence = json["error"].as_str().unwrap_or_default();
        assert_eq!(actual, status, "{path}: {json}");
        assert!(sentence.contains(named), "{path}: {json}");
    }
    assert_ne!(state(&balancer, &pod.address.to_string()).await.0, "draining");
}

#[actix_rt::test]
async fn calls_that_change_something_need_the_token() {
    let pod = Pod::echo().await;
    let balancer = Balancer::with([&pod], &[("admin.token", "s3cret")]).await;
    let url = balancer.admin_url("/api/services/default/drain");
    let address = pod.address.to_string();
    for fields in [&[][..], &[("Authorization", "Bearer s3cre")]] {
        let (status, json) = call(&url, Method::POST, fields, "").await;
        assert_eq!(status, 401, "{json}");
        assert!(json["error"].as_str().unwrap().contains("Authorization: Bearer"), "{json}");
    }
    assert_ne!(state(&balancer, &address).await.0, "draining", "reading needs no token");
    let right = [("Authorization", "Bearer s3cret")];
    assert_eq!(call(&url, Method::POST, &right, "").await.0, 200);
    assert_eq!(state(&balancer, &address).await.0, "draining");
}

#[actix_rt::test]
async fn requests_from_web_pages_cannot_change_anything() {
    let pod = Pod::echo().await;
    let balancer = Balancer::start([&pod]).await;
    let url = balancer.admin_url("/api/services/default/drain");
    let page = [("Origin", "https://elsewhere.example")];
    assert_eq!(call(&url, Method::POST, &page, "").await.0, 403);
    assert_ne!(state(&balancer, &pod.address.to_string()).await.0, "draining");
}

#[actix_rt::test]
async fn requests_through_a_local_proxy_need_the_token_to_change_anything() {
    let pod = Pod::echo().await;
    let balancer = Balancer::start([&pod]).await;
    let url = balancer.admin_url("/api/services/default/drain");
    for field in
        [("x-forwarded-for", "203.0.113.9"), ("Forwarded", "for=203.0.113.9"), ("Via", "1.1 proxy")]
    {
        let (status, json) = call(&url, Method::POST, &[field], "").await;
        assert_eq!(status, 403, "{field:?}: {json}");
        assert!(json["error"].as_str().unwrap().contains("set admin.token"), "{json}");
    }
    assert_ne!(state(&balancer, &pod.address.to_string()).await.0, "draining");
    let with_token = Balancer::with([&pod], &[("admin.token", "s3cret")]).await;
    let url = with_token.admin_url("/api/services/default/drain");
    let fields = [("X-Forwarded-For", "203.0.113.9"), ("Authorization", "Bearer s3cret")];
    assert_eq!(call(&url, Method::POST, &fields, "").await.0, 200);
}

/// Returns the status, `Allow` and the error sentence of the response.
async fn refusal(url: &str, method: Method, body: Vec<u8>) -> (u16, Option<String>, String) {
    let request = awc::Client::new().request(method, url);
    let mut answer = request.send_body(body).await.expect("an answer");
    let allow = answer.headers().get("allow").map(|value| value.to_str().unwrap().to_owned());
    let json: Value = answer.json().await.expect("JSON");
    let sentence = json["error"].as_str().expect("a sentence").to_owned();
    (answer.status().as_u16(), allow, sentence)
}

#[actix_rt::test]
async fn a_wrong_method_is_answered_with_405_and_the_allowed_methods() {
    let balancer = Balancer::with([], &[("services", "http://127.0.0.1:1")]).await;
    for (method, path, allow) in [
        (Method::GET, "/api/reload", "POST"),
        (Method::POST, "/api/sessions", "GET, HEAD"),
        (Method::GET, "/api/sessions/1", "DELETE"),
        (Method::GET, "/api/backends/a:1/drain", "POST"),
        (Method::POST, "/api/log-level", "PUT"),
        (Method::DELETE, "/readyz", "GET, HEAD"),
        (Method::POST, "/balancer-metrics", "GET, HEAD"),
    ] {
        let url = balancer.admin_url(path);
        let (status, allowed, sentence) = refusal(&url, method.clone(), Vec::new()).await;
        assert_eq!((status, allowed.as_deref()), (405, Some(allow)), "{method} {path}");
        assert_eq!(sentence, format!("method {method} not allowed for {path}: use {allow}"));
    }
}

#[actix_rt::test]
async fn an_unreadable_log_level_is_answered_in_json() {
    let balancer = Balancer::with([], &[("services", "http://127.0.0.1:1")]).await;
    let url = balancer.admin_url("/api/log-level");
    for (body, status) in [(vec![0xff, 0xfe], 400), (vec![b'x'; 300_000], 413)] {
        let (actual, _, sentence) = refusal(&url, Method::PUT, body).await;
        assert_eq!(actual, status, "{sentence}");
        assert!(sentence.contains("expected one of error, warn, info, debug"), "{sentence}");
    }
}

#[actix_rt::test]
async fn the_traffic_listener_does_not_serve_the_api() {
    let pod = Pod::named("the pod").await;
    let balancer = Balancer::start([&pod]).await;
    let client = awc::Client::new();
    for (method, path) in [
        (Method::GET, "/api/sessions"),
        (Method::POST, "/api/services/default/drain"),
        (Method::PUT, "/api/log-level"),
    ] {
        let url = format!("http://{}{path}", balancer.address());
        let mut response = client.request(method, url).send().await.unwrap();
        assert_eq!(response.body().await.unwrap(), "the pod", "{path}");
    }
    assert_ne!(state(&balancer, &pod.address.to_string()).await.0, "draining");
}

#[actix_rt::test]
async fn the_log_level_can_be_changed_at_run_time() {
    let pod = Pod::echo().await;
    let mut balancer = Program::run(&pod.url(), &[]).await;
    let url = format!("http://{}/api/log-level", balancer.admin);
    let sessions = format!("http://{}/api/sessions", balancer.admin);
    let session_ends = async || {
        let mut client = connect(balancer.traffic).await;
        client.close(None).await.unwrap();
        while client.next().await.is_some() {}
        drop(client);
        // A session logs its end before it leaves the list.
        eventually("the end of the session", async || {
            call(&sessions, Method::GET, &[], "").await == (200, json!([]))
        })
        .await;
    };
    session_ends().await;
    assert_eq!(call(&url, Method::PUT, &[], "debug\n").await, (200, json!({"level": "debug"})));
    session_ends().await;
    let line = balancer.logs("session ").await;
    assert!(line.contains("session 2 of "), "at info, the end of session 1 is not logged: {line}");
    assert_eq!(call(&url, Method::PUT, &[], "warn").await.0, 200);
    balancer.terminate();
    let (_, log) = balancer.finish().await;
    assert!(!log.contains("stopped:"), "{log}");
}
