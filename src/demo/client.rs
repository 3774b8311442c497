//! `wsbalancer client`: sends lines or a steady message, prints what comes.

use std::{io::stdin, time::Duration};

use actix_rt::time::{Instant, interval_at};
use awc::{
    Client,
    ws::{CloseCode, Frame, Message},
};
use futures_util::{SinkExt as _, StreamExt as _};
use thiserror::Error;
use tokio::sync::mpsc;

/// How long the far side may take to answer our Close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the client ended without a Close.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No tunnel.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The tunnel broke.
    #[error("the connection broke: {0}")]
    Broken(String),
}

/// Talks to `url` until its end, the end of the input, or `shutdown`.
///
/// Sends a numbered message every `every`, or else the lines of standard input.
///
/// # Errors
/// No connection, or one that ended without a Close frame.
pub async fn run(
    url: &str,
    every: Option<Duration>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ClientError> {
    let (response, mut socket) = Client::new()
        .ws(url)
        .max_frame_size(64 * 1024 * 1024)
        .connect()
        .await
        .map_err(|error| ClientError::Connect(error.to_string()))?;
    eprintln!("connected: {}", response.status());

    let mut input = match every {
        Some(every) => ticks(every),
        None => lines(),
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
            () = &mut closing, if !open => return Err(broken(&"no answer to our Close")),
        }
        if close {
            open = false;
            closing.as_mut().reset(Instant::now() + CLOSE_TIMEOUT);
            let reason = Some(CloseCode::Normal.into());
            socket.send(Message::Close(reason)).await.map_err(|error| broken(&error))?;
        }
    }
}

/// The lines of standard input. On a thread of its own, because a runtime waits at its end for
/// whoever reads there, even when there is nothing to read.
fn lines() -> mpsc::Receiver<String> {
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

/// A numbered message every `period`.
fn ticks(period: Duration) -> mpsc::Receiver<String> {
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
