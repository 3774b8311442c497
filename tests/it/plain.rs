//! Plain HTTP requests through the traffic listener.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::support::{
    Balancer,
    pod::{header, read_head},
    within,
};

/// A bare listener as the pod that the test answers for, and a balancer in front of it.
struct Stage {
    listener: TcpListener,
    balancer: Balancer,
}

impl Stage {
    async fn set(settings: &[(&str, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut all = vec![("services", url.as_str()), ("balancer.metric_path", "none")];
        all.extend_from_slice(settings);
        Self { balancer: Balancer::with([], &all).await, listener }
    }

    async fn client(&self, request: &str) -> TcpStream {
        let mut client = TcpStream::connect(self.balancer.address()).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        client
    }

    /// Waits for the next connection at the pod and returns it with the head of its first request.
    async fn pod(&self) -> (TcpStream, String) {
        let (mut pod, _) = within("a connection", self.listener.accept()).await.unwrap();
        let head = within("a request", read_head(&mut pod)).await.expect("a whole head");
        (pod, head)
    }
}

async fn expect(stream: &mut TcpStream, text: &str) {
    let mut seen = vec![0; text.len()];
    within(text, stream.read_exact(&mut seen)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&seen), text);
}

async fn head(stream: &mut TcpStream) -> String {
    within("a head", read_head(stream)).await.expect("a whole head")
}

#[actix_rt::test]
async fn a_plain_request_and_its_response_are_relayed_unchanged() {
    let stage = Stage::set(&[]).await;
    let request = "POST /a%20b?q=1&q=2 HTTP/1.1\r\nHost: shop.example\r\nCookie: a=1\r\n\
                   Upgrade: h2c\r\nConnection: Upgrade, X-Hop\r\nX-Hop: 1\r\nContent-Length: 5\r\n\r\nhello";
    let mut client = stage.client(request).await;
    let (mut pod, seen) = stage.pod().await;
    assert!(seen.starts_with("POST /a%20b?q=1&q=2 HTTP/1.1\r\n"), "{seen}");
    for (name, value) in [
        ("host", Some("shop.example")),
        ("cookie", Some("a=1")),
        ("content-length", Some("5")),
        ("x-forwarded-for", Some("127.0.0.1")),
        ("x-hop", None),
        ("upgrade", None),
        ("connection", None),
        ("transfer-encoding", None),
    ] {
        assert_eq!(header(&seen, name), value, "{name} in {seen}");
    }
    expect(&mut pod, "hello").await;
    let id = header(&seen, "x-request-id").unwrap().to_owned();
    let answer = "HTTP/1.1 201 Created\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nLocation: /x\r\n\
                  Content-Length: 4\r\n\r\ndone";
    pod.write_all(answer.as_bytes()).await.unwrap();
    let seen = head(&mut client).await;
    assert!(seen.starts_with("HTTP/1.1 201 Created\r\n"), "{seen}");
    assert_eq!(seen.matches("set-cookie: ").count(), 2);
    assert_eq!(header(&seen, "x-request-id"), Some(id.as_str()));
    assert_eq!(header(&seen, "content-length"), Some("4"));
    expect(&mut client, "done").await;
}

#[actix_rt::test]
async fn server_sent_events_arrive_one_by_one() {
    let stage = Stage::set(&[]).await;
    let mut client = stage.client("GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let (mut pod, _) = stage.pod().await;
    let start =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    pod.write_all(start.as_bytes()).await.unwrap();
    let seen = head(&mut client).await;
    assert_eq!(header(&seen, "transfer-encoding"), Some("chunked"));
    for number in 0..5 {
        pod.write_all(format!("9\r\ndata: {number}\n\n\r\n").as_bytes()).await.unwrap();
        expect(&mut client, &format!("9\r\ndata: {number}\n\n\r\n")).await;
    }
    // The client disconnects, and so does the balancer from the pod.
    drop(client);
    assert!(within("the end", pod.read(&mut [0])).await.is_ok_and(|n| n == 0));
}

#[actix_rt::test]
async fn a_chunked_upload_is_streamed_and_an_early_response_is_relayed_before_its_end() {
    let stage = Stage::set(&[]).await;
    let request = "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n";
    let mut client = stage.client(request).await;
    let (mut pod, seen) = stage.pod().await;
    assert_eq!(header(&seen, "transfer-encoding"), Some("chunked"));
    expect(&mut pod, "3\r\none\r\n").await;
    client.write_all(b"3\r\ntwo\r\n").await.unwrap();
    expect(&mut pod, "3\r\ntwo\r\n").await;
    pod.write_all(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno!").await.unwrap();
    let seen = head(&mut client).await;
    assert!(seen.starts_with("HTTP/1.1 413 "), "{seen}");
    expect(&mut client, "no!").await;
}

#[actix_rt::test]
async fn a_client_that_expects_100_continue_receives_the_pods() {
    let request = "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    let stage = Stage::set(&[]).await;
    let mut client = stage.client(request).await;
    let (mut pod, seen) = stage.pod().await;
    assert_eq!(header(&seen, "expect"), Some("100-continue"));
    pod.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
    expect(&mut client, "HTTP/1.1 100 Continue\r\n\r\n").await;
    client.write_all(b"body").await.unwrap();
    expect(&mut pod, "body").await;
    pod.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 204 "));

    let stage = Stage::set(&[]).await;
    let mut client = stage.client(request).await;
    let (mut pod, _) = stage.pod().await;
    pod.write_all(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 417 "), "and no 100 before it");
}

#[actix_rt::test]
async fn responses_without_a_body_keep_their_content_length() {
    for (method, answer, length) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n", Some("1234")),
        ("GET", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 99\r\n\r\n", None),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", None),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Some("0")),
    ] {
        let stage = Stage::set(&[]).await;
        let mut client = stage.client(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        let (mut pod, _) = stage.pod().await;
        pod.write_all(answer.as_bytes()).await.unwrap();
        let seen = head(&mut client).await;
        assert_eq!(header(&seen, "content-length"), length, "{seen}");
        // The connection stays usable: no body is left in the stream.
        client.write_all(b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let next = head(&mut pod).await;
        assert!(next.starts_with("GET /next "), "the pod's connection is used again: {next}");
    }
}

#[actix_rt::test]
async fn connections_are_not_reused_when_reuse_is_disabled() {
    let stage = Stage::set(&[("balancer.reuse_connections", "false")]).await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut client = stage.client(request).await;
    for _ in 0..2 {
        let (mut pod, _) = stage.pod().await;
        pod.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        head(&mut client).await;
        assert_eq!(within("the end", pod.read(&mut [0])).await.unwrap(), 0);
        client.write_all(request.as_bytes()).await.unwrap();
    }
}

#[actix_rt::test]
async fn only_idempotent_requests_are_retried() {
    for (method, again) in [("GET", true), ("POST", false)] {
        let body = if again { "" } else { "Content-Length: 2\r\n" };
        let request = format!("{method} / HTTP/1.1\r\nHost: a\r\n{body}\r\n");
        let stage = Stage::set(&[]).await;
        let mut client = stage.client("GET /first HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let (mut pod, _) = stage.pod().await;
        pod.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        head(&mut client).await;
        client.write_all(request.as_bytes()).await.unwrap();
        if !again {
            client.write_all(b"xy").await.unwrap();
        }
        // The pod reads the request on the reused connection and closes it.
        assert!(head(&mut pod).await.starts_with(method));
        drop(pod);
        if again {
            let (mut pod, seen) = stage.pod().await;
            assert!(seen.starts_with("GET / "), "{seen}");
            pod.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));
        } else {
            assert!(head(&mut client).await.starts_with("HTTP/1.1 502 "));
        }
    }
}

#[actix_rt::test]
async fn an_http_1_0_client_gets_no_chunked_response() {
    let stage = Stage::set(&[]).await;
    let mut client = stage.client("GET / HTTP/1.0\r\n\r\n").await;
    let (mut pod, seen) = stage.pod().await;
    assert!(header(&seen, "host").is_some(), "{seen}");
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n";
    pod.write_all(answer.as_bytes()).await.unwrap();
    let mut seen = String::new();
    within("the end", client.read_to_string(&mut seen)).await.unwrap();
    assert!(seen.ends_with("\r\n\r\nbody"), "{seen}");
}
