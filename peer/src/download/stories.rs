//! Stories of a download on a virtual clock, each event by hand.

#![expect(clippy::single_range_in_vec_init, reason = "one range is what is meant")]

use std::time::Duration;

use piecemeal_proto::{
    PieceSet,
    wire::{Lease, Outcome, WAITING_MAX},
};

use super::{
    Action, Beginning, Facts, Failure, Order, Reopened,
    machine::{IDLE_MAX, REFUSED_PATIENCE, REOPEN_DELAY, TICK, WAITING_AFTER, WANT_DELAY_MAX},
    story::{FILL, GRACE, PIECES, SECOND, Story, drop_pieces},
};

fn scheduler_silent(_: &mut Beginning, facts: &mut Facts) {
    facts.scheduler_up = false;
}

#[test]
fn leases_bring_the_blob_and_nothing_is_asked_for_besides() {
    let mut story = Story::begin(|_, _| {});
    for lease in 0..4 {
        story.lease(lease, u32::try_from(lease).unwrap() * 10, 10);
    }
    for lease in 0..4 {
        story.end_lease(lease, Outcome::Done, 10);
    }
    assert_eq!(story.end, Some(Ok(())));
    assert_eq!(
        story.count(|action| matches!(action, Action::FetchPiece(_) | Action::FetchRest)),
        0
    );
}

#[test]
fn without_a_scheduler_pieces_are_asked_for_in_order_four_at_a_time_and_the_readers_first() {
    let mut story = Story::begin(scheduler_silent);
    assert_eq!(story.direct, [0, 1, 2, 3]);
    story.facts.waited_for = vec![30..31];
    story.settle();
    assert_eq!(story.direct, [0, 1, 2, 3, 30]);
    while let Some(piece) = story.direct.first().copied() {
        story.end_piece(piece, Outcome::Done);
    }
    assert_eq!(story.end, Some(Ok(())));
}

fn waits(story: &Story) -> Vec<u32> {
    let waits = story.actions.iter().filter_map(|action| match action {
        Action::SendWaiting(piece) => Some(*piece),
        _ => None,
    });
    waits.collect()
}

#[test]
fn a_client_that_jumps_is_reported_at_once_and_one_that_reads_on_is_not() {
    let mut story = Story::begin(|_, _| {});
    story.facts.waited_for = vec![0..40];
    story.after(TICK);
    assert!(waits(&story).is_empty(), "the first missing piece comes next");
    story.facts.waited_for = vec![0..40, 30..32, 35..36];
    story.after(TICK);
    assert_eq!(waits(&story), [30, 31, 35]);
    story.after(WAITING_AFTER - TICK);
    assert_eq!(waits(&story), [30, 31, 35]);
    story.after(TICK);
    assert_eq!(waits(&story), [30, 31, 35, 30, 31, 35], "reported again after a second");
}

#[test]
fn of_clients_that_have_jumped_only_so_many_pieces_are_reported() {
    let mut story = Story::begin(|_, _| {});
    story.facts.waited_for = (1..PIECES).map(|piece| piece..PIECES).collect();
    story.after(TICK);
    assert_eq!(waits(&story).len(), WAITING_MAX);
    let mut one = Story::begin(|_, _| {});
    one.facts.waited_for = vec![20..PIECES];
    one.after(TICK);
    assert_eq!(waits(&one), (20..28).collect::<Vec<_>>(), "it reads on");
}

#[test]
fn a_jump_near_the_end_of_what_is_nearly_here_is_reported_until_it_has_landed() {
    let mut story = Story::begin(|beginning, _| (0..36).for_each(|piece| _ = beginning.landed.insert(piece)));
    story.facts.waited_for = vec![39..40];
    story.after(TICK);
    assert_eq!(waits(&story), [39]);
    story.lease(1, 39, 1);
    story.end_lease(1, Outcome::Done, 1);
    story.facts.waited_for = vec![36..40];
    story.after(WAITING_AFTER + TICK);
    assert_eq!(waits(&story), [39], "it is here, and piece 36 comes next");
}

#[test]
fn the_scheduler_hears_when_the_last_client_leaves_and_when_one_is_back() {
    let mut story = Story::begin(|_, _| {});
    let wants = |story: &Story| story.count(|action| matches!(action, Action::SendWant));
    story.after(SECOND);
    assert_eq!(wants(&story), 0);
    story.facts.is_attended = false;
    story.after(SECOND);
    assert_eq!(wants(&story), 1, "once");
    story.facts.is_attended = true;
    story.after(TICK);
    assert_eq!(wants(&story), 2);
}

