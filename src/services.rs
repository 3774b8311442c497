//! Translates the settings of services into the rules that the control actors apply.

use crate::{
    actors::{
        discovery::{Lookup, LookupTarget},
        metrics::ServiceRules,
        poll::PollSettings,
    },
    config::{Config, ServiceSettings},
    domain::service_id::{ServiceId, ServiceIds},
    net::dns::DnsSource,
};

/// Returns the rules of every service in `config`. Services without an id get the next ones, in
/// configured order.
pub fn rules(ids: &mut ServiceIds, config: &Config) -> Vec<(ServiceId, ServiceRules)> {
    let rules =
        |service: &ServiceSettings| (ids.get_or_issue(&service.name), service_rules(service));
    config.services.iter().map(rules).collect()
}

/// Returns the DNS lookups that `config` asks for: one for each discovered service, and one for
/// each way of counting replicas, shared by all services that count them the same way.
pub fn lookups(ids: &mut ServiceIds, config: &Config) -> Vec<Lookup> {
    let mut lookups: Vec<Lookup> = Vec::new();
    for ServiceSettings { name, discovery, balancer, .. } in &config.services {
        let id = ids.get_or_issue(name);
        let resolver = balancer.resolver.clone();
        if let Some(name) = &balancer.replicas_name {
            let query = DnsSource::Host { name: name.clone(), port: 0 };
            let same = |lookup: &&mut Lookup| {
                matches!(lookup.target, LookupTarget::Replicas { .. })
                    && lookup.query == query
                    && lookup.resolver == resolver
            };
            match lookups.iter_mut().find(same).map(|lookup| &mut lookup.target) {
                Some(LookupTarget::Replicas { services }) => services.push(id),
                _ => lookups.push(Lookup {
                    source: format!("dns:{}", name.as_str()),
                    query,
                    resolver: resolver.clone(),
                    target: LookupTarget::Replicas { services: vec![id] },
                }),
            }
        }
        if let Some(discovery) = discovery {
            let (source, query) = (discovery.pod.url.clone(), discovery.source.clone());
            let target = LookupTarget::Pods { service: id, pod: discovery.pod.clone() };
            lookups.push(Lookup { source, query, resolver, target });
        }
    }
    lookups
}

fn service_rules(service: &ServiceSettings) -> ServiceRules {
    let balancer = &service.balancer;
    let polls = balancer.question.clone().map(|question| PollSettings {
        question,
        port: balancer.metric_port,
        interval: balancer.poll_interval,
        timeout: balancer.poll_timeout,
        connect: balancer.connect.clone(),
    });
    ServiceRules {
        service: service.name.clone(),
        settings: balancer.pool.clone(),
        counts_replicas: balancer.replicas_name.is_some(),
        backends: service.discovery.is_none().then(|| service.backends.clone()),
        polls,
        rebalance: balancer.rebalance,
        pod_drain_time: balancer.pod_drain_time,
        closes_ejected: balancer.closes_ejected,
    }
}
