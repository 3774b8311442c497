//! The backends of one service, and the choice between them.

mod member;
mod pick_cache;
mod unseen;

use std::{sync::Arc, time::Instant};

use thiserror::Error;

use self::{
    member::PoolMember,
    pick_cache::{CommonTerms, PickCache},
    unseen::UnseenSessions,
};
use super::{
    affinity::Preference,
    backend::Backend,
    events::PoolEvent,
    health::Health,
    lease::{Lease, Purpose},
    poll::{Poll, PollTarget},
    settings::PoolSettings,
    snapshot::BackendSnapshot,
    strategy::{Candidates, Tier},
};
use crate::domain::report::{Report, ReportError};

/// Why a pick found no backend.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NoBackend {
    #[error("service has no pods")]
    Empty,
    #[error("all pods were tried without success")]
    AllTried,
    /// All backends that have not been tried have reached their limit of connections.
    #[error("all pods are full")]
    AllFull,
    /// All backends that have not been tried take no new connections.
    #[error("all pods are draining")]
    AllDraining,
    /// This replica's sessions have reached the service's limit.
    #[error("service is full (max_sessions reached)")]
    ServiceFull,
}

/// The backends of one service.
#[derive(Debug)]
pub struct Pool {
    settings: PoolSettings,
    members: Vec<PoolMember>,
    cache: PickCache,
    unseen: UnseenSessions,
    rng: fastrand::Rng,
    /// The number of picks so far.
    picks: usize,
    /// Reused by every pick.
    candidates: Candidates,
    /// An operator drains the whole service, including backends that join later.
    operator_drains: bool,
    /// The last pick found only ejected backends.
    all_ejected: bool,
    events: Vec<PoolEvent>,
}

impl Pool {
    /// Creates a pool of `backends`. `seed` decides the choice between equals.
    pub fn new(
        backends: impl IntoIterator<Item = Backend>,
        settings: PoolSettings,
        seed: u64,
    ) -> Self {
        let member = |backend| PoolMember::new(backend, &settings, Health::default());
        Self {
            members: backends.into_iter().map(member).collect(),
            cache: PickCache::default(),
            unseen: UnseenSessions::default(),
            settings,
            rng: fastrand::Rng::with_seed(seed),
            picks: 0,
            candidates: Candidates::default(),
            operator_drains: false,
            all_ejected: false,
            events: Vec::new(),
        }
    }

    /// Chooses a backend and returns a lease on it.
    ///
    /// The preferred backend is chosen if it is usable and not in `tried`, else the one that the
    /// strategy chooses among the usable ones. With least connections that is the backend with the
    /// smallest estimate for its weight; among equals the one with the fewest plain requests under
    /// way; among equals of these a random one.
    ///
    /// Cold backends that have had their share are chosen only if none is usable, ejected ones only
    /// if there is no other. Limits do not apply to plain requests, which add no connection.
    ///
    /// # Errors
    /// [`NoBackend`] if no backend may be chosen.
    pub fn pick(
        &mut self,
        purpose: Purpose,
        tried: &[Arc<Backend>],
        preference: Preference,
        now: Instant,
    ) -> Result<Lease, NoBackend> {
        let is_session = purpose == Purpose::Session;
        if is_session && self.settings.max_sessions.is_some() && self.is_full() {
            return Err(NoBackend::ServiceFull);
        }
        self.cache.refresh(&self.members, &self.settings, now);
        let common = CommonTerms {
            limit: self.settings.max_sessions_per_pod.map_or(u64::MAX, |limit| limit.get().into()),
            unseen: self.unseen.per_arrival(self.settings.replicas) / self.cache.totals.weight,
            arrivals: self.unseen.arrivals() as f64,
        };
        let needs_examination = self.cache.collect_loads(&mut self.candidates, common);
        if needs_examination || !tried.is_empty() {
            self.examine_unusable(purpose, tried, common, now);
        }
        let preferred = self.find_preferred(preference);
        let best = match self.candidates.narrow() {
            None => return Err(NoBackend::Empty),
            Some(Tier::Tried) => return Err(NoBackend::AllTried),
            Some(Tier::Draining) => return Err(NoBackend::AllDraining),
            Some(Tier::Full) => return Err(NoBackend::AllFull),
            Some(best) => best,
        };
        let requests = |at: usize| self.cache.backends[at].gauge.load().requests;
        let strategy = self.settings.strategy;
        let choose = || self.candidates.choose(strategy, self.picks, requests, &mut self.rng);
        let at = preferred.or_else(choose).ok_or(NoBackend::Empty)?;
        // After a failed attempt the rest of the backends does not stand for all.
        if tried.is_empty() {
            self.note_all_ejected(preferred.is_none() && best == Tier::Ejected);
        }
        self.picks += 1;
        if is_session {
            self.unseen.record_arrival();
        }
        let member = &mut self.members[at];
        if member.health.is_cold(now) {
            member.health.record_arrival();
        }
        Ok(Lease::new(member.backend.clone(), member.gauge.clone(), purpose))
    }

