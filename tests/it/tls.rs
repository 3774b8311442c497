//! TLS with clients and with pods: one balancer in front of another.

use std::{fs, net::SocketAddr, path::PathBuf};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_tungstenite::{client_async_with_config, tungstenite::Message};

use crate::support::{
    Balancer,
    certificate::Certificate,
    client::{connect_with, handshake, raw},
    eventually,
    frames::{BINARY, FIN, close_of, masked, unmasked},
    pod::{Pod, Script, header, no_limits, report},
    within,
};

/// Starts a balancer that serves TLS.
async fn secured(pod: &Pod, certificate: &Certificate) -> Balancer {
    secured_with(pod, certificate, ("balancer.write_timeout", "0s")).await
}

/// Starts a balancer that serves TLS, with one more setting.
async fn secured_with(pod: &Pod, certificate: &Certificate, own: (&str, &str)) -> Balancer {
    let settings = [
        own,
        ("server.tls_cert_file", &*certificate.file("cert.pem")),
        ("server.tls_key_file", &certificate.file("key.pem")),
        ("server.trusted_proxies", "127.0.0.1"),
    ];
    Balancer::with([pod], &settings).await
}

/// Starts a balancer in front of the TLS listener at `address`.
async fn in_front(address: SocketAddr, settings: &str) -> Balancer {
    let toml = format!("services = [\"https://{address}\"]\n[balancer]\nretries = 0\n{settings}");
    Balancer::from_toml(&toml).await
}

#[actix_rt::test]
async fn messages_of_every_size_are_relayed_with_tls_on_both_sides() {
    let pod = Pod::reporting(report(0)).await;
    let certificate = Certificate::new("localhost");
    let inner = secured(&pod, &certificate).await;
    let settings = format!(
        "tls_ca_file = {:?}\ntls_server_name = \"localhost\"\nmetric_path = \"/metric\"\n",
        certificate.file("cert.pem")
    );
    let outer = in_front(inner.address(), &settings).await;
    outer.until_polled().await;

    let over_tls = certificate.connect(inner.address()).await.unwrap();
    let request = "ws://localhost/ws";
    let mut direct =
        client_async_with_config(request, over_tls, Some(no_limits())).await.unwrap().0;
    let (mut through, _) = connect_with(outer.address(), &[]).await.unwrap();
    for length in [0, 1, 125, 126, 16_384, 16_385, 65_536, 1_000_000, 16_000_000] {
        let message = Message::binary(vec![length as u8; length]);
        direct.send(message.clone()).await.unwrap();
        let echo = within("an echo", direct.next()).await.unwrap().unwrap();
        assert!(echo == message, "{length} bytes from a client of TLS");
        through.send(message.clone()).await.unwrap();
        let echo = within("an echo", through.next()).await.unwrap().unwrap();
        assert!(echo == message, "{length} bytes to a pod of TLS");
    }
}

/// Sends small messages until the peer ends the stream, and returns the bytes that it sent.
async fn flood(stream: impl AsyncRead + AsyncWrite, message: &[u8]) -> Vec<u8> {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut received = Vec::new();
    let flooding = async {
        while write.write_all(message).await.is_ok() {}
        std::future::pending().await
    };
    tokio::select! {
        () = flooding => {}
        _ = within("the end", read.read_to_end(&mut received)) => {}
    }
    received
}

#[actix_rt::test]
async fn a_tls_client_that_does_not_read_is_disconnected() {
    let pod = Pod::scripted(Script::default()).await;
    let certificate = Certificate::new("localhost");
    let balancer = secured_with(&pod, &certificate, ("balancer.write_timeout", "300ms")).await;
    let mut client = certificate.connect(balancer.address()).await.unwrap();
    client.write_all(handshake("").as_bytes()).await.unwrap();
    let session = pod.accept().await;
    let received = flood(session.stream, &unmasked(FIN | BINARY, &[0; 1_000])).await;
    assert_eq!(close_of(&received), (1001, "write timed out: client is not reading".to_owned()));
    balancer.until_sessions(0).await;
    drop(client);
}

