//! To try the balancer out: a sample pod, a client, and a demo of a balancer with both.

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

/// Number of embedded pods.
const PODS: usize = 3;

/// Runs a balancer with embedded pods and clients until `shutdown` resolves.
///
/// It listens on the configured addresses; by default only on loopback, and on a free port if the
/// default port is in use.
///
/// # Errors
/// A problem in the settings, or a listener that cannot be bound.
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
    let mut layers = Layers::from_process(file)?;
    let urls = pods.iter().map(|pod| format!("http://{}", pod.address)).collect();
    for table in ["services", "routes"] {
        layers.remove_table(table);
    }
    layers.set("services", urls, "the demo's pods");
    for (key, port) in [("server.listen", 8080), ("admin.listen", 9090)] {
        if layers.is_default(key) {
            layers.set(key, vec![format!("127.0.0.1:{}", port_or_free_one(port))], "the demo");
        }
    }
    if layers.is_default("log.level") {
        // Log lines would break the live table.
        layers.set("log.level", vec!["warn".to_owned()], "the demo");
    }
    // The embedded clients need no drain.
    for key in ["server.drain_delay", "server.drain_time"] {
        if layers.is_default(key) {
            layers.set(key, vec!["0s".to_owned()], "the demo");
        }
    }
    let config = Config::resolve(layers)?;
    logging::init(config.log);
    let app = App::start(&config, Listeners::bind(&config)?)?;

    let metrics = format!("http://{}{}", app.admin_address, config.admin.balancer_metric_path);
    println!("wsbalancer with {PODS} sample pods and {} clients\n", crowd::SIZE);
    println!("  traffic   ws://{}/ws", app.traffic_address);
    println!("  metrics   {metrics}");
    println!("  a client  wsbalancer client ws://{}/ws\n", app.traffic_address);
    println!("Press Ctrl-C to stop.\n");

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

/// Returns `port`, or 0 for any free one if it is in use.
fn port_or_free_one(port: u16) -> u16 {
    let is_in_use = |error: io::Error| error.kind() == io::ErrorKind::AddrInUse;
    if TcpListener::bind(("127.0.0.1", port)).is_err_and(is_in_use) { 0 } else { port }
}
