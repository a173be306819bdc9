//! The worker's side against a writer that is played by the test, so that every moment can be looked at.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::mpsc::{self, Receiver};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::worker::{COMPANY, MAX_UNWRITTEN_EVENTS};
use super::*;
use crate::audit::event::{ConnFacts, ConnFragment, Decision, Direction, HttpFacts, ResponseFacts};
use crate::audit::journal;
use crate::audit::spool::{Health, SpoolConfig};

fn config(durability: Durability, on_failure: OnFailure) -> SpoolConfig {
    SpoolConfig {
        dir: "/nonexistent".into(),
        max_bytes: 1 << 30,
        durability,
        on_failure,
        segment_bytes: 1 << 24,
        key: None,
    }
}

/// Runs `test` on a worker whose writer does nothing.
fn on_worker<F: Future<Output = ()>>(
    config: SpoolConfig,
    test: impl FnOnce(Recorder, Arc<Shared>, Receiver<Message>) -> F,
) {
    let shared = Arc::new(Shared::new(config, "epoch".into(), Vec::new(), Vec::new(), VecDeque::new(), 0));
    let (writer, inbox) = mpsc::channel();
    let seed = RecorderSeed { shared: shared.clone(), writer };
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build_local(Default::default()).unwrap();
    runtime.block_on(async { test(seed.attach(), shared, inbox).await });
}

fn fragment() -> ConnFragment {
    let peer = [10, 0, 0, 1].into();
    ConnFragment::new(&ConnFacts {
        direction: Direction::Inbound,
        listener: "api",
        peer,
        destination: None,
        service: None,
        tls: None,
        subject: None,
    })
}

fn decide(reservation: &mut Reservation, outcome: &'static str) -> Recorded {
    reservation.decision(&AccessDecision {
        time_unix_ns: 5,
        request_id: "r",
        trace_id: None,
        conn: &fragment(),
        http: HttpFacts { version: "2", ..HttpFacts::default() },
        decision: Decision { outcome, reason: "rule", rule: None, role: None, shadow: None },
        policy: None,
    })
}

fn complete(reservation: &mut Reservation) {
    let (conn, response) = (&fragment(), ResponseFacts::default());
    reservation.complete(&AccessComplete {
        time_unix_ns: 6,
        request_id: "r",
        trace_id: None,
        conn,
        response,
    });
}

async fn turn() {
    tokio::task::yield_now().await;
}

/// What the writer would do with everything in its inbox.
fn write_all(inbox: &Receiver<Message>) -> Vec<u64> {
    let mut sizes = Vec::new();
    while let Ok(Message::Batch { worker, batch }) = inbox.try_recv() {
        sizes.push(batch.events());
        worker.written_bytes.fetch_add(batch.bytes() as u64, Ordering::Release);
        worker.written.fetch_add(batch.events(), Ordering::Release);
        worker.wake.notify_one();
    }
    sizes
}

fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// If this fails, each event costs a message, and auditing costs more than it may.
#[test]
fn the_events_of_one_turn_leave_as_one_message() {
    on_worker(config(Durability::Write, OnFailure::Deny), |recorder, _, inbox| async move {
        for _ in 0..3 {
            let mut reservation = recorder.reserve(2).unwrap();
            let _ = decide(&mut reservation, "allow");
            complete(&mut reservation);
        }
        assert!(inbox.try_recv().is_err(), "nothing leaves before the turn is over");
        turn().await;
        turn().await;
        assert_eq!(write_all(&inbox), [6]);
    });
}

/// If this fails, completions wake the writer one by one, or stay in the worker until the next request comes.
#[test]
fn completions_travel_with_the_next_decision_or_after_a_moment() {
    on_worker(config(Durability::Write, OnFailure::Deny), |recorder, _, inbox| async move {
        let mut first = recorder.reserve(2).unwrap();
        let _ = decide(&mut first, "allow");
        turn().await;
        turn().await;
        assert_eq!(write_all(&inbox), [1]);
        complete(&mut first);
        turn().await;
        turn().await;
        assert!(write_all(&inbox).is_empty(), "nobody waits for a completion");
        let _ = decide(&mut recorder.reserve(1).unwrap(), "allow");
        turn().await;
        turn().await;
        assert_eq!(write_all(&inbox), [2]);

        for _ in 0..3 {
            let mut alone = recorder.reserve(1).unwrap();
            complete(&mut alone);
            tokio::time::sleep(2 * COMPANY).await;
            assert_eq!(write_all(&inbox), [1], "with no decision to travel with");
        }
    });
}