#[test]
fn a_request_that_fails_pauses_the_next_ones_for_a_tick_and_the_mirror_is_asked_again() {
    let mut story = Story::begin(scheduler_silent);
    for piece in 0..4 {
        story.end_piece(piece, Outcome::Unreachable);
    }
    assert!(story.direct.is_empty());
    assert_eq!(story.count(|action| matches!(action, Action::NoteMirrorLost)), 4);
    story.after(REOPEN_DELAY + TICK);
    assert_eq!(story.direct, [0, 1, 2, 3]);
    story.reopened(Reopened::Renewed);
    assert_eq!(story.count(|action| matches!(action, Action::RenewWant)), 1);
}

#[test]
fn upstream_is_asked_once_the_mirror_was_lost_for_its_grace_and_the_jitter() {
    let mut story = Story::begin(|_, facts| (facts.scheduler_up, facts.mirror_lost) = (false, Some(Duration::ZERO)));
    story.after(GRACE);
    assert!(!story.rest && story.direct.is_empty());
    story.after(SECOND);
    assert!(story.rest, "500 ms of jitter");
    story.end_rest();
    assert_eq!(story.end, Some(Ok(())));
}

#[test]
fn where_upstream_is_forbidden_a_download_that_gets_nothing_ends_after_the_grace_and_half_a_minute() {
    let mut story = Story::begin(|beginning, facts| {
        beginning.may_use_upstream = false;
        (facts.scheduler_up, facts.mirror_lost) = (false, Some(Duration::ZERO));
    });
    story.after(GRACE + IDLE_MAX - SECOND);
    assert_eq!((story.end, story.rest), (None, false));
    story.after(2 * SECOND);
    let seconds = (GRACE + IDLE_MAX).as_secs();
    assert_eq!(story.end, Some(Err(Failure::Idle { seconds })));
}

#[test]
fn a_damaged_piece_makes_the_mirror_verify_its_own() {
    let mut story = Story::begin(|_, _| {});
    story.lease(1, 0, 4);
    story.end_lease(1, Outcome::Corrupt, 2);
    assert_eq!(story.last_lease_end(), Some((1, Outcome::Corrupt)));
    story.after(REOPEN_DELAY);
    assert_eq!(
        story.count(|action| matches!(action, Action::Reopen { suspect: Some(2) })),
        1
    );
    story.reopened(Reopened::Renewed);
    story.lease(2, 0, 4);
    assert_eq!(story.leases[&2], [2, 3], "what has landed is not asked for again");
}

#[test]
fn a_lease_is_done_only_when_all_of_its_pieces_are_here() {
    let mut story = Story::begin(|_, _| {});
    story.lease(1, 0, 4);
    story.lease(2, 2, 4);
    assert_eq!(story.leases[&2], [4, 5], "the others are in flight");
    story.end_lease(2, Outcome::Done, 2);
    assert_eq!(story.last_lease_end(), None, "the others may still come");
    story.end_lease(1, Outcome::Unreachable, 3);
    assert_eq!(story.last_lease_end(), Some((2, Outcome::Cancelled)), "and do not");
    story.lease(3, 0, 6);
    assert_eq!(story.leases[&3], [3]);
    story.end_lease(3, Outcome::Done, 1);
    assert_eq!(story.last_lease_end(), Some((3, Outcome::Done)));
}

/// They were given back at once, and the scheduler took the peer for one that does not use its leases.
#[test]
fn a_lease_of_pieces_that_the_mirror_sends_already_ends_when_they_have_come() {
    let mut story = Story::begin(scheduler_silent);
    story.facts.scheduler_up = true;
    story.lease(1, 0, 2);
    story.lease(2, 2, 1);
    story.lease(3, 3, 1);
    for lease in 1..4 {
        story.end_lease(lease, Outcome::Done, 0);
    }
    story.end_piece(0, Outcome::Done);
    assert_eq!(story.last_lease_end(), None);
    story.end_piece(1, Outcome::Done);
    assert_eq!(story.last_lease_end(), Some((1, Outcome::Done)));
    story.end_piece(2, Outcome::Unreachable);
    assert_eq!(story.last_lease_end(), Some((2, Outcome::Cancelled)));
    story.order(Order::Cancel(3));
    story.end_piece(3, Outcome::Done);
    assert_eq!(
        story.last_lease_end(),
        Some((2, Outcome::Cancelled)),
        "that was cancelled"
    );
}

