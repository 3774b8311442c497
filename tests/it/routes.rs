//! Routes, rewritten paths and allowed origins.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{
    Balancer,
    client::{connect_with, raw},
    pod::{Pod, header},
    within,
};

/// Returns the status and the body of the response to a plain request.
async fn get(balancer: &Balancer, target: &str, fields: &str) -> (String, String) {
    let mut stream = TcpStream::connect(balancer.address()).await.unwrap();
    let request =
        format!("GET {target} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n{fields}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("the answer", stream.read_to_string(&mut answer)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head[9..12].to_owned(), body.to_owned())
}

/// Starts two services, `chat` and `web`, with these routes.
async fn balancer(chat: &Pod, web: &Pod, routes: &str) -> Balancer {
    let toml = format!(
        "[services.chat]\nbackends = [\"{}\"]\n[services.web]\nbackends = [\"{}\"]\n{routes}",
        chat.url(),
        web.url()
    );
    Balancer::from_toml(&toml).await
}

/// Returns the request line that a pod receives for a handshake with `target`.
async fn seen(balancer: &Balancer, pod: &Pod, target: &str) -> String {
    let mut stream = TcpStream::connect(balancer.address()).await.unwrap();
    let request = crate::support::client::handshake("").replace("/ws?room=%C3%A9", target);
    stream.write_all(request.as_bytes()).await.unwrap();
    pod.accept().await.request
}

/// HAProxy's tutorial on WebSockets: `use_backend chat if { path_beg /ws }`, `default_backend web`.
/// Here a prefix is whole segments, as in Kubernetes and Traefik v3's examples.
#[actix_rt::test]
async fn requests_are_routed_as_in_haproxys_example_of_two_backends() {
    let (chat, web) = (Pod::named("chat").await, Pod::named("web").await);
    let routes = "[[routes]]\npath_prefix = \"/ws\"\nservice = \"chat\"\n\
                  [[routes]]\nservice = \"web\"\n";
    let balancer = balancer(&chat, &web, routes).await;
    for (target, pod) in [
        ("/", "web"),
        ("/index.html", "web"),
        ("/wsx", "web"),
        ("/ws", "chat"),
        ("/ws/echo", "chat"),
        ("/ws?page=1", "chat"),
    ] {
        assert_eq!(get(&balancer, target, "").await, ("200".into(), pod.into()), "{target}");
    }
    assert!(seen(&balancer, &chat, "/ws/echo").await.starts_with("GET /ws/echo HTTP/1.1\r\n"));
    assert!(seen(&balancer, &web, "/other").await.starts_with("GET /other HTTP/1.1\r\n"));
}

/// Traefik's example of StripPrefix: behind `PathPrefix("/products")`, the backend of
/// `/products/shoes` gets `/shoes` and `X-Forwarded-Prefix: /products`.
#[actix_rt::test]
async fn prefixes_are_stripped_as_in_traefiks_example() {
    let (chat, web) = (Pod::named("chat").await, Pod::named("web").await);
    let routes = "[[routes]]\npath_prefix = \"/products\"\nstrip_prefix = \"/products\"\n\
                  service = \"chat\"\n";
    let balancer = balancer(&chat, &web, routes).await;
    for (target, stripped) in [
        ("/products/shoes", "/shoes"),
        ("/products", "/"),
        ("/products/", "/"),
        ("/products/shirts%2Fred?size=%26", "/shirts%2Fred?size=%26"),
    ] {
        let request = seen(&balancer, &chat, target).await;
        assert!(request.starts_with(&format!("GET {stripped} HTTP/1.1\r\n")), "{request}");
        assert_eq!(header(&request, "x-forwarded-prefix"), Some("/products"));
    }
    let (status, body) = get(&balancer, "/productsX", "").await;
    assert_eq!(
        (status.as_str(), body.as_str()),
        ("404", "no route matches \"a.example/productsX\": check the host and the path\n")
    );
    assert_eq!(balancer.counter("wsbalancer_refusals_total{reason=\"no_route\"}").await, 1);
}

/// Traefik's example of ReplacePath: `path = "/foo"` replaces the path and keeps the original in
/// `X-Replaced-Path`.
#[actix_rt::test]
async fn paths_are_replaced_as_in_traefiks_example() {
    let (chat, web) = (Pod::named("chat").await, Pod::named("web").await);
    let routes =
        "[[routes]]\npath_prefix = \"/wsk\"\nreplace_path = \"/foo\"\nservice = \"chat\"\n";
    let balancer = balancer(&chat, &web, routes).await;
    let request = seen(&balancer, &chat, "/wsk/a%20b?token=x%2Fy").await;
    assert!(request.starts_with("GET /foo?token=x%2Fy HTTP/1.1\r\n"), "{request}");
    assert_eq!(header(&request, "x-replaced-path"), Some("/wsk/a%20b"));
}

#[actix_rt::test]
async fn routes_match_hosts_and_methods() {
    let (chat, web) = (Pod::named("chat").await, Pod::named("web").await);
    let routes = "[[routes]]\nhost = \"*.example\"\nmethods = [\"GET\"]\nservice = \"web\"\n\
                  [[routes]]\nhost = \"a.example\"\npath_prefix = \"/x\"\nservice = \"chat\"\n";
    let balancer = balancer(&chat, &web, routes).await;
    assert_eq!(get(&balancer, "/", "").await.1, "web");
    assert_eq!(get(&balancer, "/x", "").await.1, "chat");
    assert_eq!(
        get(&balancer, "http://other.test/x", "").await.0,
        "404",
        "the target names the host"
    );
}

#[actix_rt::test]
async fn ambiguous_paths_are_refused_when_there_are_routes() {
    let (chat, web) = (Pod::named("chat").await, Pod::named("web").await);
    let routes = "[[routes]]\npath_prefix = \"/ws\"\nservice = \"chat\"\n";
    let routed = balancer(&chat, &web, routes).await;
    for target in ["/ws/../admin", "/ws/%2e%2E/admin", "/ws/./x"] {
        let (status, body) = get(&routed, target, "").await;
        assert_eq!(status, "400");
        assert!(body.contains("segments") && body.contains(target), "{body}");
    }
    let unrouted = Balancer::start([&web]).await;
    assert_eq!(get(&unrouted, "/ws/../admin", "").await.0, "200", "the path selects no route");
}

#[actix_rt::test]
async fn only_allowed_origins_can_open_websockets() {
    let pod = Pod::scripted(Default::default()).await;
    let settings = [("balancer.allowed_origins", "https://chat.example, https://*.good.example")];
    let balancer = Balancer::with([&pod], &settings).await;
    for origin in ["https://chat.example", "https://a.b.good.example"] {
        connect_with(balancer.address(), &[("origin", origin)]).await.expect("a tunnel");
    }
    raw(balancer.address(), "", b"").await;
    for origin in ["https://evil.example", "http://chat.example", "null", ""] {
        let refused = connect_with(balancer.address(), &[("origin", origin)]).await;
        let Err(tokio_tungstenite::tungstenite::Error::Http(answer)) = refused else {
            panic!("{origin} was let in")
        };
        assert_eq!(answer.status(), 403, "{origin}");
    }
    assert_eq!(balancer.counter("wsbalancer_refusals_total{reason=\"origin\"}").await, 4);
    assert_eq!(pod.upgrades(), 3);
    assert_eq!(get(&balancer, "/", "Origin: https://evil.example\r\n").await.0, "200");
}
