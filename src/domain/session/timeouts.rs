//! Decides when a session times out, and when a side gets a Ping to check whether it is alive.
//!
//! Sessions have no timers. They are scanned periodically, and a change is assumed to have happened by
//! the time of the scan that finds it. So a timeout is late by at most two
//! [scan intervals](SessionTimeouts::scan_interval), and Pings are sent that much earlier so that a
//! dead side is found in time.

use std::time::Duration;

use super::{ending::Ending, side::Side};

/// Shortest and longest time between two scans.
const SCAN_INTERVALS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(2));

/// Scans within the shortest timeout.
const SCANS_PER_TIMEOUT: u32 = 8;

/// Scans within the shortest of the timeouts that apply only to the end of a session.
const SCANS_PER_CLOSE_TIMEOUT: u32 = 4;

/// Timeouts and Ping intervals of a session. `None` means never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionTimeouts {
    /// Time without a byte in either direction.
    pub idle_timeout: Option<Duration>,
    /// Time for which a side does not read although bytes wait for it.
    pub write_timeout: Option<Duration>,
    /// Time without a byte in either direction after one side has ended or sent a Close frame.
    pub half_closed_timeout: Duration,
    /// Time from our own Close frame, or from the death of a side, to the end of the session.
    pub close_timeout: Duration,
    pub max_age: Option<Duration>,
    /// Time without a byte from the client until it gets a Ping.
    pub client_ping_interval: Option<Duration>,
    /// Time without a byte from the pod until it gets a Ping.
    pub pod_ping_interval: Option<Duration>,
    /// Time from a Ping to the next byte of the side that got it.
    pub ping_timeout: Duration,
}

impl SessionTimeouts {
    /// Returns the time between two scans of a session.
    pub fn scan_interval(&self) -> Duration {
        let optional = [
            self.idle_timeout,
            self.write_timeout,
            self.max_age,
            self.client_ping_interval,
            self.pod_ping_interval,
        ];
        let ping_interval = self.client_ping_interval.or(self.pod_ping_interval);
        let all = optional.into_iter().chain([ping_interval.map(|_| self.ping_timeout)]);
        let (shortest, longest) = SCAN_INTERVALS;
        let interval = all.flatten().min().map_or(longest, |timeout| timeout / SCANS_PER_TIMEOUT);
        let at_the_end = self.half_closed_timeout.min(self.close_timeout) / SCANS_PER_CLOSE_TIMEOUT;
        interval.min(at_the_end).clamp(shortest, longest)
    }

    fn ping_interval(&self, side: Side) -> Option<Duration> {
        match side {
            Side::Client => self.client_ping_interval,
            Side::Pod => self.pod_ping_interval,
        }
    }
}

/// The activity of a session as a scan finds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionActivity {
    /// By [`Side`].
    pub sides: [SideActivity; 2],
    /// Whether one side has ended, or a Close frame has passed.
    pub is_half_closed: bool,
    /// Whether a Close frame of ours is on its way, or one side is dead and nothing more comes from it.
    /// From here on `close_timeout` counts.
    pub is_closing: bool,
}

/// The activity of one side. Of counters the lowest 32 bits are enough, because only changes matter.
/// The size matters, because every session has one of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SideActivity {
    /// Bytes relayed from it, without the Pongs that answer our Pings.
    pub relayed: u32,
    /// All bytes received from it.
    pub received: u32,
    /// Bytes that wait to be written to it.
    pub pending: u32,
    /// Pings that it has got from us.
    pub pings: u32,
}

/// The action that a session needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeoutAction {
    /// Send a Ping to this side.
    Ping(Side),
    /// End the session with Close frames.
    End(Ending),
    /// Cut the session: there was enough time to end it with Close frames.
    Abort,
}

/// What the scans have found out about one session so far.
#[derive(Debug)]
pub struct TimeoutState {
    activity: SessionActivity,
    scanned_at: Centis,
    active_at: Centis,
    closing_at: Option<Centis>,
    opened_at: Centis,
    age_jitter: f32,
    sides: [SideState; 2],
}

/// Hundredths of a second since a fixed moment. They wrap around after 497 days, so only the difference
/// of two of them is meaningful, and only up to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Centis(u32);

