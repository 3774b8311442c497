//! Affinity: cookies and hashes that return a client to its pod.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{
    Balancer,
    client::raw,
    pod::{Pod, header},
    within,
};

const COOKIE: [(&str, &str); 2] =
    [("balancer.affinity", "cookie"), ("balancer.cookie_key", "a key for all of these tests")];

/// Returns the head and the body of the response to a plain request.
async fn get(balancer: &Balancer, fields: &str) -> (String, String) {
    let mut stream = TcpStream::connect(balancer.address()).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("the answer", stream.read_to_string(&mut answer)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_owned(), body.to_owned())
}

/// Returns the name and value of a `Set-Cookie` field, as the client sends them back.
fn cookie(head: &str) -> String {
    let set = header(head, "set-cookie").unwrap_or_else(|| panic!("no cookie in {head}"));
    format!("Cookie: other=1; {}\r\n", set.split(';').next().unwrap())
}

async fn pods() -> [Pod; 3] {
    [Pod::named("one").await, Pod::named("two").await, Pod::named("three").await]
}

async fn results(balancer: &Balancer) -> [u64; 3] {
    let mut counts = [0; 3];
    for (count, result) in counts.iter_mut().zip(["followed", "replaced", "invalid"]) {
        let name = format!("wsbalancer_affinity_cookies_total{{result=\"{result}\"}}");
        *count = balancer.counter(&name).await;
    }
    counts
}

#[actix_rt::test]
async fn a_cookie_returns_the_client_to_its_pod_and_is_set_on_handshakes_and_plain_responses() {
    let pods = pods().await;
    let balancer = Balancer::with(&pods, &COOKIE).await;
    let (head, first) = get(&balancer, "").await;
    let attributes = header(&head, "set-cookie").unwrap().split_once("; ").unwrap().1;
    assert_eq!(attributes, "Path=/; SameSite=Lax; HttpOnly");
    let brought = cookie(&head);
    // The pod now has the most sessions and is still preferred.
    let mut held = Vec::new();
    for _ in 0..5 {
        let (head, name) = get(&balancer, &brought).await;
        assert_eq!(name, first);
        assert_eq!(header(&head, "set-cookie"), None, "the client has the right cookie");
        held.push(raw(balancer.address(), &brought, b"").await);
    }
    let index = ["one", "two", "three"].iter().position(|name| *name == first).unwrap();
    assert_eq!(pods[index].upgrades(), 5);
    assert_eq!(results(&balancer).await, [10, 0, 0]);

    let (_client, head) = raw(balancer.address(), "", b"").await;
    let (_, name) = get(&balancer, &cookie(&head)).await;
    assert_ne!(name, first, "without a cookie the least loaded pod is picked");
}

#[actix_rt::test]
async fn a_cookie_is_valid_for_replicas_with_the_same_key_only() {
    let pods = pods().await;
    let balancer = Balancer::with(&pods, &COOKIE).await;
    let replica = Balancer::with(&pods, &COOKIE).await;
    let other = [COOKIE[0], ("balancer.cookie_key", "an older key of these tests")];
    let other_replica = Balancer::with(&pods, &other).await;
    let (head, first) = get(&balancer, "").await;
    for _ in 0..5 {
        assert_eq!(get(&replica, &cookie(&head)).await.1, first);
        let (head, _) = get(&other_replica, &cookie(&head)).await;
        assert!(header(&head, "set-cookie").is_some());
    }
    assert_eq!(results(&replica).await, [5, 0, 0]);
    assert_eq!(results(&other_replica).await, [0, 0, 5]);
}

#[actix_rt::test]
async fn a_client_of_a_missing_or_full_pod_gets_another_pod_and_a_new_cookie() {
    let mut pods = Vec::from(pods().await);
    let limited = [
        COOKIE[0],
        COOKIE[1],
        ("balancer.max_sessions_per_pod", "1"),
        // A reused connection would outlive the pod's listener.
        ("balancer.reuse_connections", "false"),
    ];
    let balancer = Balancer::with(&pods, &limited).await;
    let (head, first) = get(&balancer, "").await;
    let brought = cookie(&head);
    let _session = raw(balancer.address(), &brought, b"").await;
    assert_eq!(get(&balancer, &brought).await.1, first, "a plain request occupies no session");
    let (_client, head) = raw(balancer.address(), &brought, b"").await;
    let (_, second) = get(&balancer, &cookie(&head)).await;
    assert_ne!(second, first, "the first pod is full");
    assert_eq!(results(&balancer).await, [3, 1, 0]);
    let index = ["one", "two", "three"].iter().position(|name| *name == second).unwrap();
    drop(pods.remove(index));
    let (head, third) = get(&balancer, &cookie(&head)).await;
    assert!(third != second, "{third}");
    assert!(header(&head, "set-cookie").is_some());
    assert_eq!(results(&balancer).await, [3, 2, 0]);
}

#[actix_rt::test]
async fn a_cookie_of_another_service_is_ignored() {
    let pods = pods().await;
    let urls: Vec<String> = pods.iter().map(|pod| format!("{:?}", pod.url())).collect();
    let service = |name: &str| format!("[services.{name}]\nbackends = [{}]\n", urls.join(", "));
    let toml = format!(
        "[balancer]\naffinity = \"cookie\"\n{}{}\
         [[routes]]\npath_prefix = \"/b\"\nservice = \"b\"\n[[routes]]\nservice = \"a\"\n",
        service("a"),
        service("b")
    );
    let balancer = Balancer::from_toml(&toml).await;
    let (head, _) = get(&balancer, "").await;
    let brought = cookie(&head);
    let mut stream = TcpStream::connect(balancer.address()).await.unwrap();
    let request = format!("GET /b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{brought}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("the answer", stream.read_to_string(&mut answer)).await.unwrap();
    assert!(header(&answer, "set-cookie").is_some());
    assert_eq!(results(&balancer).await, [0, 0, 1]);
}

#[actix_rt::test]
async fn a_hashed_header_selects_the_same_pod_in_every_replica() {
    let pods = pods().await;
    let settings = [("balancer.affinity", "header"), ("balancer.affinity_header", "X-User")];
    let (balancer, replica) =
        (Balancer::with(&pods, &settings).await, Balancer::with(&pods, &settings).await);
    let mut chosen = std::collections::HashSet::new();
    for user in 0..20 {
        let field = format!("X-User: user-{user}\r\n");
        let (head, name) = get(&balancer, &field).await;
        assert_eq!(header(&head, "set-cookie"), None);
        assert_eq!(get(&replica, &field).await.1, name);
        assert_eq!(get(&balancer, &field).await.1, name);
        chosen.insert(name);
    }
    assert_eq!(chosen.len(), 3, "{chosen:?}");
}

#[actix_rt::test]
async fn the_hashed_address_is_the_client_behind_a_trusted_proxy() {
    let pods = pods().await;
    let settings = [("balancer.affinity", "address"), ("server.trusted_proxies", "127.0.0.1")];
    let balancer = Balancer::with(&pods, &settings).await;
    let mut chosen = std::collections::HashSet::new();
    for client in 0..20 {
        let field = format!("X-Forwarded-For: 10.0.0.{client}\r\n");
        let (_, name) = get(&balancer, &field).await;
        assert_eq!(get(&balancer, &field).await.1, name);
        chosen.insert(name);
    }
    assert_eq!(chosen.len(), 3, "{chosen:?}");
}
