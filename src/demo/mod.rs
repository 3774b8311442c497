//! Things to try the balancer with: a sample pod, a client, and both together around a balancer.

pub mod client;
mod crowd;
pub mod pod;
mod table;

use std::{future::pending, io, net::TcpListener, path::Path};

use self::pod::Identity;
use crate::{
    app::{App, Listeners, Summary},
    config::{Config, Layers},
    telemetry::logging,
};

/// Pods of the demo.
const PODS: usize = 3;

/// Runs a balancer with embedded pods and clients until `shutdown` resolves.
///
/// Listens where the configuration says; by default on loopback only, and on a free port when
/// the default one is taken.
///
/// # Errors
/// A mistake in the configuration, or a listener that cannot be bound.
pub async fn run(
    file: Option<&Path>,
    shutdown: impl Future<Output = ()>,
) -> Result<Summary, Box<dyn std::error::Error>> {
    let mut pods = Vec::new();
    for index in 1..=PODS {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let identity = Identity {
            name: Some(format!("demo-pod-{index}")),
            ip: Some("127.0.0.1".to_owned()),
            node: Some("this-machine".to_owned()),
        };
        pods.push(pod::start(listener, identity)?);
    }
    let mut layers = Layers::of_process(file)?;
    let urls = pods.iter().map(|pod| format!("http://{}", pod.address)).collect();
    for table in ["services", "routes"] {
        layers.remove_below(table);
    }
    layers.set("services", urls, "the demo's own pods");
    for (key, port) in [("server.listen", 8080), ("admin.listen", 9090)] {
        if layers.is_default(key) {
            layers.set(key, vec![format!("127.0.0.1:{}", free_or_any(port))], "the demo");
        }
    }
    if layers.is_default("log.level") {
        // The table has the terminal to itself.
        layers.set("log.level", vec!["warn".to_owned()], "the demo");
    }
    // Nobody is to be spared here when it ends.
    for key in ["server.drain_delay", "server.drain_time"] {
        if layers.is_default(key) {
            layers.set(key, vec!["0s".to_owned()], "the demo");
        }
    }
    let config = Config::resolve(layers)?;
    logging::init(config.log);
    let app = App::start(&config, Listeners::bind(&config)?)?;

    let metrics = format!("http://{}{}", app.admin_address, config.admin.balancer_metric_path);
    println!("wsbalancer with {PODS} sample pods and a crowd of clients.\n");
    println!("  traffic   ws://{}/ws", app.traffic_address);
    println!("  metrics   {metrics}");
    println!("  a client  wsbalancer client ws://{}/ws\n", app.traffic_address);
    println!("Ctrl-C ends it.\n");

    let crowd = crowd::start(format!("ws://{}/ws", app.traffic_address));
    let table = actix_rt::spawn(table::show(metrics));
    shutdown.await;
    table.abort();
    crowd.stop();
    let summary = app.stop(pending()).await;
    for pod in pods {
        pod.stop().await;
    }
    Ok(summary)
}

/// `port`, or 0 for any other when it is taken.
fn free_or_any(port: u16) -> u16 {
    let taken = |error: io::Error| error.kind() == io::ErrorKind::AddrInUse;
    if TcpListener::bind(("127.0.0.1", port)).is_err_and(taken) { 0 } else { port }
}