    /// Determines the tiers of the backends that have been tried or may not be usable.
    fn examine_unusable(
        &mut self,
        purpose: Purpose,
        tried: &[Arc<Backend>],
        common: CommonTerms,
        now: Instant,
    ) {
        let fair_share = 1.0 / self.cache.totals.backends.max(1) as f64;
        for (at, member) in self.members.iter_mut().enumerate() {
            if tried.contains(&member.backend) {
                self.candidates.set_tier(at, Tier::Tried, 0.0);
            } else if !self.candidates.is_usable(at) {
                self.events.extend(member.update_health(&self.settings, &mut self.rng, now));
                self.cache.replace(at, member, &self.settings, now);
                let estimate = member.estimate(&self.settings, now);
                let tier = member.tier(purpose, &self.settings, estimate, fair_share, now);
                let load = self.cache.backends[at].load(estimate, common);
                self.candidates.set_tier(at, tier, load);
            }
        }
    }

    /// Returns the backend that `preference` ranks highest, among those that may be chosen and are
    /// not ejected.
    fn find_preferred(&self, preference: Preference) -> Option<usize> {
        if preference == Preference::None {
            return None;
        }
        let eligible = self.candidates.better_than(Tier::Ejected);
        let score = |at: usize| Some((self.members[at].preference_score(preference)?, at));
        eligible.filter_map(score).max().map(|(_, at)| at)
    }

    fn note_all_ejected(&mut self, all_ejected: bool) {
        if all_ejected && !self.all_ejected {
            let service = self.members[0].backend.service.clone();
            self.events.push(PoolEvent::AllEjected { service });
        }
        self.all_ejected = all_ejected;
    }

    fn is_full(&self) -> bool {
        let loads = self.members.iter().map(|member| member.gauge.load());
        let taken: u64 = loads.map(|load| u64::from(load.open) + u64::from(load.connecting)).sum();
        let limit = self.settings.max_sessions.map_or(u64::MAX, |limit| limit.get().into());
        taken >= limit
    }

    /// Stores the result of a poll. A result is dropped if a later poll's has been stored already.
    ///
    /// An unreadable answer makes the count unknown at once; without an answer the last report goes
    /// stale in its time.
    pub fn record(&mut self, poll: Poll, result: Result<Report, ReportError>, now: Instant) {
        let same = |member: &PoolMember| Arc::ptr_eq(&member.backend, &poll.backend);
        let equal = || self.members.iter().position(|member| member.backend == poll.backend);
        let Some(at) = self.members.iter().position(same).or_else(equal) else { return };
        if self.members[at].has_newer_report_than(&poll) {
            return;
        }
        self.cache.refresh(&self.members, &self.settings, now);
        let arrivals = self.unseen.arrivals();
        let member = &mut self.members[at];
        let deviation = member.record(&poll, result, arrivals, &self.settings, now);
        self.events.extend(member.update_health(&self.settings, &mut self.rng, now));
        self.events.extend(member.drain_events());
        if let Some(deviation) = deviation {
            let totals = self.cache.totals;
            let share = deviation.arrivals as f64 * member.weight() / totals.weight;
            self.unseen.record_deviation(deviation.unexpected, share, totals.backends);
        }
        self.cache.update(at, &self.members, &self.settings, now);
    }

    /// Returns the events since the last call.
    pub fn take_events(&mut self) -> Vec<PoolEvent> {
        std::mem::take(&mut self.events)
    }

    /// Empties the pool because the settings no longer name its service. Its backends drain, and an
    /// operator's drain of the service ends, so that it does not apply if the service comes back.
    pub fn remove_all_backends(&mut self, now: Instant) {
        self.operator_drains = false;
        self.set_backends(Vec::new(), now);
    }

