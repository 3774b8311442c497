//! Clients: tokio-tungstenite, and a bare socket past its handshake.

use std::net::SocketAddr;

use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        Error, client::IntoClientRequest as _, handshake::client::Response, http::HeaderValue,
    },
};

use super::pod::{no_limits, read_head};

pub type Client = WebSocketStream<TcpStream>;

/// Connects with further header fields.
pub async fn connect_with(
    address: SocketAddr,
    fields: &[(&'static str, &str)],
) -> Result<(Client, Response), Error> {
    let mut request = format!("ws://{address}/ws").into_client_request()?;
    for (name, value) in fields {
        request.headers_mut().append(*name, HeaderValue::from_str(value).unwrap());
    }
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    client_async_with_config(request, stream, Some(no_limits())).await
}

/// Connects, or panics.
pub async fn connect(address: SocketAddr) -> Client {
    connect_with(address, &[]).await.expect("a tunnel").0
}

/// Returns a handshake request with further header lines.
pub fn handshake(fields: &str) -> String {
    format!(
        "GET /ws?room=%C3%A9 HTTP/1.1\r\nHost: chat.example.org\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n"
    )
}

/// Returns a bare socket after its handshake, and the head of the response. `early` is sent with the
/// request, in one segment.
pub async fn raw(address: SocketAddr, fields: &str, early: &[u8]) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let request = handshake(fields);
    stream.write_all(&[request.as_bytes(), early].concat()).await.unwrap();
    let head = read_head(&mut stream).await.expect("an answer");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    (stream, head)
}