impl Centis {
    fn new(since: Duration) -> Self {
        Self((since.as_millis() / 10) as u32)
    }

    fn age(self, now: Self) -> Duration {
        // The clock of one thread never goes back.
        Duration::from_millis(10) * now.0.wrapping_sub(self.0)
    }

    fn is_older_than(self, limit: Duration, now: Self) -> bool {
        self.age(now) >= limit
    }
}

/// When one side was last known to be alive.
#[derive(Debug)]
struct SideState {
    received_at: Centis,
    /// When it last read, or had nothing to read.
    read_at: Centis,
    ping: PingState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PingState {
    NotNeeded,
    /// Waits for a frame boundary or for buffer space.
    Scheduled,
    /// Sent at this time and not answered.
    Sent(Centis),
}

impl TimeoutState {
    /// Starts with a session that opens `now`. `age_jitter`, from 0 to 1, shortens its maximum age by
    /// up to a tenth, so that sessions that opened together do not end together.
    pub fn new(age_jitter: f32, now: Duration) -> Self {
        let at = Centis::new(now);
        let side = || SideState { received_at: at, read_at: at, ping: PingState::NotNeeded };
        Self {
            activity: SessionActivity::default(),
            scanned_at: at,
            active_at: at,
            closing_at: None,
            opened_at: at,
            age_jitter,
            sides: [side(), side()],
        }
    }

    /// Records the activity that a scan found and returns the action that it requires. `now` is the
    /// time since a fixed moment.
    pub fn scan(
        &mut self,
        activity: SessionActivity,
        timeouts: &SessionTimeouts,
        now: Duration,
    ) -> Option<TimeoutAction> {
        let now = Centis::new(now);
        self.update(activity, now);
        if let Some(closing_at) = self.closing_at {
            let is_over = closing_at.is_older_than(timeouts.close_timeout, now);
            return is_over.then_some(TimeoutAction::Abort);
        }
        for side in Side::BOTH {
            let read_at = self.sides[side as usize].read_at;
            if timeouts.write_timeout.is_some_and(|limit| read_at.is_older_than(limit, now)) {
                return Some(TimeoutAction::End(Ending::Stalled(side)));
            }
        }
        let is_too_old = timeouts.max_age.is_some_and(|age| {
            let age = age.mul_f64(1.0 - f64::from(self.age_jitter) / 10.0);
            self.opened_at.is_older_than(age, now)
        });
        if activity.is_half_closed {
            if is_too_old {
                // The other side may have sent its Close just now: it gets close_timeout to answer.
                self.closing_at = Some(now);
            }
            let is_over = self.active_at.is_older_than(timeouts.half_closed_timeout, now);
            return is_over.then_some(TimeoutAction::Abort);
        }
        if timeouts.idle_timeout.is_some_and(|limit| self.active_at.is_older_than(limit, now)) {
            return Some(TimeoutAction::End(Ending::Idle));
        }
        if is_too_old {
            return Some(TimeoutAction::End(Ending::MaxAge));
        }
        Side::BOTH.into_iter().find_map(|side| self.check_ping(side, timeouts, now))
    }

    /// Returns for how long no byte has passed `now`, according to the scans.
    pub fn idle(&self, now: Duration) -> Duration {
        self.active_at.age(Centis::new(now))
    }

    fn update(&mut self, activity: SessionActivity, now: Centis) {
        let mut rest_is_read = false;
        for side in Side::BOTH {
            let (at, other) = (side as usize, side.other() as usize);
            let (before, current) = (&self.activity.sides[at], &activity.sides[at]);
            // Bytes of one side wait for the other side.
            let (other_before, other_current) =
                (&self.activity.sides[other], &activity.sides[other]);
            let state = &mut self.sides[at];
            // While the other side does not read, this side's bytes stay unread, Pongs among them.
            if current.received != before.received || other_current.pending > 0 {
                // At the earliest: no Ping may be sent too late.
                state.received_at = self.scanned_at;
                state.ping = PingState::NotNeeded;
            }
            let other_sends = other_current.relayed != other_before.relayed;
            if current.pending == 0 || current.pending != before.pending || other_sends {
                state.read_at = now;
            }
            if current.pings != before.pings && state.ping == PingState::Scheduled {
                state.ping = PingState::Sent(self.scanned_at);
            }
            if current.relayed != before.relayed || current.pending != before.pending {
                self.active_at = now;
            }
            rest_is_read |= current.pending < before.pending && !other_sends;
        }
        if activity.is_half_closed && !self.activity.is_half_closed {
            self.active_at = now;
        }
        if activity.is_closing && (self.closing_at.is_none() || rest_is_read) {
            self.closing_at = Some(now);
        }
        self.activity = activity;
        self.scanned_at = now;
    }

