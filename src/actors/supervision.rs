//! Keeps control actors running after a panic in one of their handlers.
//!
//! actix drops an actor whose handler panics, together with its state, and its address fails from
//! then on. Here the panic is caught at the actor's context, and the context is polled again: the
//! message that panicked is lost (its sender gets `MailboxError::Closed`), everything else stays. A
//! future that was spawned into the context and has panicked must not be polled again, so all
//! spawned futures are dropped and [`Actor::started`] spawns them anew.
//!
//! An actor that keeps panicking is given up, and the failure is reported so that the
//! process can end.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context as TaskContext, Poll},
    time::{Duration, Instant},
};

use actix::{
    Actor, Addr, AsyncContext as _, Context, Handler, MailboxError, Message, Supervised,
    dev::{ContextFut, MessageResponse, channel},
    fut,
};
use actix_rt::ArbiterHandle;
use tokio::sync::mpsc::UnboundedSender;

/// An actor that panics this often within [`PANIC_WINDOW`] is given up.
const MAX_PANICS: usize = 3;

/// See [`MAX_PANICS`].
const PANIC_WINDOW: Duration = Duration::from_secs(60);

/// Capacity of the actors' mailboxes, for messages whose sender waits.
const MAILBOX_CAPACITY: usize = 16;

/// Starts supervised actors on one arbiter.
#[derive(Clone, Debug)]
pub struct Supervisor {
    arbiter: ArbiterHandle,
    failures: UnboundedSender<String>,
}

impl Supervisor {
    /// Creates a supervisor that sends `failures` the reason when an actor is given up.
    pub fn new(arbiter: ArbiterHandle, failures: UnboundedSender<String>) -> Self {
        Self { arbiter, failures }
    }

    /// Starts the actor that `make` returns; log lines call it `name`.
    ///
    /// After a panic, [`Supervised::restarting`] runs before the next message.
    pub fn start<A>(
        &self,
        name: &'static str,
        make: impl FnOnce(&mut Context<A>) -> A + Send + 'static,
    ) -> Addr<A>
    where
        A: Supervised + Actor<Context = Context<A>>,
    {
        let (sender, receiver) = channel::channel(MAILBOX_CAPACITY);
        let failures = self.failures.clone();
        self.arbiter.spawn_fn(move || {
            let mut context = Context::with_receiver(receiver);
            let actor = make(&mut context);
            let context = context.into_future(actor);
            actix_rt::spawn(SupervisedContext { name, context, panics: Vec::new(), failures });
        });
        Addr::new(sender)
    }
}

/// Sends a message and waits for the answer; sends it once more if a panic lost the first one.
///
/// # Errors
/// The actor has been given up.
pub async fn send_retrying<A, M>(
    actor: &Addr<A>,
    message: impl Fn() -> M,
) -> Result<M::Result, MailboxError>
where
    A: Actor<Context = Context<A>> + Handler<M>,
    M: Message + Send + 'static,
    M::Result: MessageResponse<A, M> + Send,
{
    match actor.send(message()).await {
        Ok(answer) => Ok(answer),
        Err(_) => actor.send(message()).await,
    }
}

/// Makes an actor panic in its handler, to test that it continues.
#[cfg(feature = "fault-hooks")]
#[derive(Debug, actix::Message)]
#[rtype(result = "()")]
pub struct Panic;

/// Makes the next `PickBackend` panic, to test that it is sent again.
#[cfg(feature = "fault-hooks")]
#[derive(Debug, actix::Message)]
#[rtype(result = "()")]
pub struct PanicAtNextPick;

/// The context of an actor, polled again after a panic.
struct SupervisedContext<A>
where
    A: Supervised + Actor<Context = Context<A>>,
{
    name: &'static str,
    context: ContextFut<A, Context<A>>,
    /// Times of the panics within the last [`PANIC_WINDOW`].
    panics: Vec<Instant>,
    failures: UnboundedSender<String>,
}

impl<A> Future for SupervisedContext<A>
where
    A: Supervised + Actor<Context = Context<A>>,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<()> {
        loop {
            let context = &mut self.context;
            // A panic may leave the state half changed: `restarting` repairs it.
            let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(context).poll(cx)));
            match polled {
                Ok(polled) => return polled,
                Err(panic) if self.record_panic(&*panic, Instant::now()) => self.resume(),
                Err(_) => return Poll::Ready(()),
            }
        }
    }
}

