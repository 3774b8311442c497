//! A balancer on actix's test server, scripted pods, WebSocket and raw clients.

pub mod certificate;
pub mod client;
pub mod dns;
pub mod frames;
pub mod pod;
pub mod program;

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::{Duration, Instant},
};

use actix_http_test::TestServer;
use serde_json::Value;
use tokio::net::TcpStream;
use wsbalancer::{
    actors::registry::CountSessions,
    admin::{self, AdminState},
    app::ControlActors,
    config::{Config, Layers, live::LiveConfig},
    traffic::{listener, state::TrafficState},
};

/// The longest time that a test waits. It is generous because it matters in failures only.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A balancer whose traffic listener is actix's test server.
pub struct Balancer {
    server: TestServer,
    pub control: ControlActors,
    admin: SocketAddr,
}

impl Balancer {
    /// Starts a balancer in front of `pods` that polls them once an hour.
    pub async fn start<'a>(pods: impl IntoIterator<Item = &'a pod::Pod>) -> Self {
        Self::with(pods, &[]).await
    }

    /// Starts a balancer with further settings, such as `("balancer.retries", "0")`.
    pub async fn with<'a>(
        pods: impl IntoIterator<Item = &'a pod::Pod>,
        settings: &[(&str, &str)],
    ) -> Self {
        Self::of(Self::config(pods, settings)).await
    }

    /// Returns the configuration that [`with`](Self::with) uses.
    pub fn config<'a>(
        pods: impl IntoIterator<Item = &'a pod::Pod>,
        settings: &[(&str, &str)],
    ) -> Config {
        let mut layers = Layers::defaults();
        let urls = pods.into_iter().map(|pod| pod.url()).collect();
        layers.set("services", urls, "test");
        for (key, value) in settings {
            layers.set(key, vec![(*value).to_owned()], "test");
        }
        Self::resolve(layers)
    }

    /// Starts a balancer with the settings of a file.
    pub async fn from_toml(toml: &str) -> Self {
        Self::of(Self::resolve(Layers::from_texts(Some(toml), []).expect("TOML"))).await
    }

    fn resolve(mut layers: Layers) -> Config {
        if layers.is_default("balancer.poll_interval") {
            layers.set("balancer.poll_interval", vec!["1h".to_owned()], "test");
        }
        Config::resolve(layers).expect("valid settings")
    }

    async fn of(config: Config) -> Self {
        let control = ControlActors::start(&config);
        let traffic = TrafficState::new(
            &config,
            &control.ids,
            control.metrics.clone(),
            control.registry.clone(),
        );
        let state = AdminState::new(
            &traffic,
            control.discovery.clone(),
            Arc::new(LiveConfig::new(config.clone())),
        );
        let live = traffic.into_shared();
        let server =
            actix_http_test::test_server(move || listener::service::<TcpStream>(live.clone()))
                .await;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let admin = listener.local_addr().unwrap();
        actix_rt::spawn(admin::server(listener, config.admin.balancer_metric_path, state).unwrap());
        Self { server, control, admin }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.addr()
    }

    pub fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    /// Returns `/balancer-metrics`.
    pub async fn metrics(&self) -> Value {
        let url = self.admin_url("/balancer-metrics");
        let mut response = awc::Client::new().get(url).send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        response.json().await.expect("JSON")
    }

    /// Returns the counter with this name and these labels.
    pub async fn counter(&self, name: &str) -> u64 {
        let mut response =
            awc::Client::new().get(self.admin_url("/telemetry")).send().await.expect("an answer");
        let text = String::from_utf8(response.body().await.unwrap().to_vec()).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    pub async fn sessions(&self) -> usize {
        self.control.registry.send(CountSessions).await.expect("a registry")
    }

    /// Waits until `sessions` sessions are registered, which is shortly after their 101.
    pub async fn until_sessions(&self, sessions: usize) {
        eventually(&format!("{sessions} sessions"), async || self.sessions().await == sessions)
            .await;
    }

    /// Waits until every pod has reported its count.
    pub async fn until_polled(&self) {
        eventually("all pods polled", async || {
            let metrics = self.metrics().await;
            let services = metrics["services"].as_array().unwrap().clone();
            services.iter().all(|service| service["state"] == "up")
        })
        .await;
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// Panics if it does not hold within [`PATIENCE`].
pub async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "timed out waiting for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for `future`.
///
/// # Panics
/// Panics if it takes longer than [`PATIENCE`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("timed out waiting for {what}"))
}
