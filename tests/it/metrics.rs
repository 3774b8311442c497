//! Metrics, telemetry and probes of the admin listener.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{
    Balancer,
    client::connect,
    pod::{Pod, answer, report},
};

#[actix_rt::test]
async fn the_distribution_contains_the_plugins_fields_and_our_own() {
    let whole = "{\"agentsConnections\":2,\"podName\":\"pod-a\",\"podIP\":\"10.0.0.1\",\"nodeName\":\"node-1\"}";
    let pods = [Pod::reporting(answer("200 OK", whole)).await, Pod::reporting(report(1)).await];
    let balancer = Balancer::start(&pods).await;
    balancer.until_polled().await;
    let _clients = [connect(balancer.address()).await, connect(balancer.address()).await];
    let mut metrics = balancer.metrics().await;

    let timestamp = metrics["timestamp"].take();
    assert!(humantime::parse_rfc3339(timestamp.as_str().unwrap()).is_ok(), "{timestamp}");
    let mut ages = 0;
    for service in metrics["services"].as_array_mut().unwrap() {
        ages += i32::from(service["reportAgeMs"].take().is_u64());
    }
    assert_eq!(ages, 2);
    // The first goes to the second pod (1), the second to either (2, 2).
    let own = [0, 1].map(|index| metrics["services"][index]["own"].as_u64().unwrap());
    assert!(own == [1, 1] || own == [0, 2], "{own:?}");
    let counts = [2 + own[0], 1 + own[1]];
    let service = |index: usize| {
        json!({
            "url": pods[index].url(), "connections": counts[index], "name": "default", "state": "up",
            "reported": 2 - index, "reportAgeMs": null, "own": own[index], "connecting": 0,
            "estimate": counts[index],
        })
    };
    let expected = json!({
        "timestamp": null,
        "services": [service(0), service(1)],
        "podMetrics": {
            pods[0].url(): [{
                "agentsConnections": 2, "podName": "pod-a", "podIP": "10.0.0.1",
                "nodeName": "node-1", "address": pods[0].address.to_string(), "state": "up",
            }],
            pods[1].url(): [{
                "agentsConnections": 1, "address": pods[1].address.to_string(), "state": "up",
            }],
        },
        "totalConnections": 5,
        "agentsConnections": 5,
        "ownSessions": 2,
    });
    assert_eq!(metrics, expected);
}

#[actix_rt::test]
async fn the_distribution_is_served_as_json_or_html() {
    let pod = Pod::echo().await;
    let balancer = Balancer::start([&pod]).await;
    let client = awc::Client::new();
    let firefox = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    let (json, html) = ("application/json", "text/html; charset=utf-8");
    for (query, accept, expected) in [
        ("", "*/*", json),
        ("?format=json", "text/html", json),
        ("", "application/json", json),
        ("", firefox, html),
        ("?format=html", "*/*", html),
    ] {
        let url = balancer.admin_url(&format!("/balancer-metrics{query}"));
        let answer = client.get(url).insert_header(("accept", accept)).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let field = |name| answer.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(field("content-type"), Some(expected), "{query} {accept}");
        assert_eq!((field("vary"), field("cache-control")), (Some("accept"), Some("no-store")));
        assert_eq!(field("content-security-policy").is_some(), expected == html);
    }
    for (query, expected) in [
        ("format=xml", "format = \"xml\": expected json or html"),
        ("format=json&format=html", "Query deserialize error: duplicate field `format`"),
    ] {
        let url = balancer.admin_url(&format!("/balancer-metrics?{query}"));
        let mut answer = client.get(url).send().await.unwrap();
        assert_eq!(answer.status(), 400);
        let body: serde_json::Value = answer.json().await.unwrap();
        assert_eq!(body, json!({ "error": expected }));
    }
}

#[actix_rt::test]
async fn refusals_are_counted_by_reason() {
    let pod = Pod::echo().await;
    let balancer = Balancer::start([&pod]).await;
    let _client = connect(balancer.address()).await;
    let request = crate::support::client::handshake("").replace("Version: 13", "Version: 7");
    let mut stream = tokio::net::TcpStream::connect(balancer.address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.read_to_end(&mut Vec::new()).await.unwrap();
    let url = balancer.admin_url("/telemetry");
    let body = awc::Client::new().get(url).send().await.unwrap().body().await.unwrap();
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert!(text.contains("wsbalancer_refusals_total{reason=\"bad_handshake\"} 1\n"), "{text}");
    assert!(text.contains("wsbalancer_sessions_opened_total 1\n"), "{text}");
}

#[actix_rt::test]
async fn probes_are_answered_on_the_admin_listener_only() {
    // A balancer without pods must not be restarted or taken out of service.
    let balancer = Balancer::with([], &[("services", "http://127.0.0.1:1")]).await;
    let client = awc::Client::new();
    for path in ["/livez", "/readyz"] {
        assert_eq!(client.get(balancer.admin_url(path)).send().await.unwrap().status(), 200);
    }
    for path in ["/livez", "/readyz", "/telemetry", "/balancer-metrics", "/api/version"] {
        // As `wget --spider` sends it.
        let mut answer = client.head(balancer.admin_url(path)).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), &*answer.body().await.unwrap()), (200, &b""[..]));
    }
    for path in ["/livez", "/readyz", "/balancer-metrics"] {
        let url = format!("http://{}{path}", balancer.address());
        assert_eq!(client.get(url).send().await.unwrap().status(), 502, "{path} is for pods");
    }
}
