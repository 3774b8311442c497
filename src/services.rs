//! From settings to what the control actors are told to do.

use crate::{
    actors::{
        discovery::{Subject, Watch},
        metrics::ServiceRules,
        poll::PollSettings,
    },
    config::{Config, ServiceSettings},
    domain::balance::pool::PoolSettings,
    net::dns::DnsSource,
};

/// Which service the control actors know by which number, as long as the process lives: a number is
/// never another name's, whatever services come and go.
#[derive(Clone, Debug, Default)]
pub struct Indexes(Vec<String>);

impl Indexes {
    /// The index of the service called `name`, if it has ever been there.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|known| known == name)
    }

    fn of(&mut self, name: &str) -> usize {
        self.find(name).unwrap_or_else(|| {
            self.0.push(name.to_owned());
            self.0.len() - 1
        })
    }

    /// What each service is to be, with its index. Services that are new get the next ones, in order.
    pub fn rules(&mut self, config: &Config) -> Vec<(usize, ServiceRules)> {
        config.services.iter().map(|service| (self.of(&service.name), rules(service))).collect()
    }

    /// What is looked up: pods for each service, replicas once for all that count them alike.
    pub fn lookups(&mut self, config: &Config) -> Vec<Watch> {
        let mut lookups: Vec<Watch> = Vec::new();
        for ServiceSettings { name, discovery, balancer, .. } in &config.services {
            let index = self.of(name);
            let resolver = balancer.resolver_settings();
            if let Some(name) = &balancer.replicas_name {
                let lookup = DnsSource::Host { name: name.clone(), port: 0 };
                let same = |watch: &&mut Watch| {
                    matches!(watch.subject, Subject::Replicas { .. })
                        && watch.lookup == lookup
                        && watch.resolver == resolver
                };
                match lookups.iter_mut().find(same).map(|watch| &mut watch.subject) {
                    Some(Subject::Replicas { services }) => services.push(index),
                    _ => lookups.push(Watch {
                        source: format!("dns:{}", name.as_str()),
                        lookup,
                        resolver: resolver.clone(),
                        subject: Subject::Replicas { services: vec![index] },
                    }),
                }
            }
            if let Some(discovery) = discovery {
                let (source, lookup) = (discovery.pod.url.clone(), discovery.source.clone());
                let subject = Subject::Pods { service: index, pod: discovery.pod.clone() };
                lookups.push(Watch { source, lookup, resolver, subject });
            }
        }
        lookups
    }
}

/// How the pods of a service are chosen and polled.
fn rules(service: &ServiceSettings) -> ServiceRules {
    let balancer = &service.balancer;
    let settings = PoolSettings {
        strategy: balancer.strategy,
        replicas: balancer.replicas,
        stale_after: balancer.stale_after,
        max_sessions: balancer.max_sessions,
        max_sessions_per_pod: balancer.max_sessions_per_pod,
        health: balancer.health,
        grace: balancer.discovery_grace,
        affinity_key: balancer.affinity_key().cloned(),
        shares: service.shares.clone(),
    };
    let polls = balancer.question.clone().map(|question| PollSettings {
        question,
        port: balancer.metric_port,
        interval: balancer.poll_interval,
        timeout: balancer.poll_timeout,
        connect: balancer.connect_settings(),
    });
    ServiceRules {
        service: service.name.clone(),
        settings,
        counts_replicas: balancer.replicas_name.is_some(),
        backends: service.discovery.is_none().then(|| service.backends.clone()),
        polls,
        rebalance: balancer.rebalance,
        pod_drain_time: balancer.pod_drain_time,
        closes_ejected: balancer.closes_ejected,
    }
}