    fn check_ping(
        &mut self,
        side: Side,
        timeouts: &SessionTimeouts,
        now: Centis,
    ) -> Option<TimeoutAction> {
        let interval = timeouts.ping_interval(side)?.saturating_sub(2 * timeouts.scan_interval());
        let state = &mut self.sides[side as usize];
        match state.ping {
            PingState::NotNeeded if state.received_at.is_older_than(interval, now) => {
                state.ping = PingState::Scheduled;
                Some(TimeoutAction::Ping(side))
            }
            PingState::Sent(at) if at.is_older_than(timeouts.ping_timeout, now) => {
                Some(TimeoutAction::End(Ending::Silent(side)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: SessionTimeouts = SessionTimeouts {
        idle_timeout: Some(Duration::from_secs(100)),
        write_timeout: Some(Duration::from_secs(10)),
        half_closed_timeout: Duration::from_secs(30),
        close_timeout: Duration::from_secs(5),
        max_age: None,
        client_ping_interval: None,
        pod_ping_interval: None,
        ping_timeout: Duration::from_secs(8),
    };

    /// A session that is scanned once a second.
    struct Session {
        state: TimeoutState,
        timeouts: SessionTimeouts,
        activity: SessionActivity,
        now: Duration,
    }

    impl Session {
        fn new(timeouts: SessionTimeouts) -> Self {
            let now = Duration::from_secs(1_000);
            Self {
                state: TimeoutState::new(0.5, now),
                timeouts,
                activity: SessionActivity::default(),
                now,
            }
        }

        /// Returns the first action within `seconds`, and after how many seconds it comes.
        fn wait(&mut self, seconds: u64) -> Option<(u64, TimeoutAction)> {
            (1..=seconds).find_map(|second| {
                self.now += Duration::from_secs(1);
                let action = self.state.scan(self.activity, &self.timeouts, self.now)?;
                Some((second, action))
            })
        }

        fn side(&mut self, side: Side) -> &mut SideActivity {
            &mut self.activity.sides[side as usize]
        }

        fn sends(&mut self, side: Side) {
            let activity = self.side(side);
            (activity.relayed, activity.received) = (activity.relayed + 1, activity.received + 1);
        }
    }

    #[test]
    fn a_session_is_idle_when_neither_side_sends() {
        let mut session = Session::new(TIMEOUTS);
        for side in [Side::Client, Side::Pod, Side::Client] {
            assert_eq!(session.wait(90), None);
            session.sends(side);
        }
        assert_eq!(session.wait(200), Some((101, TimeoutAction::End(Ending::Idle))));
        session.activity.is_closing = true;
        assert_eq!(
            session.wait(200),
            Some((6, TimeoutAction::Abort)),
            "the Close was not answered in time"
        );
        let mut endless = Session::new(SessionTimeouts { idle_timeout: None, ..TIMEOUTS });
        assert_eq!(endless.wait(1_000), None);
    }

    #[test]
    fn a_side_that_does_not_read_times_out_and_a_slow_one_does_not() {
        for side in [Side::Client, Side::Pod] {
            let mut session = Session::new(TIMEOUTS);
            session.side(side).pending = 5_000;
            for _ in 0..20 {
                assert_eq!(session.wait(9), None);
                session.side(side).pending -= 1;
            }
            // Between two scans everything is read and as many bytes wait again.
            session.sends([Side::Pod, Side::Client][side as usize]);
            assert_eq!(session.wait(9), None);
            let stalled = TimeoutAction::End(Ending::Stalled(side));
            assert_eq!(session.wait(100), Some((2, stalled)));
        }
        let mut patient = Session::new(SessionTimeouts { write_timeout: None, ..TIMEOUTS });
        patient.side(Side::Pod).pending = 1;
        assert_eq!(patient.wait(99), None);
    }

    #[test]
    fn a_half_closed_session_is_cut_when_no_more_bytes_come() {
        let mut session = Session::new(TIMEOUTS);
        session.activity.is_half_closed = true;
        for _ in 0..10 {
            assert_eq!(session.wait(29), None);
            session.sends(Side::Pod);
        }
        assert_eq!(session.wait(100), Some((31, TimeoutAction::Abort)));
    }

    #[test]
    fn half_closed_timeout_counts_from_the_end_of_the_first_side() {
        let mut session = Session::new(TIMEOUTS);
        assert_eq!(session.wait(90), None);
        session.activity.is_half_closed = true;
        assert_eq!(session.wait(100), Some((31, TimeoutAction::Abort)));
    }

    #[test]
    fn a_side_that_still_reads_the_rest_is_not_cut() {
        for (sends_on, cut_after) in [(false, 10 * 4 + 6), (true, 6)] {
            let mut session = Session::new(TIMEOUTS);
            session.side(Side::Client).pending = 100;
            assert_eq!(session.wait(1), None);
            session.activity.is_closing = true;
            let mut seconds = 0;
            let action = loop {
                if let Some((_, action)) = session.wait(1) {
                    break action;
                }
                seconds += 1;
                if seconds % 4 == 0 && seconds <= 40 {
                    session.side(Side::Client).pending -= 1;
                }
                // The pod sends on, as in a frame without end.
                if sends_on {
                    session.sends(Side::Pod);
                }
            };
            assert_eq!((seconds + 1, action), (cut_after, TimeoutAction::Abort));
        }
    }

    #[test]
    fn a_half_closed_session_reaches_its_maximum_age_too() {
        let timeouts = SessionTimeouts { max_age: Some(Duration::from_secs(100)), ..TIMEOUTS };
        let mut session = Session::new(timeouts);
        session.activity.is_half_closed = true;
        let mut seconds = 0;
        let action = loop {
            session.sends(Side::Pod);
            seconds += 1;
            if let Some((_, action)) = session.wait(1) {
                break action;
            }
            assert!(seconds < 200, "the session is still open");
        };
        assert_eq!((seconds, action), (95 + 5, TimeoutAction::Abort), "after close_timeout");
    }

    #[test]
    fn time_stamps_may_wrap_around() {
        let wrap = Duration::from_millis(10) * u32::MAX;
        let timeouts = SessionTimeouts { max_age: Some(Duration::from_secs(150)), ..TIMEOUTS };
        for (sends, end) in [(false, (100, Ending::Idle)), (true, (150, Ending::MaxAge))] {
            for before in [0, 50, 120].map(Duration::from_secs) {
                let now = wrap - before;
                let state = TimeoutState::new(0.0, now);
                let mut session =
                    Session { state, timeouts, activity: SessionActivity::default(), now };
                let ended = (1..=200).find_map(|second| {
                    if sends {
                        session.sends(Side::Client);
                    }
                    Some((second, session.wait(1)?.1))
                });
                assert_eq!(ended, Some((end.0, TimeoutAction::End(end.1))), "{before:?}");
            }
        }
    }

    #[test]
    fn maximum_age_varies_by_a_tenth() {
        let timeouts = SessionTimeouts { max_age: Some(Duration::from_secs(50)), ..TIMEOUTS };
        let end = |jitter| {
            let state = TimeoutState::new(jitter, Duration::ZERO);
            let mut session = Session {
                state,
                timeouts,
                activity: SessionActivity::default(),
                now: Duration::ZERO,
            };
            session.wait(100)
        };
        assert_eq!(end(0.0), Some((50, TimeoutAction::End(Ending::MaxAge))));
        assert_eq!(end(1.0), Some((45, TimeoutAction::End(Ending::MaxAge))));
    }

    #[test]
    fn a_silent_side_gets_a_ping_and_times_out_without_an_answer() {
        let timeouts =
            SessionTimeouts { client_ping_interval: Some(Duration::from_secs(20)), ..TIMEOUTS };
        let mut session = Session::new(timeouts);
        assert_eq!(session.wait(15), None);
        session.sends(Side::Pod);
        assert_eq!(
            session.wait(100),
            Some((3, TimeoutAction::Ping(Side::Client))),
            "bytes of the pod do not count"
        );
        assert_eq!(session.wait(15), None, "the Ping is not sent yet");
        session.side(Side::Client).pings += 1;
        assert_eq!(session.wait(7), None);
        // A Pong that answers our Ping is received and not relayed.
        session.side(Side::Client).received += 14;
        assert_eq!(session.wait(100), Some((18, TimeoutAction::Ping(Side::Client))));
        session.side(Side::Client).pings += 1;
        let silent = TimeoutAction::End(Ending::Silent(Side::Client));
        assert_eq!(session.wait(100), Some((8, silent)));
    }

    #[test]
    fn a_silent_side_times_out_in_time_wherever_its_last_byte_falls() {
        let (interval, scan_interval) = (Duration::from_secs(16), Duration::from_secs(1));
        let timeouts = SessionTimeouts { client_ping_interval: Some(interval), ..TIMEOUTS };
        assert_eq!(timeouts.scan_interval(), scan_interval);
        let longest = interval + timeouts.ping_timeout;
        for last_byte_at in (0..3_000).step_by(50).map(Duration::from_millis) {
            let mut session = Session::new(timeouts);
            let last_byte_at = session.now + last_byte_at;
            let timed_out_at = loop {
                session.now += scan_interval;
                if session.now > last_byte_at {
                    (session.activity.sides[0].relayed, session.activity.sides[0].received) =
                        (1, 1);
                }
                match session.state.scan(session.activity, &timeouts, session.now) {
                    Some(TimeoutAction::Ping(Side::Client)) => {
                        session.side(Side::Client).pings += 1
                    }
                    Some(action) => {
                        assert_eq!(action, TimeoutAction::End(Ending::Silent(Side::Client)));
                        break session.now;
                    }
                    None => {}
                }
            };
            let after = timed_out_at - last_byte_at;
            assert!(after <= longest && after >= longest - 3 * scan_interval, "{after:?}");
        }
    }

    #[test]
    fn pongs_do_not_keep_an_idle_session_open() {
        let timeouts =
            SessionTimeouts { pod_ping_interval: Some(Duration::from_secs(20)), ..TIMEOUTS };
        let mut session = Session::new(timeouts);
        let mut pings = 0;
        let end = loop {
            match session.wait(1_000).expect("an action") {
                (_, TimeoutAction::Ping(Side::Pod)) => {
                    pings += 1;
                    session.side(Side::Pod).pings += 1;
                    session.side(Side::Pod).received += 10;
                }
                (_, end) => break end,
            }
        };
        assert_eq!((pings, end), (5, TimeoutAction::End(Ending::Idle)));
    }

    #[test]
    fn a_side_whose_bytes_stay_unread_gets_no_ping() {
        let timeouts = SessionTimeouts {
            client_ping_interval: Some(Duration::from_secs(5)),
            write_timeout: None,
            ..TIMEOUTS
        };
        let mut session = Session::new(timeouts);
        session.side(Side::Pod).pending = 700;
        assert_eq!(session.wait(50), None);
        session.side(Side::Pod).pending = 0;
        assert_eq!(session.wait(50), Some((3, TimeoutAction::Ping(Side::Client))));
    }

    #[test]
    fn the_shortest_timeout_decides_the_scan_interval() {
        assert_eq!(TIMEOUTS.scan_interval(), Duration::from_millis(1_250));
        let quick = SessionTimeouts { write_timeout: Some(Duration::from_millis(200)), ..TIMEOUTS };
        assert_eq!(quick.scan_interval(), Duration::from_millis(25));
        let hurried = SessionTimeouts { close_timeout: Duration::from_millis(1), ..TIMEOUTS };
        assert_eq!(hurried.scan_interval(), Duration::from_millis(10));
        let ping = SessionTimeouts { ping_timeout: Duration::from_millis(80), ..TIMEOUTS };
        assert_eq!(ping.scan_interval(), Duration::from_millis(1_250), "no Pings are sent");
        let with_pings =
            SessionTimeouts { pod_ping_interval: Some(Duration::from_secs(60)), ..ping };
        assert_eq!(with_pings.scan_interval(), Duration::from_millis(10));
    }
}
