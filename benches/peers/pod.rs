//! The pod behind every balancer. It echoes WebSocket messages and answers every other request with
//! the metrics report that wsbalancer polls. It has its own thread and runtime, so that pod and
//! clients wait for each other only through the balancer.

use std::{io::Result, net::SocketAddr, thread};

use actix_http::ws::hash_key;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime,
};

use crate::wire::{self, Frame, Reply};

/// Initial size of a session's buffer. It grows to the largest message of the session.
const INITIAL_BUFFER: usize = 1024;

/// Starts the pod and returns its address. The pod runs as long as this process.
pub fn start() -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    thread::Builder::new().name("pod".into()).spawn(move || {
        if let Err(error) = runtime.block_on(accept(listener)) {
            eprintln!("the pod stopped accepting connections: {error}");
        }
    })?;
    Ok(address)
}

async fn accept(listener: std::net::TcpListener) -> Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        // The client sees a broken session and fails the run.
        tokio::spawn(serve(stream));
    }
}

async fn serve(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut received = Vec::new();
    loop {
        let end = wire::read_head(&mut stream, &mut received).await?;
        let head = String::from_utf8_lossy(&received[..end]).into_owned();
        received.drain(..end);
        let Some(key) = wire::header(&head, "sec-websocket-key") else {
            send_report(&mut stream).await?;
            continue;
        };
        let accept = hash_key(key.as_bytes());
        let answer = [
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Accept: ",
            accept.as_slice(),
            b"\r\n\r\n",
        ]
        .concat();
        stream.write_all(&answer).await?;
        return echo(stream, received).await;
    }
}

/// Answers `GET /metric`. There is only one pod, so the count has no effect.
async fn send_report(stream: &mut TcpStream) -> Result<()> {
    let body = r#"{"agentsConnections":0}"#;
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await
}

/// Echoes each message after it is complete, as real pods do. Echoing parts of a large message would
/// deadlock: the client reads only after it has written the whole message.
async fn echo(mut stream: TcpStream, mut buffer: Vec<u8>) -> Result<()> {
    let mut filled = buffer.len();
    buffer.resize(filled.max(INITIAL_BUFFER), 0);
    loop {
        let frame = Frame::parse(&buffer[..filled]);
        if let Some(frame) = frame.as_ref().filter(|frame| frame.len() <= filled) {
            match frame.make_reply(&mut buffer) {
                Reply::Send(bytes) => stream.write_all(bytes).await?,
                Reply::SendAndClose(bytes) => return stream.write_all(bytes).await,
                Reply::None => {}
            }
            buffer.copy_within(frame.len()..filled, 0);
            filled -= frame.len();
            continue;
        }
        // One byte more than the frame: a read that does not fill the buffer shows tokio that the
        // socket is empty, which saves one more read.
        let wanted = frame.map_or(INITIAL_BUFFER, |frame| frame.len() + 1);
        if buffer.len() < wanted {
            buffer.resize(wanted, 0);
        }
        match stream.read(&mut buffer[filled..]).await? {
            0 => return Ok(()),
            count => filled += count,
        }
    }
}
