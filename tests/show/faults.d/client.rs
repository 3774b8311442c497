//! A client on tokio-tungstenite, as client.py is one on `websockets`.

use std::{io::BufRead as _, thread};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::{select, sync::mpsc};
use tokio_tungstenite::{
    connect_async,
    tungstenite::{
        Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

const NO_STATUS: u16 = 1005;
const ABNORMAL: u16 = 1006;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let url = std::env::args().nth(1).expect("a URL");
    let mut connection = match connect_async(url).await {
        Ok((connection, _)) => connection,
        Err(error) => return println!("{}", json!({ "error": error.to_string() })),
    };
    println!("connected");
    let mut lines = lines();
    let mut open = true;
    let close = loop {
        select! {
            line = lines.recv(), if open => {
                // If it fails, reading fails, too, and reports it.
                let _ = match line {
                    Some(line) => connection.send(Message::text(line)).await,
                    None => {
                        open = false;
                        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
                        connection.close(Some(normal)).await
                    }
                };
            }
            message = connection.next() => match message {
                Some(Ok(Message::Close(close))) => break Some(close),
                Some(Ok(Message::Text(text))) => println!("message {}", text.len()),
                Some(Ok(Message::Binary(bytes))) => println!("message {}", bytes.len()),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => break None,
            },
        }
    };
    let ended = match close {
        Some(close) => {
            let is_answered = connection.flush().await.is_ok();
            while let Some(Ok(_)) = connection.next().await {}
            let (code, reason) = match &close {
                Some(close) => (close.code.into(), close.reason.as_str()),
                None => (NO_STATUS, ""),
            };
            json!({ "code": code, "reason": reason, "clean": is_answered })
        }
        None => json!({ "code": ABNORMAL, "reason": "", "clean": false }),
    };
    println!("{ended}");
}

/// The lines of standard input, until its end.
fn lines() -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
