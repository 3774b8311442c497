//! What pods are polled for: their metric route in one of three formats, or only their health.

use std::sync::Arc;

use crate::{
    config::{parse::parse_path, reader::Reader},
    domain::report::{
        AgentReader, JsonReader, Pointer, PrometheusReader, SettingError, query::ReportQuery,
    },
};

/// Formats of a pod's metric route.
const FORMATS: [(&str, &str); 3] =
    [("json", "json"), ("prometheus", "prometheus"), ("agent", "agent")];

/// Reads what pods are polled for; `None` if they are not polled.
pub(super) fn read_query(reader: &mut Reader) -> Option<ReportQuery> {
    let has_no_route =
        reader.value("balancer.metric_path", |text| Ok(["", "none"].contains(&text)));
    let metric_path = (!has_no_route).then(|| reader.path("balancer.metric_path"));
    let format = reader.choice("balancer.metric_format", &FORMATS);
    let json = JsonReader {
        count: reader.value("balancer.metric_count", |text| {
            let advice = "expected a JSON pointer such as /agentsConnections";
            parse_pointer(text)?.ok_or_else(|| advice.to_owned())
        }),
        max: reader.value("balancer.metric_max", parse_pointer),
        weight: reader.value("balancer.metric_weight", parse_pointer),
        draining: reader.value("balancer.metric_draining", parse_pointer),
    };
    let name = reader.value("balancer.metric_name", |text| match text {
        "" => Ok(None),
        name => name.parse().map(Some).map_err(|error: SettingError| error.to_string()),
    });
    let labels = reader.list("balancer.metric_labels", |text| {
        text.parse().map_err(|error: SettingError| error.to_string())
    });
    let health_path = reader.optional_text("balancer.health_path");
    let health_tcp = reader.boolean("balancer.health_tcp");
    if format == "prometheus" && name.is_none() {
        let advice =
            "is required by metric_format = \"prometheus\": set it to the name of a metric";
        reader.add_problem("balancer.metric_name", advice);
    }
    if let Some(path) = &health_path
        && let Err(advice) = parse_path(path)
    {
        reader.add_problem("balancer.health_path", advice);
    }
    match (format, metric_path, name) {
        ("agent", ..) => Some(ReportQuery::Agent(Arc::new(AgentReader))),
        ("prometheus", Some(path), Some(name)) => {
            Some(ReportQuery::Metric { path, reader: Arc::new(PrometheusReader { name, labels }) })
        }
        (_, Some(path), _) => Some(ReportQuery::Metric { path, reader: Arc::new(json) }),
        (_, None, _) => match health_path {
            Some(path) => Some(ReportQuery::Health(path)),
            None => health_tcp.then_some(ReportQuery::Connect),
        },
    }
}

/// Parses a JSON pointer (RFC 6901); `None` for an empty text.
fn parse_pointer(text: &str) -> Result<Option<Pointer>, String> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|error: SettingError| error.to_string()),
    }
}