#[actix_rt::test]
async fn a_tls_pod_that_does_not_read_is_disconnected() {
    let pod = Pod::scripted(Script::default()).await;
    let certificate = Certificate::new("localhost");
    let inner = secured(&pod, &certificate).await;
    let outer = in_front(inner.address(), "tls_verify = false\nwrite_timeout = \"300ms\"\n").await;
    let (client, _) = raw(outer.address(), "", b"").await;
    let session = pod.accept().await;
    let received = flood(client, &masked(FIN | BINARY, &[0; 1_000])).await;
    assert_eq!(close_of(&received), (1012, "write timed out: pod is not reading".to_owned()));
    outer.until_sessions(0).await;
    drop(session);
}

#[actix_rt::test]
async fn a_pod_with_an_untrusted_certificate_is_not_used() {
    let pod = Pod::echo().await;
    let certificate = Certificate::new("localhost");
    let inner = secured(&pod, &certificate).await;
    let ca = format!("tls_ca_file = {:?}\n", certificate.file("cert.pem"));
    let other_certificate = Certificate::new("localhost");
    let other_ca = format!("tls_ca_file = {:?}\n", other_certificate.file("cert.pem"));
    for (settings, status) in [
        (ca.clone() + "tls_server_name = \"localhost\"\n", 101),
        (ca.clone(), 502), // the URL has an address, the certificate a name
        (ca + "tls_server_name = \"chat.example\"\n", 502),
        (other_ca + "tls_server_name = \"localhost\"\n", 502),
        ("tls_verify = false\n".to_owned(), 101),
    ] {
        let outer = in_front(inner.address(), &settings).await;
        match connect_with(outer.address(), &[]).await {
            Ok(_) => assert_eq!(status, 101, "{settings}"),
            Err(tokio_tungstenite::tungstenite::Error::Http(answer)) => {
                assert_eq!(answer.status(), status, "{settings}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[actix_rt::test]
async fn x_forwarded_proto_is_https_for_tls_clients() {
    let pod = Pod::scripted(Default::default()).await;
    let certificate = Certificate::new("localhost");
    let balancer = secured(&pod, &certificate).await;
    let over_tls = certificate.connect(balancer.address()).await.unwrap();
    let (_client, _) = client_async_with_config("ws://localhost/ws", over_tls, None).await.unwrap();
    let request = pod.accept().await.request;
    assert_eq!(header(&request, "x-forwarded-proto"), Some("https"));
    assert_eq!(header(&request, "x-forwarded-port"), Some("443"));
}

#[actix_rt::test]
async fn plain_text_to_a_tls_listener_is_counted_and_dropped() {
    let pod = Pod::echo().await;
    let certificate = Certificate::new("localhost");
    let balancer = secured(&pod, &certificate).await;
    let mut stream = TcpStream::connect(balancer.address()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = within("the end", stream.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP"));
    let counter = "wsbalancer_refusals_total{reason=\"bad_tls\"}";
    eventually("the count", async || balancer.counter(counter).await == 1).await;
}

#[actix_rt::test]
async fn changed_certificates_are_loaded_and_invalid_ones_are_not() {
    use wsbalancer::net::tls::{KeyPair, ServerTls};

    let mut certificate = Certificate::new("localhost");
    let files = KeyPair {
        cert_file: certificate.file("cert.pem").into(),
        key_file: certificate.file("key.pem").into(),
    };
    let tls = ServerTls::load(files, std::time::Duration::from_secs(10)).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shown = tls.certificate.clone();
    actix_rt::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = tls.acceptor.accept(stream).await;
        }
    });
    let first = Certificate { folder: PathBuf::from("/nowhere"), der: certificate.der.clone() };
    first.connect(address).await.expect("the first certificate");

    fs::write(certificate.folder.join("cert.pem"), "-----BEGIN CERTIFICATE-----\nhalf").unwrap();
    shown.reload_changed_files();
    first.connect(address).await.expect("the first certificate still");

    certificate.renew("localhost");
    shown.reload_changed_files();
    certificate.connect(address).await.expect("the new certificate");
    assert!(first.connect(address).await.is_err(), "the first certificate is replaced");
}