    /// Replaces the set of backends.
    ///
    /// New backends start cold, unless there was none before. Missing ones drain, and are removed
    /// after the grace period, once they have no sessions. Backends that come back within it are as
    /// they were. A different spelling of a URL changes nothing else.
    pub fn set_backends(&mut self, backends: Vec<Backend>, now: Instant) {
        let was_empty = self.members.iter().all(|member| member.left_at.is_some());
        for member in &mut self.members {
            let Some(backend) = backends.iter().find(|backend| **backend == *member.backend) else {
                member.left_at = member.left_at.or(Some(now));
                continue;
            };
            if backend.url != member.backend.url {
                member.backend = Arc::new(backend.clone());
            }
            if let Some(left_at) = member.left_at.take()
                && now.saturating_duration_since(left_at) > self.settings.grace
            {
                member.health.reset(&member.gauge.failures, &self.settings.health, now);
            }
        }
        self.remove_expired(now);
        for backend in backends {
            if self.members.iter().any(|member| *member.backend == backend) {
                continue;
            }
            let health = match was_empty {
                true => Health::default(),
                false => Health::new_cold(&self.settings.health, now),
            };
            let mut member = PoolMember::new(backend, &self.settings, health);
            member.operator_drains = self.operator_drains;
            self.members.push(member);
        }
        self.cache.invalidate();
        self.events.extend(self.members.iter_mut().flat_map(PoolMember::drain_events));
    }

    /// Discards derived data, which the next pick computes anew. Call this after a panic may have
    /// interrupted another method.
    pub fn invalidate_cache(&mut self) {
        self.cache.invalidate();
    }

    /// Starts or ends an operator's drain of the backends at `address`; without an address, of the
    /// whole service, including backends that join later. Drains for other reasons go on.
    ///
    /// Returns the backends concerned.
    pub fn set_operator_drain(&mut self, address: Option<&str>, drains: bool) -> Vec<Arc<Backend>> {
        if address.is_none() {
            self.operator_drains = drains;
        }
        let is_concerned =
            |member: &&mut PoolMember| address.is_none_or(|it| member.backend.address == it);
        let mut concerned = Vec::new();
        for member in self.members.iter_mut().filter(is_concerned) {
            member.operator_drains = drains;
            self.events.extend(member.drain_events());
            concerned.push(member.backend.clone());
        }
        self.cache.invalidate();
        concerned
    }

    /// Removes backends that left the service longer than the grace period ago and have no session.
    pub fn remove_expired(&mut self, now: Instant) {
        let grace = self.settings.grace;
        let count = self.members.len();
        for member in self.members.extract_if(.., |member| member.is_removable(grace, now)) {
            self.events.push(PoolEvent::Removed { backend: member.backend });
        }
        if self.members.len() != count {
            self.cache.invalidate();
        }
    }

    /// Applies new settings. Reports, counts and health of the backends stay.
    pub fn set_settings(&mut self, settings: PoolSettings) {
        self.settings = settings;
        for member in &mut self.members {
            member.apply_settings(&self.settings);
        }
        self.cache.invalidate();
    }

    /// Sets the number of replicas that share the pods; 0 counts as 1.
    pub fn set_replicas(&mut self, replicas: u32) {
        self.settings.replicas = replicas.max(1);
        self.cache.invalidate();
    }

    pub fn replicas(&self) -> u32 {
        self.settings.replicas
    }

    /// Returns a poll target for each backend.
    pub fn poll_targets(&self) -> Vec<PollTarget> {
        let target =
            |member: &PoolMember| PollTarget::new(member.backend.clone(), member.gauge.clone());
        self.members.iter().map(target).collect()
    }

    /// Returns the error of the last poll of `backend`, if it failed.
    pub fn last_error(&self, backend: &Backend) -> Option<&ReportError> {
        self.members.iter().find(|member| *member.backend == *backend)?.error.as_ref()
    }

    /// Returns a snapshot of each backend, in configured order.
    pub fn snapshot(&mut self, now: Instant) -> Vec<BackendSnapshot> {
        for member in &mut self.members {
            self.events.extend(member.update_health(&self.settings, &mut self.rng, now));
        }
        self.members.iter().map(|member| member.snapshot(&self.settings, now)).collect()
    }
}

#[cfg(test)]
mod tests;