/// It stayed open until the other's last piece had come, and its source counted as busy.
#[test]
fn a_lease_ends_as_soon_as_another_lease_has_brought_its_last_piece() {
    let mut story = Story::begin(|_, _| {});
    story.lease(1, 0, 20);
    story.lease(2, 2, 3);
    story.end_lease(2, Outcome::Done, 0);
    for piece in 0..4 {
        story.land(piece);
        assert_eq!(story.last_lease_end(), None, "piece 4 is still to come");
    }
    story.land(4);
    assert_eq!(story.last_lease_end(), Some((2, Outcome::Done)));
    assert_eq!(story.leases[&1].len(), 20, "its own fetch goes on");
    story.lease(3, 4, 2);
    story.end_lease(3, Outcome::Done, 0);
    story.order(drop_pieces(&(4..5)));
    story.land(5);
    assert_eq!(story.last_lease_end(), Some((2, Outcome::Done)), "piece 4 was dropped");
    story.end_lease(1, Outcome::Done, 20);
    assert_eq!(story.last_lease_end(), Some((3, Outcome::Done)));
}

#[test]
fn a_cancelled_lease_is_stopped_and_one_of_another_fill_is_given_back_at_once() {
    let mut story = Story::begin(|_, _| {});
    story.lease(1, 0, 4);
    story.order(Order::Cancel(1));
    assert!(story.leases.is_empty());
    story.order(Order::Cancel(1));
    story.order(Order::Lease(Lease {
        lease: 2,
        fill: FILL + 1,
        first: 0,
        count: 4,
        ..Lease::default()
    }));
    assert!(story.leases.is_empty());
    assert_eq!(story.last_lease_end(), Some((2, Outcome::Cancelled)));
}

#[test]
fn dropped_pieces_are_reported_and_fetched_again() {
    let mut story = Story::begin(|beginning, _| (0..PIECES - 1).for_each(|piece| _ = beginning.landed.insert(piece)));
    let wants = |story: &Story| story.count(|action| matches!(action, Action::SendWant));
    let before = wants(&story);
    story.order(Order::Drop {
        fill: FILL,
        pieces: vec![3..5, 38..1000],
    });
    assert_eq!(wants(&story), before + 1);
    story.lease(1, 0, PIECES);
    assert_eq!(story.leases[&1], [3, 4, 38, 39]);
    story.end_lease(1, Outcome::Done, 4);
    assert_eq!(story.end, Some(Ok(())));
}

#[test]
fn a_whole_blob_of_which_pieces_are_dropped_is_not_published_without_them() {
    let mut story = Story::begin(|_, _| {});
    story.store = PieceSet::full(PIECES);
    story.order(drop_pieces(&(3..4)));
    assert_eq!(story.end, None);
    story.lease(1, 0, PIECES);
    story.end_lease(1, Outcome::Done, 1);
    assert_eq!(story.end, Some(Ok(())));
}

#[test]
fn a_revoked_fill_is_discarded_and_that_of_another_is_nothing() {
    let mut story = Story::begin(|_, _| {});
    story.order(Order::Revoked(FILL + 1));
    assert_eq!(story.end, None);
    story.order(Order::Revoked(FILL));
    assert_eq!(story.end, Some(Err(Failure::Revoked)));
    assert_eq!(story.count(|action| matches!(action, Action::Abandon)), 1);
}

#[test]
fn a_want_that_was_refused_is_sent_again_with_a_new_grant() {
    let mut story = Story::begin(|_, _| {});
    let wants = |story: &Story| story.count(|action| matches!(action, Action::SendWant));
    story.after(SECOND);
    let before = wants(&story);
    story.order(Order::WantRefused("it is old".to_owned()));
    story.after(TICK);
    assert_eq!(wants(&story), before, "its grant is still the old one");
    story.reopened(Reopened::Renewed);
    assert_eq!(wants(&story), before + 1);
    story.after(3 * SECOND);
    story.reopened(Reopened::Renewed);
    assert_eq!(wants(&story), before + 1, "it was not refused again");
}