/// If this fails, a request is forwarded before its event is in the kernel, or never.
#[test]
fn a_request_waits_until_its_event_is_written() {
    on_worker(config(Durability::Write, OnFailure::Deny), |recorder, _, inbox| async move {
        let mut reservation = recorder.reserve(2).unwrap();
        let first = decide(&mut reservation, "allow");
        turn().await;
        let mut waiting = pin!(first.before_forward());
        assert!(poll(waiting.as_mut()).is_pending());
        write_all(&inbox);
        assert_eq!(poll(waiting.as_mut()), Poll::Ready(Ok(())));
        assert_eq!(first.before_response().await, Ok(()));
    });
}

/// If this fails, a task sleeps on although its event was written, and the request hangs.
#[test]
fn tasks_that_wait_are_woken_in_whatever_order_they_came() {
    on_worker(config(Durability::Write, OnFailure::Deny), |recorder, _, inbox| async move {
        let mut reservation = recorder.reserve(8).unwrap();
        let mut recorded: Vec<_> = (0..8).map(|_| decide(&mut reservation, "allow")).collect();
        recorded.reverse();
        let tasks: Vec<_> = recorded
            .into_iter()
            .map(|event| tokio::task::spawn_local(async move { event.written().await }))
            .collect();
        turn().await;
        turn().await;
        assert_eq!(write_all(&inbox), [8]);
        for task in tasks {
            assert_eq!(task.await.unwrap(), Ok(()));
        }
    });
}

/// If this fails, `fsync` releases a response, or `fsync_before_forward` forwards a request, that a power cut can deny.
#[test]
fn each_durability_waits_for_what_it_promises() {
    on_worker(config(Durability::Fsync, OnFailure::Deny), |recorder, _, inbox| async move {
        let event = decide(&mut recorder.reserve(1).unwrap(), "allow");
        turn().await;
        turn().await;
        write_all(&inbox);
        assert_eq!(event.before_forward().await, Ok(()));
        let mut waiting = pin!(event.before_response());
        assert!(poll(waiting.as_mut()).is_pending());
        recorder.worker.link.synced.store(1, Ordering::Release);
        assert_eq!(poll(waiting.as_mut()), Poll::Ready(Ok(())));
    });
    on_worker(config(Durability::FsyncBeforeForward, OnFailure::Deny), |recorder, _, inbox| async move {
        let event = decide(&mut recorder.reserve(1).unwrap(), "allow");
        turn().await;
        turn().await;
        write_all(&inbox);
        let mut waiting = pin!(event.before_forward());
        assert!(poll(waiting.as_mut()).is_pending());
        recorder.worker.link.synced.store(1, Ordering::Release);
        assert_eq!(poll(waiting.as_mut()), Poll::Ready(Ok(())));
        assert_eq!(event.before_response().await, Ok(()));
    });
}

/// If this fails, a request that is given up while it waits loses its event or leaves a waker behind.
#[test]
fn a_wait_that_is_given_up_leaves_nothing_behind() {
    on_worker(config(Durability::Write, OnFailure::Deny), |recorder, _, inbox| async move {
        let event = decide(&mut recorder.reserve(1).unwrap(), "allow");
        {
            let mut waiting = pin!(event.written());
            assert!(poll(waiting.as_mut()).is_pending());
            assert!(poll(waiting.as_mut()).is_pending());
        }
        drop(event);
        let mut none_left = true;
        recorder.worker.waiters.borrow_mut().wake(|_, _| {
            none_left = false;
            true
        });
        assert!(none_left);
        turn().await;
        turn().await;
        assert_eq!(write_all(&inbox), [1]);
    });
}

