//! The binary: commands, exit codes, signals.

use std::process::Stdio;

use futures_util::{SinkExt as _, StreamExt as _, future::join_all};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    client::connect,
    eventually,
    pod::{Pod, Script},
    program::{Program, command, until},
    within,
};

async fn output(arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String, String) {
    let run = command().args(arguments).envs(variables.iter().copied()).output();
    let output = within("the end of the command", run).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[actix_rt::test]
async fn check_prints_settings_with_their_origins() {
    let variables =
        [("WSBALANCER_SERVICES", "http://127.0.0.1:3001"), ("WSBALANCER__SERVER__WORKERS", "3")];
    let (code, stdout, _) = output(&["check"], &variables).await;
    assert_eq!(code, 0);
    assert!(stdout.contains("services = [\"http://127.0.0.1:3001\"]"), "{stdout}");
    assert!(stdout.contains("server.workers = \"3\"  # WSBALANCER__SERVER__WORKERS"), "{stdout}");
    assert!(stdout.contains("balancer.metric_path = \"/metric\"  # default"), "{stdout}");
}

#[actix_rt::test]
async fn wrong_settings_and_wrong_usage_exit_with_64() {
    let (code, _, stderr) = output(&["check"], &[("WSBALANCER__SERVER__LISTEN", "8080")]).await;
    assert_eq!(code, 64);
    assert!(
        stderr.contains("server.listen = \"8080\" (from WSBALANCER__SERVER__LISTEN)"),
        "{stderr}"
    );
    assert!(stderr.contains("services"), "all problems at once: {stderr}");
    assert_eq!(output(&["run", "--config", "/no/such.toml"], &[]).await.0, 64);
    assert_eq!(output(&["serve"], &[]).await.0, 64);
    assert_eq!(output(&["--help"], &[]).await.0, 0);
    assert_eq!(output(&["--version"], &[]).await.0, 0);
}

#[actix_rt::test]
async fn an_address_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let variables = [
        ("WSBALANCER_SERVICES", "http://127.0.0.1:3001"),
        ("WSBALANCER__SERVER__LISTEN", address.as_str()),
    ];
    let (code, _, stderr) = output(&["run"], &variables).await;
    assert_eq!(code, 1);
    assert!(stderr.contains(&format!("server.listen = \"{address}\"")), "{stderr}");
}

#[actix_rt::test]
async fn healthcheck_reports_whether_the_process_is_ready() {
    let pod = Pod::echo().await;
    let balancer = Program::run(&pod.url(), &[]).await;
    let admin = balancer.admin.to_string();
    let variables = [
        ("WSBALANCER_SERVICES", "http://127.0.0.1:1"),
        ("WSBALANCER__ADMIN__LISTEN", admin.as_str()),
    ];
    assert_eq!(output(&["healthcheck"], &variables).await.0, 0);
    let everywhere = format!("0.0.0.0:{}", balancer.admin.port());
    let anywhere = [variables[0], ("WSBALANCER__ADMIN__LISTEN", everywhere.as_str())];
    assert_eq!(output(&["healthcheck"], &anywhere).await.0, 0, "0.0.0.0 is asked on loopback");
    balancer.terminate();
    balancer.finish().await;
    assert_eq!(output(&["healthcheck"], &variables).await.0, 1);
}

#[actix_rt::test]
async fn sigterm_under_load_closes_every_session_and_exits_cleanly() {
    let pod = Pod::echo().await;
    let balancer = Program::run(&pod.url(), &[]).await;
    let clients = join_all((0..200).map(|_| connect(balancer.traffic))).await;
    let talks = clients.into_iter().map(|client| {
        tokio::spawn(async move {
            let (mut sink, mut stream) = client.split();
            let talk = async {
                while sink.send(Message::binary(vec![7u8; 2_000])).await.is_ok() {}
                std::future::pending::<()>().await;
            };
            let listen = async {
                loop {
                    match stream.next().await {
                        Some(Ok(Message::Close(Some(close)))) => {
                            return Some(u16::from(close.code));
                        }
                        Some(Ok(_)) => {}
                        _ => return None,
                    }
                }
            };
            tokio::select! {
                code = listen => code,
                () = talk => None,
            }
        })
    });
    let talks: Vec<_> = talks.collect();
    balancer.until_sessions(200).await;
    balancer.terminate();
    let codes = within("all closes", join_all(talks)).await;
    let restarts = codes.iter().filter(|code| matches!(code, Ok(Some(1012)))).count();
    assert_eq!(restarts, 200, "clients that saw 1012");
    let (status, log) = balancer.finish().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("200 sessions were open"), "{log}");
    assert!(!log.contains("panic"), "{log}");
}

#[actix_rt::test]
async fn clients_that_do_not_close_are_disconnected_at_shutdown_timeout() {
    let pod = Pod::scripted(Script::default()).await;
    let variables = [("WSBALANCER__SERVER__SHUTDOWN_TIMEOUT", "300ms")];
    let balancer = Program::run(&pod.url(), &variables).await;
    let _silent = crate::support::client::raw(balancer.traffic, "", b"").await;
    let _session = pod.accept().await;
    balancer.until_sessions(1).await;
    balancer.terminate();
    let (status, log) = balancer.finish().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("1 sessions were open, 1 were cut"), "{log}");
}

#[actix_rt::test]
async fn the_sample_pod_and_the_sample_client_exchange_messages() {
    let mut pod = command()
        .args(["pod", "--listen", "127.0.0.1:0"])
        .env("POD_NAME", "pod-x")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(pod.stdout.take().unwrap()).lines();
    let line = until(&mut lines, "listening on ").await;
    let address = line.trim_start_matches("listening on ").to_owned();
    let balancer = Program::run(&format!("http://{address}"), &[]).await;

    let url = format!("ws://{}/ws", balancer.traffic);
    let mut client = command()
        .args(["client", &url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = client.stdin.take().unwrap();
    let mut stdout = BufReader::new(client.stdout.take().unwrap()).lines();
    stdin.write_all(b"hello\n").await.unwrap();
    until(&mut stdout, "hello").await;
    let metrics = format!("http://{}/balancer-metrics", balancer.admin);
    eventually("the pod's own count", async || {
        let mut response = awc::Client::new().get(&metrics).send().await.unwrap();
        let json: serde_json::Value = response.json().await.unwrap();
        let pod = &json["podMetrics"][format!("http://{address}")][0];
        pod["podName"] == "pod-x" && json["totalConnections"] == 1
    })
    .await;
    drop(stdin);
    assert!(within("the client's end", client.wait()).await.unwrap().success());
}
