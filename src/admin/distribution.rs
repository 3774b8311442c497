//! The distribution of connections as JSON: first the fields of the Traefik plugin that this
//! project replaces, then our own.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use crate::{
    actors::discovery::{LookupStatus, LookupTarget},
    config::live::ReloadOutcome,
    domain::balance::snapshot::{BackendSnapshot, BackendState},
};

/// The whole answer of `/balancer-metrics`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Distribution {
    timestamp: String,
    services: Vec<ServiceEntry>,
    pod_metrics: BTreeMap<String, Vec<PodEntry>>,
    total_connections: u64,
    agents_connections: u64,
    own_sessions: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lookups: Vec<LookupEntry>,
    /// The outcome of the last reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    reload: Option<ReloadOutcome>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceEntry {
    /// The URL as configured.
    url: String,
    /// The estimate: a fresh report corrected by events since then, else our own count.
    connections: u64,
    name: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ejected_for_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reported: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    report_age_ms: Option<u64>,
    own: u32,
    connecting: u32,
    #[serde(skip_serializing_if = "is_zero")]
    requests: u32,
    estimate: u64,
    /// Left out if it is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_connections: Option<u64>,
}

/// What a pod reports about itself. Fields that it does not report are left out: an unknown count
/// is never shown as 0.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodEntry {
    #[serde(skip_serializing_if = "Option::is_none")]
    agents_connections: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_name: Option<String>,
    #[serde(rename = "podIP", skip_serializing_if = "Option::is_none")]
    pod_ip: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_name: Option<String>,
    address: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// A name that is looked up in DNS.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LookupEntry {
    /// The name as configured.
    source: String,
    /// The service of the pods; left out for replicas of the balancer.
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    /// Addresses in the last good answer.
    known: usize,
    /// Why lookups fail, and for how long they have failed for this reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failing_for_ms: Option<u64>,
}

impl From<LookupStatus> for LookupEntry {
    fn from(LookupStatus { target, source, addresses, failure }: LookupStatus) -> Self {
        let service = match target {
            LookupTarget::Pods { pod, .. } => Some(pod.service),
            LookupTarget::Replicas { .. } => None,
        };
        let (error, since) = failure.unzip();
        Self { source, service, known: addresses, error, failing_for_ms: since.map(millis) }
    }
}

impl Distribution {
    /// Builds the distribution at `now` from the states of all backends and lookups and the number
    /// of sessions of this instance.
    pub fn new(
        backends: Vec<BackendSnapshot>,
        lookups: Vec<LookupStatus>,
        own_sessions: usize,
        now: SystemTime,
    ) -> Self {
        let total = backends.iter().map(|backend| backend.estimate).sum();
        let mut services = Vec::with_capacity(backends.len());
        let mut pod_metrics = BTreeMap::<String, Vec<PodEntry>>::new();
        for snapshot in backends {
            let (service, pod) = split(snapshot);
            pod_metrics.entry(service.url.clone()).or_default().push(pod);
            services.push(service);
        }
        Self {
            timestamp: humantime::format_rfc3339_seconds(now).to_string(),
            services,
            pod_metrics,
            total_connections: total,
            agents_connections: total,
            own_sessions,
            lookups: lookups.into_iter().map(LookupEntry::from).collect(),
            reload: None,
        }
    }

    /// Adds the outcome of the last reload, if there was one.
    pub fn with_reload(mut self, last: Option<Arc<ReloadOutcome>>) -> Self {
        self.reload = last.map(Arc::unwrap_or_clone);
        self
    }
}

/// A backend in a list, with its address.
#[derive(Debug, Serialize)]
pub struct ListedBackend {
    #[serde(flatten)]
    service: ServiceEntry,
    address: String,
}