#[test]
fn a_want_that_is_refused_over_and_over_is_sent_less_and_less_often() {
    let mut story = Story::begin(|_, _| {});
    let wants = |story: &Story| story.count(|action| matches!(action, Action::SendWant));
    let refuse_for = |story: &mut Story, time: Duration| {
        let (before, until) = (wants(story), story.now + time);
        while story.now < until {
            if story.reopening {
                story.reopened(Reopened::Renewed);
            }
            story.order(Order::WantRefused("the clocks differ".to_owned()));
            // Pieces come from elsewhere, so that the download goes on.
            let landed = u32::try_from(story.now.as_secs()).unwrap() % (PIECES - 1);
            story.store = PieceSet::new(PIECES);
            story.store.insert(landed);
            story.after(TICK);
        }
        wants(story) - before
    };
    assert_eq!(refuse_for(&mut story, 8 * SECOND), 4, "with 0.5, 1, 2 s between them");
    assert!(refuse_for(&mut story, WANT_DELAY_MAX * 10) <= 12);
    story.lease(1, 0, 4);
    assert!(
        refuse_for(&mut story, WANT_DELAY_MAX + 3 * SECOND) >= 3,
        "it was accepted once"
    );
}

#[test]
fn the_mirrors_answer_decides_whether_a_download_goes_on() {
    let asked = || {
        let mut story = Story::begin(|_, _| {});
        story.after(3 * SECOND);
        story
    };
    for (answer, failure) in [
        (Reopened::OtherFill, Failure::OtherFill),
        (Reopened::Refused, Failure::Mirror),
    ] {
        let mut story = asked();
        story.reopened(answer);
        assert_eq!(story.end, Some(Err(failure)));
    }
    let mut story = asked();
    let first = story.now;
    while story.end.is_none() {
        story.reopened(Reopened::Failed);
        story.after(SECOND);
        assert!(story.now < first + REFUSED_PATIENCE + 3 * SECOND);
    }
    assert_eq!(story.end, Some(Err(Failure::Mirror)), "it fails for too long");
    let mut story = asked();
    story.reopened(Reopened::Lost);
    story.after(SECOND);
    assert_eq!((story.end, story.reopening), (None, true), "it may come back");
}

#[test]
fn a_reader_that_waits_is_reported_once_a_second() {
    let mut story = Story::begin(|_, facts| facts.longest_wait = Some((9, Duration::ZERO)));
    let waiting = |story: &Story| story.count(|action| matches!(action, Action::SendWaiting(9)));
    story.after(WAITING_AFTER - TICK);
    assert_eq!(waiting(&story), 0);
    story.after(2 * SECOND);
    assert_eq!(waiting(&story), 2);
    story.after(2 * SECOND);
    assert_eq!(story.direct, [0], "starved, it is served by the mirror");
}

#[test]
fn a_window_is_told_when_it_has_moved_by_a_sixteenth_or_is_done() {
    let mut story = Story::begin(|_, facts| facts.window = Some(0..32));
    let wants = |story: &Story| story.count(|action| matches!(action, Action::SendWant));
    let first = wants(&story);
    story.facts.window = Some(1..33);
    story.settle();
    assert_eq!(wants(&story), first, "less than a sixteenth");
    story.facts.window = Some(2..34);
    story.settle();
    assert_eq!(wants(&story), first + 1);
    story.lease(1, 2, 32);
    story.end_lease(1, Outcome::Done, 32);
    story.facts.window = Some(3..35);
    story.settle();
    assert_eq!(wants(&story), first + 2, "all of it has landed");
}

#[test]
fn a_blob_that_is_not_kept_ends_half_a_minute_after_its_last_reader() {
    let mut story = Story::begin(|_, _| {});
    story.lease(1, 0, 4);
    story.facts.has_readers = false;
    story.after(IDLE_MAX + SECOND);
    assert_eq!(story.end, Some(Err(Failure::Unread)));
    story.machine.handle_closed(false, true);
    let closing: Vec<Action> = std::iter::from_fn(|| story.machine.poll_action(story.now, &story.facts)).collect();
    let kinds = matches!(
        closing[..],
        [Action::EndLease { lease: 1, .. }, Action::SendUnwant, Action::SendLost]
    );
    assert!(kinds, "{closing:?}");
}

/// What comes from behind the window would wait for room, and hold its lease until the scheduler takes it away.
#[test]
fn leases_behind_the_window_are_given_back_when_the_disk_runs_full() {
    let mut story = Story::begin(|_, _| {});
    story.lease(1, 0, 4);
    story.lease(2, 30, 4);
    story.facts.window = Some(0..8);
    story.after(TICK);
    assert_eq!(story.last_lease_end(), Some((2, Outcome::Cancelled)));
    assert!(story.leases.contains_key(&1) && !story.leases.contains_key(&2));
    assert_eq!(
        story.count(|action| matches!(action, Action::SendWant)),
        1,
        "with the window"
    );
    story.facts.window = Some(4..12);
    story.end_lease(1, Outcome::Done, 4);
    assert_eq!(story.last_lease_end(), Some((1, Outcome::Done)));
}
