//! Handshakes: from the request to the 101 or to a refusal.

use actix_http::ws::hash_key;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::tungstenite::Error;

use crate::support::{
    Balancer,
    client::{connect, connect_with, handshake, raw},
    eventually,
    pod::{Pod, Script, Upgrade, answer, header, read_head},
    within,
};

/// Sends `request` and returns the whole response up to the end of the connection.
async fn exchange(balancer: &Balancer, request: &str) -> String {
    let mut stream = TcpStream::connect(balancer.address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("the end of the answer", stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

fn scripted(upgrade: Upgrade) -> Script {
    Script { upgrade, ..Script::default() }
}

#[actix_rt::test]
async fn request_and_response_fields_are_forwarded() {
    let fields = "Sec-WebSocket-Protocol: superchat\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n";
    let pod = Pod::scripted(scripted(Upgrade::Accept { fields, early: Vec::new() })).await;
    let balancer = Balancer::start([&pod]).await;
    let sent =
        "Sec-WebSocket-Protocol: chat, superchat\r\nCookie: x=y\r\nAuthorization: Bearer t\r\n";
    let (_client, head) = raw(balancer.address(), sent, b"").await;
    assert_eq!(header(&head, "sec-websocket-protocol"), Some("superchat"));
    let accept = hash_key(b"dGhlIHNhbXBsZSBub25jZQ==");
    assert_eq!(header(&head, "sec-websocket-accept").unwrap().as_bytes(), accept);
    assert_eq!(head.to_lowercase().matches("set-cookie: ").count(), 2, "{head}");

    let request = pod.accept().await.request;
    assert!(request.starts_with("GET /ws?room=%C3%A9 HTTP/1.1\r\n"), "{request}");
    for (name, value) in [
        ("host", "chat.example.org"),
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-protocol", "chat, superchat"),
        ("cookie", "x=y"),
        ("authorization", "Bearer t"),
    ] {
        assert_eq!(header(&request, name), Some(value), "{name} in {request}");
    }
}

#[actix_rt::test]
async fn an_invalid_handshake_is_refused_without_contacting_a_pod() {
    let pod = Pod::scripted(Script::default()).await;
    let balancer = Balancer::start([&pod]).await;
    let good = handshake("");
    let cases = [
        (good.replace("GET ", "POST "), "405", "allow: GET", "use GET"),
        (good.replace("Version: 13", "Version: 8"), "426", "sec-websocket-version: 13", "\"8\""),
        (good.replace("Connection: Upgrade\r\n", ""), "400", "connection: close", "Connection"),
        (good.replace("Key: dGhl", "Key: "), "400", "connection: close", "Sec-WebSocket-Key"),
        (handshake("Content-Length: 4\r\n") + "body", "400", "", "Content-Length"),
        (good.replace("Host: chat.example.org", "Host:"), "400", "", "Host"),
        (good.replace("HTTP/1.1", "HTTP/1.0"), "400", "", "HTTP/1.0"),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n".to_owned(), "405", "allow: GET", "CONNECT"),
    ];
    for (request, status, field, named) in cases {
        let answer = exchange(&balancer, &request).await;
        assert!(answer[8..].starts_with(&format!(" {status} ")), "{request}{answer}");
        assert!(answer.contains(field), "{field} in {answer}");
        assert!(answer.contains(named), "{named} in {answer}");
    }
    assert_eq!(pod.upgrades(), 0);
}

#[actix_rt::test]
async fn websocket_is_accepted_in_a_list_of_protocols() {
    let pod = Pod::scripted(Script::default()).await;
    let balancer = Balancer::start([&pod]).await;
    for upgrade in ["Upgrade: h2c, WebSocket", "Upgrade: h2c\r\nUpgrade: websocket"] {
        let mut stream = TcpStream::connect(balancer.address()).await.unwrap();
        let request = handshake("").replace("Upgrade: websocket", upgrade);
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert_eq!(header(&pod.accept().await.request, "upgrade"), Some("websocket"));
    }
}

#[actix_rt::test]
async fn an_extension_or_protocol_that_was_not_offered_is_a_bad_gateway() {
    for fields in ["Sec-WebSocket-Protocol: mqtt\r\n", "Sec-WebSocket-Extensions: x-mine\r\n"] {
        let pod = Pod::scripted(scripted(Upgrade::Accept { fields, early: Vec::new() })).await;
        let balancer = Balancer::start([&pod]).await;
        let answer = exchange(&balancer, &handshake("")).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    }
}

#[actix_rt::test]
async fn an_unavailable_pod_is_skipped_and_its_response_is_relayed_if_it_was_the_last() {
    let busy = answer("503 Service Unavailable\r\nX-From: pod", "busy");
    let bad = Pod::scripted(scripted(Upgrade::Answer(busy))).await;
    let good = Pod::echo().await;
    good.set_metric(answer("500 Internal Server Error", ""));
    let balancer = Balancer::start([&bad, &good]).await;
    let _clients = [connect(balancer.address()).await, connect(balancer.address()).await];
    assert_eq!(good.open(), 2);
    let balancer = Balancer::start([&bad]).await;
    let answer = exchange(&balancer, &handshake("")).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("x-from: pod"), "{answer}");
    assert!(answer.ends_with("busy"), "{answer}");
}

#[actix_rt::test]
async fn a_client_that_disconnects_during_its_handshake_frees_its_lease() {
    let pod = Pod::scripted(scripted(Upgrade::Silence)).await;
    let balancer = Balancer::start([&pod]).await;
    let mut stream = TcpStream::connect(balancer.address()).await.unwrap();
    stream.write_all(handshake("").as_bytes()).await.unwrap();
    let connecting = async || balancer.metrics().await["services"][0]["connecting"].as_u64();
    eventually("the handshake", async || connecting().await == Some(1)).await;
    drop(stream);
    eventually("its end", async || connecting().await == Some(0)).await;
}

#[actix_rt::test]
async fn each_limit_has_its_own_response() {
    for (key, status) in [
        ("server.max_sessions", "503"),
        ("server.max_sessions_per_address", "429"),
        ("balancer.max_sessions", "503"),
        ("balancer.max_sessions_per_pod", "503"),
    ] {
        let pod = Pod::echo().await;
        let balancer = Balancer::with([&pod], &[(key, "2")]).await;
        let first = connect(balancer.address()).await;
        let _second = connect(balancer.address()).await;
        let answer = exchange(&balancer, &handshake("")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{key}: {answer}");
        assert!(answer.contains("retry-after: "), "{key}: {answer}");
        drop(first);
        balancer.until_sessions(1).await;
        let _third = connect(balancer.address()).await;
    }
}

#[actix_rt::test]
async fn a_queued_client_gets_the_next_free_place_on_a_full_pod() {
    let pod = Pod::echo().await;
    let settings = [("balancer.max_sessions_per_pod", "1"), ("balancer.queue_timeout", "1m")];
    let balancer = Balancer::with([&pod], &settings).await;
    let first = connect(balancer.address()).await;
    let address = balancer.address();
    let waiting = actix_rt::spawn(async move { connect(address).await });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    drop(first);
    let _second = within("a place", waiting).await.unwrap();
    assert_eq!(pod.upgrades(), 2);
}

#[actix_rt::test]
async fn a_request_head_that_is_too_large_or_too_slow_is_refused() {
    let pod = Pod::scripted(Script::default()).await;
    let settings = [
        ("server.max_headers", "20"),
        ("server.max_header_bytes", "2000"),
        ("server.request_timeout", "300ms"),
    ];
    let balancer = Balancer::with([&pod], &settings).await;
    let many: String = (0..20).map(|number| format!("X-{number}: y\r\n")).collect();
    let large = format!("X-Large: {}\r\n", "z".repeat(3000));
    let endless = handshake(&large).trim_end().to_owned();
    let slow = handshake("").trim_end().to_owned();
    for (request, status) in
        [(handshake(&many), "431"), (handshake(&large), "431"), (endless, "431"), (slow, "408")]
    {
        let answer = exchange(&balancer, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}\n{answer}");
    }
    assert_eq!(pod.upgrades(), 0);
}

#[actix_rt::test]
async fn a_response_other_than_101_is_relayed_completely() {
    let body = "sign in first ".repeat(20_000);
    let rejection = answer("401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"", &body);
    let chunked = b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nno \r\n3\r\nway\r\n0\r\n\r\n";
    let early_hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone";
    let cases = [
        (rejection, "HTTP/1.1 401 ", "www-authenticate: Basic realm=\"x\"", body.as_str()),
        (
            chunked.to_vec(),
            "HTTP/1.1 403 ",
            "transfer-encoding: chunked",
            "\r\n\r\n3\r\nno \r\n3\r\nway\r\n0\r\n\r\n",
        ),
        (
            b"HTTP/1.1 200 OK\r\n\r\nto the end".to_vec(),
            "HTTP/1.1 200 ",
            "transfer-encoding: chunked",
            "A\r\nto the end\r\n0\r\n\r\n",
        ),
        (early_hint.to_vec(), "HTTP/1.1 404 ", "content-length: 4", "\r\n\r\ngone"),
        (answer("204 No Content", ""), "HTTP/1.1 204 ", "", "\r\n\r\n"),
    ];
    for (answer, status, field, body) in cases {
        let pod = Pod::scripted(scripted(Upgrade::Answer(answer))).await;
        let other = Pod::scripted(scripted(Upgrade::Silence)).await;
        let balancer = Balancer::start([&pod]).await;
        let answer = exchange(&balancer, &handshake("")).await;
        assert!(answer.starts_with(status) && answer.contains(field), "{answer}");
        assert!(answer.ends_with(body), "{answer}");
        assert_eq!((pod.upgrades(), other.upgrades()), (1, 0), "not offered elsewhere");
    }
}

#[actix_rt::test]
async fn the_next_pod_is_tried_when_one_fails() {
    for broken in [
        Upgrade::HangUp,
        Upgrade::Answer(b"SSH-2.0-OpenSSH\r\n\r\n".to_vec()),
        Upgrade::Answer(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Accept: bm90IHRoZSByaWdodCBvbmU=\r\n\r\n"
                .to_vec(),
        ),
        Upgrade::Silence,
    ] {
        let bad = Pod::scripted(scripted(broken.clone())).await;
        let good = Pod::echo().await;
        good.set_metric(answer("500 Internal Server Error", ""));
        let balancer = Balancer::with([&bad, &good], &[("balancer.read_timeout", "200ms")]).await;
        let mut clients = Vec::new();
        for _ in 0..8 {
            clients.push(connect(balancer.address()).await);
        }
        assert_eq!(good.open(), 8, "{broken:?}");
        assert!(bad.upgrades() > 0, "{broken:?}: the test must have met the bad pod");
        let metrics = balancer.metrics().await;
        assert_eq!(metrics["services"][0]["own"], 0, "no slot is left on the bad pod");
    }
}

#[actix_rt::test]
async fn without_a_working_pod_the_status_names_the_kind_of_failure() {
    let refused = {
        let gone = Pod::echo().await;
        let url = gone.url();
        (url, "HTTP/1.1 502 ")
    };
    let silent = Pod::scripted(scripted(Upgrade::Silence)).await;
    for (url, status) in [refused, (silent.url(), "HTTP/1.1 504 ")] {
        let pods: [&Pod; 0] = [];
        let settings = [("services", url.as_str()), ("balancer.read_timeout", "200ms")];
        let balancer = Balancer::with(pods, &settings).await;
        let answer = exchange(&balancer, &handshake("")).await;
        assert!(answer.starts_with(status), "{answer}");
        assert!(!answer.contains("127.0.0.1"), "addresses of pods are not for clients: {answer}");
    }
}

#[actix_rt::test]
async fn handshake_timeout_limits_the_whole_handshake() {
    let pods = [
        Pod::scripted(scripted(Upgrade::Silence)).await,
        Pod::scripted(scripted(Upgrade::Silence)).await,
    ];
    let balancer = Balancer::with(&pods, &[("balancer.handshake_timeout", "300ms")]).await;
    let answer = exchange(&balancer, &handshake("")).await;
    assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("300ms"), "{answer}");
}

#[actix_rt::test]
async fn a_pod_that_stalls_in_the_middle_of_a_refusal_times_out() {
    let pod = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = [
        ("services", &*format!("http://{}", pod.local_addr().unwrap())),
        ("balancer.metric_path", "none"),
        ("balancer.read_timeout", "300ms"),
    ];
    let balancer = Balancer::with([], &settings).await;
    let mut client = TcpStream::connect(balancer.address()).await.unwrap();
    client.write_all(handshake("").as_bytes()).await.unwrap();
    let (mut at_pod, _) = within("a connection at the pod", pod.accept()).await.unwrap();
    read_head(&mut at_pod).await.unwrap();
    let half = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 10\r\n\r\nhalf ";
    at_pod.write_all(half).await.unwrap();
    let mut answer = Vec::new();
    within("the end", client.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.ends_with(b"\r\n\r\nhalf "), "{}", answer.escape_ascii());
    within("the end at the pod", at_pod.read(&mut [0])).await.unwrap();
}

#[actix_rt::test]
async fn a_client_library_reports_a_refusal() {
    let pod = Pod::scripted(scripted(Upgrade::Answer(answer("403 Forbidden", "not you")))).await;
    let balancer = Balancer::start([&pod]).await;
    match connect_with(balancer.address(), &[("origin", "https://else.example")]).await {
        Err(Error::Http(response)) => {
            assert_eq!(response.status(), 403);
            assert_eq!(response.body().as_deref(), Some(&b"not you"[..]));
        }
        other => panic!("expected 403, got {:?}", other.map(|_| ())),
    }
}

#[actix_rt::test]
async fn a_connection_can_carry_plain_requests_before_its_handshake() {
    let pod = Pod::scripted(Script::default()).await;
    let balancer = Balancer::start([&pod]).await;
    let mut stream = TcpStream::connect(balancer.address()).await.unwrap();
    let plain = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(format!("{plain}{}", handshake("")).as_bytes()).await.unwrap();
    let first = read_head(&mut stream).await.unwrap();
    assert!(first.starts_with("HTTP/1.1 200 "), "{first}");
    let len = header(&first, "content-length").unwrap().parse().unwrap();
    stream.read_exact(&mut vec![0; len]).await.unwrap();
    let second = read_head(&mut stream).await.unwrap();
    assert!(second.starts_with("HTTP/1.1 101 "), "{second}");
}