/// If this fails, places leak until every request is refused, or are given out twice.
#[test]
fn places_that_are_not_used_go_back() {
    on_worker(config(Durability::Write, OnFailure::Deny), |recorder, shared, inbox| async move {
        let before = shared.free.load(Ordering::Acquire);
        for _ in 0..10_000 {
            drop(recorder.reserve(2).unwrap());
        }
        let many: Vec<_> = (0..500).map(|_| recorder.reserve(2).unwrap()).collect();
        assert!(shared.free.load(Ordering::Acquire) <= before - 1000 * PLACE_BYTES);
        drop(many);
        let mut used = recorder.reserve(2).unwrap();
        let _ = decide(&mut used, "deny");
        drop(used);
        drop(recorder);
        let Ok(Message::Batch { batch, .. }) = inbox.try_recv() else { panic!("the last event is not sent") };
        // The place of the event that was recorded is the writer's to give back.
        assert_eq!(shared.free.load(Ordering::Acquire), before - batch.events() as i64 * PLACE_BYTES);
    });
}

/// If this fails, a slow disk makes phiward grow until it is killed.
#[test]
fn a_writer_that_is_too_far_behind_stops_new_requests() {
    on_worker(config(Durability::Write, OnFailure::Deny), |recorder, shared, inbox| async move {
        let mut held = recorder.reserve(1).unwrap();
        for _ in 0..=MAX_UNWRITTEN_EVENTS {
            let _ = decide(&mut recorder.reserve(1).unwrap(), "allow");
        }
        assert_eq!(recorder.reserve(1).err(), Some(Unavailable::WriterBehind));
        let _ = decide(&mut held, "allow"); // what was reserved before is recorded all the same
        turn().await;
        turn().await;
        write_all(&inbox);
        assert!(recorder.reserve(1).is_ok());
        assert_eq!(shared.gap.take(0).1, 1, "the refusal is told in a gap event");
    });
}

/// If this fails, an operator who chose availability gets refusals, or an operator who chose denial gets lost events.
#[test]
fn a_full_spool_denies_or_counts_as_the_operator_chose() {
    for on_failure in [OnFailure::Deny, OnFailure::AllowWithGap] {
        on_worker(config(Durability::Write, on_failure), |recorder, shared, inbox| async move {
            shared.free.store(PLACE_BYTES - 1, Ordering::Release);
            let Ok(mut reservation) = recorder.reserve(2) else {
                assert_eq!(on_failure, OnFailure::Deny);
                assert_eq!(recorder.reserve(1).err(), Some(Unavailable::SpoolFull));
                assert_eq!(shared.gap.take(0).1, 2);
                return;
            };
            assert_eq!(on_failure, OnFailure::AllowWithGap);
            assert_eq!(decide(&mut reservation, "allow").before_forward().await, Ok(()));
            complete(&mut reservation);
            let _ = decide(&mut recorder.reserve(1).unwrap(), "deny");
            turn().await;
            turn().await;
            assert!(inbox.try_recv().is_err());
            assert_eq!(shared.gap.take(0), (1, 1, 5, 5));
        });
    }
}

/// A worker with a journal, in a folder that is there.
fn journaled(durability: Durability) -> (tempfile::TempDir, SpoolConfig) {
    let dir = tempfile::tempdir().unwrap();
    let config = SpoolConfig { dir: dir.path().into(), ..config(durability, OnFailure::Deny) };
    (dir, config)
}

/// If this fails, every request waits for another thread although its event is in the kernel, or goes on before it is.
#[test]
fn a_request_goes_on_once_its_event_is_journaled() {
    let (_dir, config) = journaled(Durability::Write);
    on_worker(config, |recorder, _, inbox| async move {
        let mut reservation = recorder.reserve(2).unwrap();
        let event = decide(&mut reservation, "allow");
        let mut waiting = pin!(event.before_forward());
        assert!(poll(waiting.as_mut()).is_pending(), "nothing is journaled before the turn is over");
        turn().await;
        turn().await;
        assert_eq!(poll(waiting.as_mut()), Poll::Ready(Ok(())));
        assert!(write_all(&inbox).is_empty(), "the writer gets it in company");
        complete(&mut reservation);
        let _ = decide(&mut recorder.reserve(1).unwrap(), "deny");
        tokio::time::sleep(2 * COMPANY).await;
        assert_eq!(write_all(&inbox), [3]);
        assert_eq!(recorder.worker.link.expects.load(Ordering::Acquire), 0, "nobody waits for the writer");
    });
}

