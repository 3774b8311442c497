//! Limits the number of sessions, in total and per client address.

use std::{
    collections::HashMap,
    net::IpAddr,
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
};

use thiserror::Error;

/// Limits for the number of sessions. `None` means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionLimits {
    /// Most sessions in total.
    pub sessions: Option<NonZeroU32>,
    /// Most sessions of one client address.
    pub sessions_per_address: Option<NonZeroU32>,
}

/// The limit that a new session would exceed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum LimitReached {
    /// [`SessionLimits::sessions`]
    #[error("session limit reached")]
    Sessions,
    /// [`SessionLimits::sessions_per_address`]
    #[error("session limit for your address reached")]
    SessionsPerAddress,
}

/// Counts the admitted sessions.
#[derive(Debug, Default)]
pub struct Admission {
    counts: Mutex<Counts>,
}

/// Counts also without limits, because a reload may set limits later.
#[derive(Debug, Default)]
struct Counts {
    limits: SessionLimits,
    sessions: u32,
    /// Addresses with at least one session.
    addresses: HashMap<IpAddr, u32>,
}

/// An admitted session. Dropping it frees its share of the limits.
#[derive(Debug)]
pub struct Ticket {
    admission: Arc<Admission>,
    address: IpAddr,
}

impl Admission {
    pub fn new(limits: SessionLimits) -> Self {
        Self { counts: Mutex::new(Counts { limits, ..Counts::default() }) }
    }

    /// Applies new limits. Admitted sessions stay, and they count.
    pub fn set_limits(&self, limits: SessionLimits) {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).limits = limits;
    }

    /// Returns whether no session is admitted.
    pub fn is_empty(&self) -> bool {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).sessions == 0
    }

    /// Admits a session of `address`.
    ///
    /// # Errors
    /// The limit that the session would exceed.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Ticket, LimitReached> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let SessionLimits { sessions, sessions_per_address } = counts.limits;
        if sessions.is_some_and(|limit| counts.sessions >= limit.get()) {
            return Err(LimitReached::Sessions);
        }
        let held = counts.addresses.get(&address).copied().unwrap_or_default();
        if sessions_per_address.is_some_and(|limit| held >= limit.get()) {
            return Err(LimitReached::SessionsPerAddress);
        }
        counts.addresses.insert(address, held + 1);
        counts.sessions += 1;
        Ok(Ticket { admission: self.clone(), address })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut counts = self.admission.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.sessions -= 1;
        if let Some(held) = counts.addresses.get_mut(&self.address) {
            *held -= 1;
            if *held == 0 {
                counts.addresses.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(sessions: u32, per_address: u32) -> Arc<Admission> {
        Arc::new(Admission::new(SessionLimits {
            sessions: NonZeroU32::new(sessions),
            sessions_per_address: NonZeroU32::new(per_address),
        }))
    }

    fn address(last: u8) -> IpAddr {
        [127, 0, 0, last].into()
    }

    #[test]
    fn each_limit_is_reported_and_freed_by_dropping_a_ticket() {
        let admission = admission(3, 2);
        let first = admission.admit(address(1)).unwrap();
        let _second = admission.admit(address(1)).unwrap();
        assert_eq!(admission.admit(address(1)).unwrap_err(), LimitReached::SessionsPerAddress);
        let _third = admission.admit(address(2)).unwrap();
        assert_eq!(admission.admit(address(3)).unwrap_err(), LimitReached::Sessions);
        drop(first);
        assert!(admission.admit(address(1)).is_ok());
    }

    #[test]
    fn addresses_without_sessions_are_removed() {
        let admission = admission(0, 1);
        drop(admission.admit(address(1)).unwrap());
        assert!(admission.counts.lock().unwrap().addresses.is_empty());
    }

    #[test]
    fn new_limits_count_the_sessions_that_were_admitted_before() {
        let admission = admission(0, 0);
        let held = [1, 1, 2].map(|last| admission.admit(address(last)).unwrap());
        let limits = |sessions, per_address| SessionLimits {
            sessions: NonZeroU32::new(sessions),
            sessions_per_address: NonZeroU32::new(per_address),
        };
        admission.set_limits(limits(0, 2));
        assert_eq!(admission.admit(address(1)).unwrap_err(), LimitReached::SessionsPerAddress);
        admission.set_limits(limits(2, 0));
        assert_eq!(admission.admit(address(3)).unwrap_err(), LimitReached::Sessions);
        drop(held);
        assert!(admission.admit(address(3)).is_ok());
    }
}