impl<A> SupervisedContext<A>
where
    A: Supervised + Actor<Context = Context<A>>,
{
    /// Logs a panic. Returns whether the actor continues; otherwise the failure is reported.
    fn record_panic(&mut self, panic: &(dyn Any + Send), now: Instant) -> bool {
        let (name, reason) = (self.name, panic_message(panic));
        self.panics.retain(|at| now.duration_since(*at) < PANIC_WINDOW);
        self.panics.push(now);
        if self.panics.len() < MAX_PANICS {
            log::error!("{name} panicked, one message is lost and the actor continues: {reason}");
            return true;
        }
        let _ = self.failures.send(format!(
            "{name} panicked {MAX_PANICS} times within {}, most recently: {reason}",
            humantime::format_duration(PANIC_WINDOW)
        ));
        false
    }

    fn resume(&mut self) {
        let in_a_handler = self.context.ctx().handle() == Default::default();
        if in_a_handler {
            // The context handles no message before this future is done.
            let restarting = fut::wrap_future(std::future::ready(()));
            let restarting = fut::ActorFutureExt::map(restarting, |(), actor: &mut A, ctx| {
                actor.restarting(ctx);
            });
            self.context.ctx().wait(restarting);
        } else {
            self.context.restart();
        }
    }
}

/// Returns the message of a panic.
fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use std::{io, panic::resume_unwind, sync::Arc};

    use actix::{Handler, Message, MessageResult};
    use actix_rt::Arbiter;
    use bytes::BytesMut;
    use tokio::{
        io::{AsyncRead, AsyncWrite, ReadBuf},
        sync::mpsc::{UnboundedReceiver, unbounded_channel},
    };

    use super::*;
    use crate::{
        actors::{
            registry::{CountSessions, RegistryActor, WaitUntilEmpty},
            session::{QueueWaker, SessionActor, SessionPermit},
            session_info::{SessionInfo, SessionRules},
        },
        domain::{
            balance::{
                backend::{Backend, Transport},
                lease::{Gauge, Lease, Load, Purpose},
            },
            session::{close_code::CloseCodes, ending::Ending, timeouts::SessionTimeouts},
        },
        relay::{TunnelPeer, TunnelRules},
        telemetry::counters::{Counters, LabelValues},
    };

    /// Counts messages, starts and restarts.
    #[derive(Default)]
    struct Counter {
        count: u32,
        started: u32,
        restarted: u32,
    }

    impl Actor for Counter {
        type Context = Context<Self>;

        fn started(&mut self, _: &mut Self::Context) {
            self.started += 1;
        }
    }

    impl Supervised for Counter {
        fn restarting(&mut self, _: &mut Self::Context) {
            self.restarted += 1;
        }
    }

    #[derive(Message)]
    #[rtype(result = "(u32, u32, u32)")]
    struct Add;

    impl Handler<Add> for Counter {
        type Result = MessageResult<Add>;

        fn handle(&mut self, _: Add, _: &mut Self::Context) -> Self::Result {
            self.count += 1;
            MessageResult((self.count, self.started, self.restarted))
        }
    }

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Break;

    impl Handler<Break> for Counter {
        type Result = ();

        fn handle(&mut self, _: Break, _: &mut Self::Context) {
            resume_unwind(Box::new("broken handler"));
        }
    }

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Spawn;

    impl Handler<Spawn> for Counter {
        type Result = ();

        fn handle(&mut self, _: Spawn, ctx: &mut Self::Context) {
            ctx.spawn(fut::wrap_future(async {
                resume_unwind(Box::new("broken future".to_owned()))
            }));
        }
    }

    fn counter() -> (Addr<Counter>, UnboundedReceiver<String>) {
        let (failures, failed) = unbounded_channel();
        let supervisor = Supervisor::new(Arbiter::current(), failures);
        (supervisor.start("Counter", |_| Counter::default()), failed)
    }

    #[actix_rt::test]
    async fn a_panic_in_a_handler_loses_only_its_message() {
        let (counter, mut failed) = counter();
        assert_eq!(counter.send(Add).await, Ok((1, 1, 0)));
        let (broken, next) = tokio::join!(counter.send(Break), counter.send(Add));
        assert!(broken.is_err());
        assert_eq!(
            next,
            Ok((2, 1, 1)),
            "the state is kept, `started` does not run again, `restarting` has run"
        );
        assert!(counter.send(Break).await.is_err());
        assert_eq!(counter.send(Add).await, Ok((3, 1, 2)));
        assert!(failed.try_recv().is_err());
    }

    #[actix_rt::test]
    async fn a_spawned_future_that_panics_is_not_polled_again() {
        let (counter, mut failed) = counter();
        assert_eq!(counter.send(Spawn).await, Ok(()));
        let mut counts = counter.send(Add).await.unwrap();
        while counts.2 == 0 {
            counts = counter.send(Add).await.unwrap();
        }
        assert_eq!((counts.1, counts.2), (2, 1), "`started` runs once more");
        assert!(failed.try_recv().is_err());
    }

    #[actix_rt::test]
    async fn the_third_panic_within_a_minute_ends_the_actor() {
        let (counter, mut failed) = counter();
        for _ in 0..3 {
            assert!(counter.send(Break).await.is_err());
        }
        let reason = failed.recv().await.unwrap();
        assert_eq!(reason, "Counter panicked 3 times within 1m, most recently: broken handler");
        assert!(counter.send(Add).await.is_err(), "the actor has ended");
    }

    #[actix_rt::test]
    async fn panics_more_than_a_minute_ago_do_not_count() {
        let (failures, mut failed) = unbounded_channel();
        let context = Context::new().into_future(Counter::default());
        let mut supervised =
            SupervisedContext { name: "Counter", context, panics: Vec::new(), failures };
        let start = Instant::now();
        for minutes in 0..5 {
            assert!(supervised.record_panic(&"occasional", start + minutes * PANIC_WINDOW));
        }
        let later = start + 4 * PANIC_WINDOW;
        assert!(supervised.record_panic(&"again", later));
        assert!(!supervised.record_panic(&"once more", later));
        assert!(failed.try_recv().is_ok());
    }

    /// A socket that panics when it is read.
    struct PanickingSocket;

    impl AsyncRead for PanickingSocket {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut TaskContext<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            resume_unwind(Box::new("socket was read"))
        }
    }

    impl AsyncWrite for PanickingSocket {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut TaskContext<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Sessions are not supervised: a panic ends one session, which owns all that it uses.
    #[actix_rt::test]
    async fn a_panic_in_a_session_ends_only_that_session_and_releases_its_lease() {
        let registry = Arc::new(RegistryActor::default().start());
        let endings = &Ending::labels();
        let labels = LabelValues { refusals: &[], cookies: &[], reloads: &[], endings };
        let counters = Arc::new(Counters::new(labels));
        let gauge = Arc::<Gauge>::default();
        let backend = Arc::new(Backend {
            service: "default".into(),
            url: "http://pod:1".into(),
            address: "pod:1".into(),
            transport: Transport::Tcp,
        });
        let timeouts = SessionTimeouts {
            idle_timeout: None,
            write_timeout: None,
            half_closed_timeout: PANIC_WINDOW,
            close_timeout: PANIC_WINDOW,
            max_age: None,
            client_ping_interval: None,
            pod_ping_interval: None,
            ping_timeout: PANIC_WINDOW,
        };
        let codes = CloseCodes::default();
        let rules = Arc::new(SessionRules { timeouts, tunnel: TunnelRules::default() });
        let start = |client: TunnelPeer, pod: TunnelPeer| {
            let lease = Lease::new(backend.clone(), gauge.clone(), Purpose::Session);
            let permit = SessionPermit { lease, ticket: None, queue_waker: QueueWaker(None) };
            let info = SessionInfo::new([127, 0, 0, 1].into(), backend.clone(), codes);
            let shared = (registry.clone(), counters.clone());
            SessionActor::start(client, pod, info, permit, shared, &rules);
        };
        let peer = || {
            let (far, near) = tokio::io::duplex(64);
            (TunnelPeer::new(near, BytesMut::new()), far)
        };
        let ((well, _client), (pod, _pod)) = (peer(), peer());
        start(well, pod);
        for client_panics in [true, false] {
            let (other, mut far) = peer();
            let panicking = TunnelPeer::new(PanickingSocket, BytesMut::new());
            match client_panics {
                true => start(panicking, other),
                false => start(other, panicking),
            }
            let mut rest = Vec::new();
            tokio::io::AsyncReadExt::read_to_end(&mut far, &mut rest).await.unwrap();
            assert!(rest.is_empty(), "the other side is closed: {rest:?}");
        }
        while registry.send(CountSessions).await != Ok(1) || gauge.load().open != 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(gauge.load(), Load { open: 1, connecting: 0, requests: 0 });
        drop((_client, _pod));
        assert_eq!(registry.send(WaitUntilEmpty).await, Ok(()));
        assert_eq!(gauge.load(), Load::default());
        let counted = counters.render();
        for counts in ["{reason=\"cut\"} 2\n", "{reason=\"client_lost\"} 1\n"] {
            assert!(counted.contains(counts), "{counted}");
        }
    }
}