impl From<BackendSnapshot> for ListedBackend {
    fn from(snapshot: BackendSnapshot) -> Self {
        let (service, PodEntry { address, .. }) = split(snapshot);
        Self { service, address }
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

fn split(snapshot: BackendSnapshot) -> (ServiceEntry, PodEntry) {
    let BackendSnapshot { backend, state, reason, report, error, load, estimate, .. } = snapshot;
    let state = match state {
        BackendState::Up => "up",
        BackendState::Cold => "cold",
        BackendState::Draining => "draining",
        BackendState::Full => "full",
        BackendState::Ejected => "ejected",
        BackendState::Stale => "stale",
        BackendState::Unknown => "unknown",
    };
    let (report, age) = report.unzip();
    let service = ServiceEntry {
        url: backend.url.clone(),
        connections: estimate,
        name: backend.service.clone(),
        state,
        reason,
        ejected_for_ms: snapshot.ejected_for.map(millis),
        reported: report.as_ref().and_then(|report| report.connections),
        report_age_ms: age.map(millis),
        own: load.open,
        connecting: load.connecting,
        requests: load.requests,
        estimate,
        weight: Some(snapshot.weight).filter(|weight| *weight != 1.0),
        max_connections: snapshot.limit,
    };
    let pod = PodEntry {
        agents_connections: service.reported,
        pod_name: report.as_ref().and_then(|report| report.pod_name.clone()),
        pod_ip: report.as_ref().and_then(|report| report.pod_ip.clone()),
        node_name: report.and_then(|report| report.node_name),
        address: backend.address.clone(),
        state,
        error: error.map(|error| error.to_string()),
    };
    (service, pod)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        balance::{
            backend::{Backend, Transport},
            lease::Load,
        },
        report::{Report, ReportError},
        service_id::ServiceIds,
    };

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn snapshot(url: &str, address: &str) -> BackendSnapshot {
        BackendSnapshot {
            backend: Arc::new(Backend {
                service: "default".into(),
                url: url.into(),
                address: address.into(),
                transport: Transport::Tcp,
            }),
            state: BackendState::Up,
            report: None,
            error: None,
            reason: None,
            load: Load::default(),
            estimate: 0,
            weight: 1.0,
            limit: None,
            ejected_for: None,
        }
    }

    #[test]
    fn the_golden_example() {
        let report = Report {
            connections: Some(40),
            pod_name: Some("pod-abc".into()),
            pod_ip: Some("10.0.0.1".into()),
            node_name: Some("node-1".into()),
            ..Report::default()
        };
        let backend = BackendSnapshot {
            report: Some((report, Duration::from_millis(812))),
            load: Load { open: 12, connecting: 2, requests: 0 },
            estimate: 42,
            ..snapshot("http://a:3001", "10.0.0.1:3001")
        };
        let distribution = Distribution::new(vec![backend], vec![], 12, at(1_795_204_979));
        let expected = r#"{
  "timestamp": "2026-11-20T20:02:59Z",
  "services": [
    {
      "url": "http://a:3001",
      "connections": 42,
      "name": "default",
      "state": "up",
      "reported": 40,
      "reportAgeMs": 812,
      "own": 12,
      "connecting": 2,
      "estimate": 42
    }
  ],
  "podMetrics": {
    "http://a:3001": [
      {
        "agentsConnections": 40,
        "podName": "pod-abc",
        "podIP": "10.0.0.1",
        "nodeName": "node-1",
        "address": "10.0.0.1:3001",
        "state": "up"
      }
    ]
  },
  "totalConnections": 42,
  "agentsConnections": 42,
  "ownSessions": 12
}"#;
        assert_eq!(serde_json::to_string_pretty(&distribution).unwrap(), expected);
    }

    #[test]
    fn unknown_values_are_left_out() {
        let backend = BackendSnapshot {
            state: BackendState::Unknown,
            error: Some(ReportError::Status(500)),
            load: Load { open: 3, connecting: 0, requests: 5 },
            estimate: 3,
            ..snapshot("http://b:3001", "b:3001")
        };
        let json =
            serde_json::to_value(Distribution::new(vec![backend], vec![], 3, at(0))).unwrap();
        assert_eq!(
            json["podMetrics"]["http://b:3001"][0],
            serde_json::json!({
                "address": "b:3001", "state": "unknown", "error": "status 500, expected 200"
            })
        );
        assert_eq!(json["services"][0].get("reported"), None);
        assert_eq!(json.get("lookups"), None, "left out without lookups");
        assert_eq!(json["services"][0]["requests"], 5, "shown if there are any");
        assert_eq!(json["totalConnections"], 3);
    }

    #[test]
    fn a_failing_lookup_shows_its_error_and_for_how_long() {
        let pod = (*snapshot("http://chat:3001", "").backend).clone();
        let service = ServiceIds::default().get_or_issue("default");
        let pods = LookupStatus {
            target: LookupTarget::Pods { service, pod },
            source: "http://chat:3001".into(),
            addresses: 3,
            failure: Some(("SERVFAIL".into(), Duration::from_millis(1_500))),
        };
        let replicas = LookupStatus {
            target: LookupTarget::Replicas { services: vec![service] },
            source: "dns:wsbalancer".into(),
            addresses: 2,
            failure: None,
        };
        let distribution = Distribution::new(vec![], vec![pods, replicas], 0, at(0));
        assert_eq!(
            serde_json::to_value(distribution).unwrap()["lookups"],
            serde_json::json!([
                {
                    "source": "http://chat:3001", "service": "default", "known": 3,
                    "error": "SERVFAIL", "failingForMs": 1500
                },
                { "source": "dns:wsbalancer", "known": 2 }
            ])
        );
    }
}