/// If this fails, a request whose event is neither journaled nor written is forwarded.
#[test]
fn what_cannot_be_journaled_waits_for_the_writer() {
    let (_dir, config) = journaled(Durability::Write);
    on_worker(config, |recorder, shared, inbox| async move {
        let first = decide(&mut recorder.reserve(1).unwrap(), "allow");
        turn().await;
        turn().await;
        *shared.disk.write_error.lock().unwrap() = Some(std::io::ErrorKind::StorageFull);
        let second = decide(&mut recorder.reserve(1).unwrap(), "allow");
        turn().await;
        turn().await;
        let mut waiting = pin!(second.before_forward());
        assert!(poll(waiting.as_mut()).is_pending());
        assert_eq!(recorder.worker.link.expects.load(Ordering::Acquire), 2);
        assert_eq!(write_all(&inbox), [2]);
        assert_eq!(poll(waiting.as_mut()), Poll::Ready(Ok(())));
        assert_eq!(first.before_forward().await, Ok(()));
    });
}

/// If this fails, a writer that is behind lets journaled events be overwritten, or a journal that was full once is never used
/// again.
#[test]
fn a_full_journal_waits_for_the_writer_and_is_used_again() {
    let (_dir, config) = journaled(Durability::Write);
    on_worker(config, |recorder, shared, inbox| async move {
        let mut unwritten = Vec::new();
        let mut last = None;
        while recorder.worker.detour.get() == 0 {
            last = Some(decide(&mut recorder.reserve(1).unwrap(), "allow"));
            turn().await;
            turn().await;
            unwritten.extend(inbox.try_iter()); // the writer has them and does nothing
        }
        let last = last.unwrap();
        let mut waiting = pin!(last.before_forward());
        assert!(poll(waiting.as_mut()).is_pending());
        for message in unwritten {
            let Message::Batch { worker, batch } = message else { panic!() };
            worker.written.fetch_add(batch.events(), Ordering::Release);
            worker.written_bytes.fetch_add(batch.bytes() as u64, Ordering::Release);
        }
        assert_eq!(poll(waiting.as_mut()), Poll::Ready(Ok(())));
        let next = decide(&mut recorder.reserve(1).unwrap(), "allow");
        turn().await;
        turn().await;
        assert_eq!(next.before_forward().await, Ok(()), "journaled again");
        assert!(recorder.worker.journaled.get() > recorder.worker.detour.get());
        assert_eq!(shared.health(), Health::Good);
    });
}

/// If this fails, `fsync` forwards late, or releases a response before its decision is on disk.
#[test]
fn fsync_forwards_what_is_journaled_and_has_it_written_at_once() {
    let (_dir, config) = journaled(Durability::Fsync);
    on_worker(config, |recorder, _, inbox| async move {
        let event = decide(&mut recorder.reserve(1).unwrap(), "allow");
        turn().await;
        turn().await;
        assert_eq!(event.before_forward().await, Ok(()));
        assert_eq!(write_all(&inbox), [1], "it does not wait for company");
        let mut waiting = pin!(event.before_response());
        assert!(poll(waiting.as_mut()).is_pending());
        recorder.worker.link.synced.store(1, Ordering::Release);
        assert_eq!(poll(waiting.as_mut()), Poll::Ready(Ok(())));
    });
}

/// If this fails, a flood is told late or never while its worker runs on, or one summary is journaled as two events.
#[test]
fn a_window_ends_after_ten_seconds_with_one_summary() {
    let (dir, config) = journaled(Durability::Write);
    let path = dir.path().join("journal-0");
    on_worker(config, |recorder, _, inbox| async move {
        for second in 1..=2 {
            for _ in 0..100 {
                let _ = decide(&mut recorder.reserve(1).unwrap(), "deny");
            }
            turn().await;
            turn().await;
            let left = journal::read(&path).unwrap().unwrap().events;
            assert_eq!(
                left.len(),
                20 * second + second,
                "the count stands in its slot, the summary before it in the journal"
            );
            assert!(String::from_utf8_lossy(&left.last().unwrap().1).contains("\"count\":80,"));
            tokio::time::sleep(Duration::from_secs(11)).await;
            assert_eq!(recorder.worker.coalescer.borrow().due(), None);
            let left = journal::read(&path).unwrap().unwrap().events;
            assert_eq!(left.len(), 20 * second + second, "in the slot with its number until it is journaled");
        }
        assert_eq!(write_all(&inbox).iter().sum::<u64>(), 42);
    });
}
