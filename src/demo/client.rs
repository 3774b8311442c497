//! `wsbalancer client`: sends lines or numbered messages and prints received messages.

use std::{io::stdin, time::Duration};

use actix_rt::time::{Instant, interval_at};
use awc::{
    Client,
    ws::{CloseCode, Frame, Message},
};
use futures_util::{SinkExt as _, StreamExt as _};
use thiserror::Error;
use tokio::sync::mpsc;

/// Time that the peer has to answer our Close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the client ended without a Close frame.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The handshake failed.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The connection failed after the handshake.
    #[error("connection lost: {0}")]
    Broken(String),
}

/// Connects to `url` and sends messages until the connection or the input ends, or `shutdown`
/// resolves.
///
/// Sends a numbered message at each interval, or without one the lines of standard input.
///
/// # Errors
/// The connection could not be opened, or ended without a Close frame.
pub async fn run(
    url: &str,
    interval: Option<Duration>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ClientError> {
    let (response, mut socket) = Client::new()
        .ws(url)
        .max_frame_size(64 * 1024 * 1024)
        .connect()
        .await
        .map_err(|error| ClientError::Connect(error.to_string()))?;
    eprintln!("connected: {}", response.status());

    let mut input = match interval {
        Some(interval) => numbered_messages(interval),
        None => input_lines(),
    };
    let mut shutdown = std::pin::pin!(shutdown);
    let mut closing = std::pin::pin!(actix_rt::time::sleep(Duration::MAX));
    let mut open = true;
    let broken = |error: &dyn std::fmt::Display| ClientError::Broken(error.to_string());
    loop {
        let mut close = false;
        tokio::select! {
            frame = socket.next() => match frame {
                Some(Ok(Frame::Text(text))) => println!("{}", String::from_utf8_lossy(&text)),
                Some(Ok(Frame::Binary(bytes))) => println!("({} binary bytes)", bytes.len()),
                Some(Ok(Frame::Ping(payload))) => {
                    socket.send(Message::Pong(payload)).await.map_err(|error| broken(&error))?;
                }
                Some(Ok(Frame::Close(reason))) => {
                    if open {
                        let _ = socket.send(Message::Close(reason.clone())).await;
                    }
                    match reason {
                        Some(reason) => eprintln!(
                            "closed: {} {}",
                            u16::from(reason.code),
                            reason.description.unwrap_or_default()
                        ),
                        None => eprintln!("closed"),
                    }
                    return Ok(());
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(broken(&error)),
                None => return Err(broken(&"no Close frame")),
            },
            text = input.recv(), if open => match text {
                Some(text) => {
                    socket.send(Message::Text(text.into())).await.map_err(|error| broken(&error))?;
                }
                None => close = true,
            },
            () = &mut shutdown, if open => close = true,
            () = &mut closing, if !open => return Err(broken(&"no answer to our Close frame")),
        }
        if close {
            open = false;
            closing.as_mut().reset(Instant::now() + CLOSE_TIMEOUT);
            let reason = Some(CloseCode::Normal.into());
            socket.send(Message::Close(reason)).await.map_err(|error| broken(&error))?;
        }
    }
}

/// Returns the lines of standard input. They are read on a thread of their own, because the runtime
/// would wait at its end for a blocked read.
fn input_lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Returns a numbered message every `period`.
fn numbered_messages(period: Duration) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(1);
    actix_rt::spawn(async move {
        let mut interval = interval_at(Instant::now(), period);
        for number in 1u64.. {
            interval.tick().await;
            if sender.send(format!("message {number}")).await.is_err() {
                break;
            }
        }
    });
    receiver
}
