//! Stories of a fill on a virtual clock, each event by hand.

#![expect(clippy::single_range_in_vec_init, reason = "one range is what is meant")]

use std::{collections::BTreeMap, ops::Range, time::Duration};

use piecemeal_proto::{PieceMap, PieceSet};
use piecemeal_upstream::FILL_CONNECTIONS_MAX;

use super::{
    Action, Answer, Beginning, Ended, Facts, Failure, Fault, Fill,
    connections::READERS_MAX,
    machine::{TICK, UNREAD_MAX},
    patience::{BARREN_MAX, RETRY_DELAY, RETRY_DELAY_MAX},
};

const MIB: u64 = 1024 * 1024;
const PIECES: u32 = 40;
const PATIENCE: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);
/// A rate by which segments of eight seconds are two pieces long.
const RATE: u64 = MIB / 4;

const ALL_CAME: Ended = Ended {
    progressed: true,
    fault: None,
};
const BROKE_OFF: Ended = Ended {
    progressed: true,
    fault: Some(Fault::Passing),
};
const NOTHING_CAME: Ended = Ended {
    progressed: false,
    fault: Some(Fault::Passing),
};

/// A fill, its store and its connections.
struct Story {
    machine: Fill,
    now: Duration,
    facts: Facts,
    map: PieceMap,
    store: PieceSet,
    /// What each connection has asked for.
    asked: BTreeMap<u64, Range<u64>>,
    /// What each body is to bring.
    bodies: BTreeMap<u64, Range<u64>>,
    actions: Vec<Action>,
    end: Option<Result<(), Failure>>,
}

impl Story {
    fn begin(change: impl FnOnce(&mut Beginning, &mut Facts)) -> Self {
        let map = PieceMap::new(u64::from(PIECES) * MIB, MIB).unwrap();
        let mut beginning = Beginning {
            map,
            landed: PieceSet::new(PIECES),
            within: 0..map.blob_bytes(),
            patience: PATIENCE,
            opens: false,
            unstored: false,
            has_callers: false,
        };
        let mut facts = Facts {
            share: 1,
            connection_rate: RATE,
            waited_for: Vec::new(),
            has_readers: true,
            landed: PieceSet::new(PIECES),
        };
        change(&mut beginning, &mut facts);
        let mut story = Self {
            machine: Fill::new(Duration::ZERO, &beginning),
            now: Duration::ZERO,
            facts,
            map,
            store: beginning.landed,
            asked: BTreeMap::new(),
            bodies: BTreeMap::new(),
            actions: Vec::new(),
            end: None,
        };
        story.settle();
        story
    }

    /// Carries out what the machine decides, as its task does, but for the rights of others.
    fn settle(&mut self) {
        while self.end.is_none() {
            self.facts.landed.clone_from(&self.store);
            let Some(action) = self.machine.poll_action(self.now, &self.facts) else {
                return;
            };
            match &action {
                Action::MoveEnd { connection, end } => {
                    self.bodies.get_mut(connection).expect("it is received").end = *end;
                }
                Action::Request { connection, bytes } => _ = self.asked.insert(*connection, bytes.clone()),
                Action::Receive { connection, bytes } => _ = self.bodies.insert(*connection, bytes.clone()),
                Action::Finish => {
                    assert!(self.asked.is_empty() && self.bodies.is_empty());
                    self.end = Some(Ok(()));
                }
                Action::CloseAll => {
                    self.asked.clear();
                    self.bodies.clear();
                }
                Action::Fail(failure) => self.end = Some(Err(*failure)),
                _ => {}
            }
            self.actions.push(action);
        }
    }

    fn after(&mut self, time: Duration) {
        let until = self.now + time;
        while self.end.is_none() {
            let Some(timeout) = self.machine.poll_timeout().filter(|timeout| *timeout <= until) else {
                break;
            };
            self.now = self.now.max(timeout);
            self.machine.handle_timeout(self.now, &self.facts);
            self.settle();
        }
        self.now = until;
    }

    fn overflow(&mut self) {
        self.machine.handle_overflow(self.now, &self.store);
        self.settle();
    }

    /// The lowest connection that waits for its answer.
    fn waiting(&self) -> u64 {
        *self.asked.keys().next().expect("a request is under way")
    }

    fn answer(&mut self, connection: u64, answer: Answer) {
        assert!(self.asked.remove(&connection).is_some(), "it was asked");
        self.machine.handle_answered(self.now, connection, answer, &self.store);
        self.settle();
    }

    /// A body ends after so many of its pieces.
    fn end(&mut self, connection: u64, pieces: u32, ended: Ended) {
        let bytes = self.bodies.remove(&connection).expect("it is received");
        let first = self.map.piece_at(bytes.start).unwrap();
        let last = self.map.piece_at(bytes.end - 1).unwrap();
        (first..=last)
            .take(pieces as usize)
            .for_each(|piece| _ = self.store.insert(piece));
        self.machine.handle_ended(self.now, connection, ended, &self.store);
        self.settle();
    }

    /// Every request is answered, and every body comes, until the fill ends.
    fn finish(&mut self) {
        for _ in 0..1000 {
            while let Some((&connection, _)) = self.bodies.first_key_value() {
                self.end(connection, PIECES, ALL_CAME);
            }
            while let Some((&connection, _)) = self.asked.first_key_value() {
                self.answer(connection, Answer::Part);
            }
            self.after(TICK);
        }
        assert_eq!(self.end, Some(Ok(())));
        assert!(self.store.is_full());
    }

    fn count(&self, action: &Action) -> usize {
        self.actions.iter().filter(|other| *other == action).count()
    }

    /// The first piece of each request under way, in the order in which they were made.
    fn first_pieces(&self) -> Vec<u32> {
        let first = |bytes: &Range<u64>| self.map.piece_at(bytes.start).unwrap();
        self.asked.values().map(first).collect()
    }
}

fn share(share: usize) -> impl FnOnce(&mut Beginning, &mut Facts) {
    move |_, facts| facts.share = share
}

#[test]
fn one_connection_asks_for_one_segment_after_the_other() {
    let mut story = Story::begin(|_, _| {});
    let mut end = 0;
    while story.end.is_none() {
        assert_eq!(story.asked.len(), 1);
        let connection = story.waiting();
        assert_eq!(story.asked[&connection].start, end);
        end = story.asked[&connection].end;
        story.answer(connection, Answer::Part);
        assert!(story.asked.is_empty());
        story.end(connection, PIECES, ALL_CAME);
    }
    assert_eq!((story.end, end), (Some(Ok(())), story.map.blob_bytes()));
}

#[test]
fn a_fill_uses_as_many_connections_as_its_share() {
    let mut story = Story::begin(share(4));
    assert_eq!(story.first_pieces(), [0, 2, 4, 6]);
    story.facts.share = 6;
    story.after(TICK);
    assert_eq!(story.asked.len(), 6);
    story.facts.share = 2;
    let connection = story.waiting();
    story.answer(connection, Answer::Part);
    story.end(connection, 2, ALL_CAME);
    assert_eq!(story.asked.len(), 5, "none for the one that has ended");
    story.finish();
}

#[test]
fn the_next_segment_is_asked_for_when_the_end_of_one_is_in_sight() {
    let mut story = Story::begin(share(2));
    let connection = story.waiting();
    story.answer(connection, Answer::Part);
    assert_eq!(story.asked.len(), 1);
    for _ in 0..2 {
        story.machine.handle_end_in_sight(connection);
        story.settle();
        assert_eq!((story.asked.len(), story.machine.busy()), (2, 2));
    }
    story.end(connection, 2, ALL_CAME);
    assert_eq!(story.asked.len(), 2);
    story.finish();
}

#[test]
fn however_many_bodies_end_soon_no_more_than_eight_connections_are_open() {
    let mut story = Story::begin(share(FILL_CONNECTIONS_MAX));
    for _ in 0..FILL_CONNECTIONS_MAX {
        let connection = story.waiting();
        story.answer(connection, Answer::Part);
        story.machine.handle_end_in_sight(connection);
        story.settle();
    }
    assert_eq!(story.asked.len() + story.bodies.len(), FILL_CONNECTIONS_MAX);
    story.finish();
}

#[test]
fn a_piece_that_a_client_waits_for_gets_a_connection_of_its_own_once_the_others_receive() {
    let mut story = Story::begin(share(2));
    story.facts.waited_for = vec![30..31];
    story.after(TICK);
    assert_eq!(story.first_pieces(), [0, 5], "their answers may be short");
    for _ in 0..2 {
        let connection = story.waiting();
        story.answer(connection, Answer::Part);
    }
    assert_eq!(story.first_pieces(), [30]);
    story.after(SECOND);
    assert_eq!(story.asked.len(), 1, "it is on its way");
    story.finish();
}

#[test]
fn a_body_that_breaks_off_is_asked_for_again_from_where_it_broke_off() {
    let mut story = Story::begin(|_, _| {});
    let connection = story.waiting();
    story.answer(connection, Answer::Part);
    story.end(connection, 3, BROKE_OFF);
    assert!(story.asked.is_empty(), "after a pause");
    story.after(RETRY_DELAY);
    assert_eq!(story.first_pieces(), [3]);
    story.finish();
}

#[test]
fn an_upstream_that_only_fails_is_asked_for_half_a_minute_with_longer_and_longer_pauses() {
    let (mut story, mut asked) = (Story::begin(|_, _| {}), Vec::new());
    while story.end.is_none() {
        if let Some((&connection, _)) = story.asked.first_key_value() {
            asked.push(story.now.as_millis());
            story.answer(connection, Answer::Failed(Fault::Passing));
        }
        story.after(TICK);
    }
    assert_eq!(story.end, Some(Err(Failure::Upstream)));
    assert_eq!(asked[..5], [0, 200, 600, 1400, 3000]);
    let last = Duration::from_millis(u64::try_from(*asked.last().unwrap()).unwrap());
    assert!(last <= PATIENCE && last + RETRY_DELAY_MAX > PATIENCE, "{last:?}");
}

#[test]
fn bodies_that_bring_nothing_new_are_enough_after_five() {
    let mut story = Story::begin(|_, _| {});
    for body in 1..=BARREN_MAX {
        assert_eq!(story.end, None, "body {body}");
        let connection = story.waiting();
        story.answer(connection, Answer::Part);
        story.end(connection, 0, NOTHING_CAME);
        story.after(RETRY_DELAY_MAX);
    }
    assert_eq!(story.end, Some(Err(Failure::Upstream)));
}

#[test]
fn without_patience_the_first_failure_ends_it_and_only_its_own_bytes_are_asked_for() {
    let run = |beginning: &mut Beginning, _: &mut Facts| {
        (beginning.within, beginning.patience) = (4 * MIB..6 * MIB, Duration::ZERO)
    };
    let mut story = Story::begin(run);
    assert_eq!(story.asked[&story.waiting()], 4 * MIB..6 * MIB);
    story.answer(story.waiting(), Answer::Part);
    story.end(1, 2, ALL_CAME);
    assert_eq!(story.end, Some(Ok(())));
    let mut story = Story::begin(run);
    story.answer(story.waiting(), Answer::Failed(Fault::Passing));
    assert_eq!(story.end, Some(Err(Failure::Upstream)));
}

#[test]
fn readers_begin_at_the_first_answer() {
    let mut story = Story::begin(|beginning, facts| (beginning.opens, facts.share) = (true, 3));
    story.after(SECOND);
    assert_eq!((story.asked.len(), story.count(&Action::Open)), (3, 0));
    story.answer(2, Answer::Part);
    assert_eq!(story.count(&Action::Open), 1);
    story.answer(1, Answer::Failed(Fault::Passing));
    story.after(RETRY_DELAY);
    assert_eq!(story.asked.len(), 2, "it is made again");
    story.finish();
    assert_eq!(story.count(&Action::Open), 1);
}

#[test]
fn a_fill_whose_first_requests_all_fail_does_not_begin() {
    let mut story = Story::begin(|beginning, facts| (beginning.opens, facts.share) = (true, 3));
    for connection in [2, 3, 1] {
        assert_eq!((story.end, story.asked.is_empty()), (None, false));
        story.answer(connection, Answer::Failed(Fault::Passing));
    }
    assert_eq!(story.end, Some(Err(Failure::Unanswered)));
    assert_eq!(story.count(&Action::Open), 0);
}

#[test]
fn a_refusal_of_the_first_requests_stands() {
    for fault in [Fault::Refused, Fault::TooManyRequests] {
        let mut story = Story::begin(|beginning, facts| {
            (beginning.opens, beginning.has_callers, facts.share) = (true, true, 3);
        });
        story.answer(2, Answer::Failed(fault));
        assert_eq!(story.end, Some(Err(Failure::Unanswered)));
    }
}

#[test]
fn a_fill_goes_on_with_the_right_of_another_caller() {
    let mut story = Story::begin(|beginning, facts| (beginning.has_callers, facts.share) = (true, 3));
    story.answer(1, Answer::Part);
    story.answer(2, Answer::Failed(Fault::Refused));
    assert_eq!(story.count(&Action::NextRight), 1);
    assert_eq!(story.asked.len(), 1, "nothing is asked for meanwhile");
    story.machine.handle_next_right(story.now, true);
    story.settle();
    assert_eq!(story.asked.len(), 2);
    story.answer(3, Answer::Failed(Fault::Refused));
    assert_eq!(
        story.count(&Action::NextRight),
        1,
        "the refused right is not used any more"
    );
    let connection = story.waiting();
    story.answer(connection, Answer::Failed(Fault::Refused));
    assert_eq!(story.count(&Action::NextRight), 2);
    story.machine.handle_next_right(story.now, false);
    story.settle();
    assert_eq!(story.end, Some(Err(Failure::Upstream)));
}

#[test]
fn a_right_that_was_never_accepted_or_is_the_only_one_is_not_replaced() {
    for (has_callers, began) in [(true, false), (false, true)] {
        let mut story = Story::begin(|beginning, facts| (beginning.has_callers, facts.share) = (has_callers, 2));
        if began {
            story.answer(1, Answer::Part);
        }
        story.answer(2, Answer::Failed(Fault::Refused));
        assert_eq!(story.end, Some(Err(Failure::Upstream)));
    }
}

#[test]
fn an_upstream_that_asks_to_come_back_later_is_asked_later() {
    let mut story = Story::begin(|_, _| {});
    story.answer(1, Answer::Failed(Fault::TooManyRequests));
    assert_eq!(story.count(&Action::NoteTooManyRequests), 1);
    assert!(story.asked.is_empty());
    story.after(RETRY_DELAY);
    story.finish();
}

#[test]
fn a_store_that_fails_ends_it_at_once() {
    let mut story = Story::begin(|_, _| {});
    story.answer(1, Answer::Part);
    let fault = Some(Fault::Store);
    story.end(
        1,
        3,
        Ended {
            progressed: true,
            fault,
        },
    );
    assert_eq!(story.end, Some(Err(Failure::Upstream)));
}

#[test]
fn an_upstream_without_ranges_sends_the_rest_over_one_connection() {
    let mut story = Story::begin(share(3));
    story.answer(2, Answer::Whole);
    assert_eq!(story.bodies[&2], 3 * MIB..story.map.blob_bytes());
    story.answer(1, Answer::Whole);
    story.answer(3, Answer::Whole);
    assert_eq!(story.count(&Action::Close(1)) + story.count(&Action::Close(3)), 2);
    assert_eq!(story.count(&Action::NoteNoRanges), 3);
    story.facts.waited_for = vec![0..1];
    story.after(SECOND);
    assert!(story.asked.is_empty(), "nothing is asked for meanwhile");
    story.end(2, 5, BROKE_OFF);
    story.after(RETRY_DELAY);
    assert_eq!(story.first_pieces()[0], 0);
    story.finish();
}

#[test]
fn a_piece_that_another_connection_is_still_asked_for_is_not_assigned_again_when_the_whole_breaks_off() {
    let mut story = Story::begin(share(3));
    story.answer(1, Answer::Whole);
    story.end(1, 0, BROKE_OFF);
    story.after(RETRY_DELAY);
    assert_eq!(story.first_pieces(), [3, 6, 0]);
    story.finish();
}

#[test]
fn a_request_for_the_whole_blob_is_answered_with_it_and_that_is_no_lack_of_ranges() {
    let mut story = Story::begin(|beginning, facts| {
        beginning.map = PieceMap::new(MIB, MIB).unwrap();
        (beginning.landed, beginning.within, facts.share) = (PieceSet::new(1), 0..MIB, 3);
    });
    story.map = PieceMap::new(MIB, MIB).unwrap();
    story.answer(1, Answer::Whole);
    assert_eq!(story.count(&Action::NoteNoRanges), 0);
    story.end(1, 1, ALL_CAME);
    assert_eq!(story.end, Some(Ok(())));
}

#[test]
fn a_body_that_was_asked_for_before_the_fill_brings_all_and_what_it_lacks_is_asked_for() {
    let mut story = Story::begin(|_, facts| facts.share = 3);
    let before = story.asked.len();
    assert_eq!(before, 3);
    let beginning = Beginning {
        map: story.map,
        landed: PieceSet::new(PIECES),
        within: 0..story.map.blob_bytes(),
        patience: PATIENCE,
        opens: false,
        unstored: false,
        has_callers: false,
    };
    story.machine = Fill::new(Duration::ZERO, &beginning);
    story.asked.clear();
    story.machine.handle_first_body(story.now);
    story.settle();
    assert_eq!(
        (story.bodies[&1].clone(), story.asked.len()),
        (0..story.map.blob_bytes(), 0)
    );
    story.end(1, 30, BROKE_OFF);
    story.after(RETRY_DELAY);
    assert_eq!(story.first_pieces()[0], 30);
    story.finish();
}

#[test]
fn nothing_is_asked_of_upstream_when_nothing_is_missing() {
    let story = Story::begin(|beginning, _| (beginning.landed, beginning.opens) = (PieceSet::full(PIECES), true));
    assert_eq!(story.actions, [Action::Open, Action::Finish]);
}

#[test]
fn a_blob_that_is_not_kept_comes_in_order_over_one_connection() {
    let mut story = Story::begin(|beginning, facts| (beginning.unstored, facts.share) = (true, 6));
    story.facts.waited_for = vec![30..31];
    story.answer(1, Answer::Part);
    assert!(story.asked.is_empty());
    story.end(1, 2, BROKE_OFF);
    story.after(RETRY_DELAY);
    assert_eq!(story.first_pieces(), [2]);
    story.finish();
}

#[test]
fn a_blob_that_is_not_kept_ends_half_a_minute_after_its_last_reader() {
    let mut story = Story::begin(|beginning, _| beginning.unstored = true);
    story.answer(1, Answer::Part);
    story.after(UNREAD_MAX);
    story.facts.has_readers = false;
    story.after(UNREAD_MAX - SECOND);
    assert_eq!(story.end, None);
    story.after(SECOND);
    assert_eq!(story.end, Some(Err(Failure::Unread)));
    assert_eq!(story.machine.poll_timeout(), None);
    let actions = story.actions.len();
    story.machine.handle_ended(story.now, 1, ALL_CAME, &story.store);
    assert_eq!(story.machine.poll_action(story.now, &story.facts), None);
    assert_eq!(story.actions.len(), actions, "no event changes anything");
}

/// A fill whose one body brings everything that follows the first 16 pieces, and has brought so many pieces, one a second.
fn long_body(pieces: u32) -> (Story, u64) {
    let mut story = Story::begin(|_, _| {});
    story.answer(1, Answer::Part);
    story.end(1, 16, ALL_CAME);
    let connection = story.waiting();
    story.answer(connection, Answer::Part);
    assert_eq!(story.bodies[&connection], 16 * MIB..40 * MIB);
    for piece in 16..16 + pieces {
        story.store.insert(piece);
        story.after(SECOND);
    }
    (story, connection)
}

/// The same, whose body has then brought nothing for a while, when another connection joins.
fn slow_body() -> (Story, u64) {
    let (mut story, body) = long_body(4);
    story.after(40 * SECOND);
    (story.facts.share, story.facts.connection_rate) = (2, MIB);
    story.after(TICK);
    (story, body)
}

#[test]
fn what_a_client_wants_that_a_body_brings_late_comes_over_another_connection_and_the_body_stops_before_it() {
    let (mut story, body) = long_body(2);
    story.facts.waited_for = vec![18..19, 25..26, 28..30, 39..40];
    story.after(TICK);
    assert_eq!(story.first_pieces(), [28], "the first of them are on their way");
    assert_eq!(story.bodies[&body].end, 28 * MIB);
    let reader = story.waiting();
    assert_eq!(story.asked[&reader], 28 * MIB..30 * MIB, "what it reads, and no more");
    story.answer(reader, Answer::Part);
    assert_eq!(story.first_pieces(), [39], "no body brings it");
    story.finish();
    assert_eq!(
        story
            .actions
            .iter()
            .filter(|action| matches!(action, Action::Request { .. }))
            .count(),
        5
    );
}

#[test]
fn what_a_body_brings_soon_is_not_asked_for_again() {
    let (mut story, body) = long_body(8);
    story.facts.waited_for = vec![24..25, 25..40];
    story.after(TICK);
    assert!(story.asked.is_empty() && story.bodies[&body].end == 40 * MIB);
    story.finish();
}

#[test]
fn readers_get_four_connections_beyond_the_share_and_no_more() {
    let (mut story, _) = long_body(2);
    story.facts.waited_for = (22..40).step_by(2).map(|piece| piece..piece + 1).collect();
    story.after(TICK);
    for others in 1..=READERS_MAX {
        assert_eq!(story.asked.len(), 1, "one after the other");
        let connection = story.waiting();
        story.answer(connection, Answer::Part);
        assert_eq!(story.bodies.len(), 1 + others);
    }
    assert!(story.asked.is_empty());
    story.finish();
}

#[test]
fn a_connection_that_joins_takes_a_part_of_the_longest_body_from_its_end() {
    let (mut story, body) = slow_body();
    // Twenty pieces at a ninth of the other's rate.
    assert_eq!(story.first_pieces(), [23]);
    assert_eq!(story.bodies[&body].end, 23 * MIB);
    story.finish();
}

#[test]
fn a_body_that_ends_in_a_few_seconds_is_left_alone() {
    let (mut story, body) = long_body(21);
    (story.facts.share, story.facts.connection_rate) = (4, MIB);
    story.after(TICK);
    assert!(story.asked.is_empty() && story.bodies[&body].end == 40 * MIB);
    story.finish();
}

#[test]
fn a_body_goes_on_with_what_another_request_was_refused_or_answered_with_the_whole_for() {
    for answer in [
        Answer::Whole,
        Answer::Failed(Fault::Refused),
        Answer::Failed(Fault::TooManyRequests),
    ] {
        let (mut story, body) = slow_body();
        story.answer(story.waiting(), answer);
        assert_eq!(story.bodies[&body].end, 40 * MIB, "{answer:?}");
        story.facts.waited_for = vec![39..40];
        story.after(SECOND);
        assert_eq!(
            (story.asked.len(), story.end),
            (0, None),
            "{answer:?}: it is not tried again"
        );
        story.end(body, PIECES, ALL_CAME);
        assert_eq!(story.end, Some(Ok(())));
    }
}

#[test]
fn a_request_that_was_not_needed_may_fail_for_longer_than_a_fill_waits_for_bytes() {
    let (mut story, body) = long_body(4);
    story.facts.waited_for = vec![39..40];
    for second in 0..100 {
        story.after(SECOND);
        if let Some((&connection, _)) = story.asked.first_key_value() {
            story.answer(connection, Answer::Failed(Fault::Passing));
            assert_eq!(story.bodies[&body].end, 40 * MIB);
        }
        if second % 10 == 0 {
            let next = story.store.missing().next().unwrap();
            story.store.insert(next);
        }
        assert_eq!(story.end, None, "second {second}");
    }
    story.end(body, PIECES, ALL_CAME);
    story.after(RETRY_DELAY_MAX);
    assert_eq!(story.end, Some(Ok(())));
}

#[test]
fn the_end_of_a_body_that_was_asked_for_before_its_size_was_known_comes_first_when_a_client_waits_for_it() {
    let mut story = Story::begin(|beginning, _| beginning.opens = true);
    story.asked.clear();
    let beginning = Beginning {
        map: story.map,
        landed: PieceSet::new(PIECES),
        within: 0..story.map.blob_bytes(),
        patience: PATIENCE,
        opens: false,
        unstored: false,
        has_callers: false,
    };
    story.machine = Fill::new(Duration::ZERO, &beginning);
    story.machine.handle_first_body(story.now);
    story.facts.waited_for = vec![39..40];
    story.after(TICK);
    assert_eq!(story.first_pieces(), [39]);
    assert_eq!(story.bodies[&1], 0..39 * MIB);
    story.finish();
}

#[test]
fn when_the_disk_is_full_all_connections_close_and_what_is_missing_comes_in_order_over_one() {
    let mut story = Story::begin(|_, facts| facts.share = 4);
    while !story.asked.is_empty() {
        story.answer(story.waiting(), Answer::Part);
    }
    assert!(story.bodies.len() > 1, "several bodies come");
    story.store.insert(0);
    story.facts.waited_for = vec![PIECES - 1..PIECES];
    story.overflow();
    assert_eq!(story.count(&Action::CloseAll), 1);
    assert!(story.bodies.is_empty());
    let asked: Vec<u64> = story.asked.values().map(|bytes| bytes.start).collect();
    assert_eq!(asked, [MIB], "from the first missing piece on, whichever client waits");
    story.overflow();
    assert_eq!(story.count(&Action::CloseAll), 1, "once");
    story.finish();
    assert_eq!(story.end, Some(Ok(())));
}

#[test]
fn a_body_that_carries_the_rest_in_order_goes_on_when_the_disk_is_full() {
    let mut story = Story::begin(|_, _| {});
    story.answer(story.waiting(), Answer::Whole);
    story.overflow();
    assert_eq!((story.count(&Action::CloseAll), story.bodies.len()), (0, 1));
    story.finish();
    assert_eq!(story.end, Some(Ok(())));
}

#[test]
fn a_fill_that_is_not_kept_any_more_ends_once_it_has_no_readers_and_one_that_is_kept_does_not() {
    let mut story = Story::begin(|_, _| {});
    story.answer(story.waiting(), Answer::Part);
    // A stored one counts as read.
    story.after(2 * UNREAD_MAX);
    assert_eq!(story.end, None);
    story.facts.has_readers = false;
    story.overflow();
    story.after(UNREAD_MAX - SECOND);
    assert_eq!(story.end, None, "its readers may only now take their seats");
    story.after(2 * SECOND);
    assert_eq!(story.end, Some(Err(Failure::Unread)));
}

#[test]
fn a_fill_that_no_client_waits_for_asks_for_nothing_until_its_turn_and_has_all_its_patience_then() {
    let mut story = Story::begin(share(2));
    story.facts.share = 0;
    for _ in 0..2 {
        let connection = story.waiting();
        story.answer(connection, Answer::Part);
        story.end(connection, 1, BROKE_OFF);
    }
    story.after(PATIENCE * 20);
    assert_eq!((story.asked.len(), story.end), (0, None));
    story.facts.share = 1;
    story.after(TICK);
    let connection = story.waiting();
    story.answer(connection, Answer::Failed(Fault::Passing));
    assert_eq!(story.end, None, "nothing was asked for all that time");
    story.after(RETRY_DELAY_MAX);
    story.finish();
}

#[test]
fn without_its_turn_a_fill_still_asks_for_the_answer_that_opens_it_and_ends_when_all_is_here() {
    let mut story = Story::begin(|beginning, facts| (beginning.opens, facts.share) = (true, 0));
    let connection = story.waiting();
    story.answer(connection, Answer::Part);
    assert_eq!(story.count(&Action::Open), 1);
    story.end(connection, PIECES, ALL_CAME);
    assert!(story.asked.is_empty());
    story.facts.share = 1;
    story.after(TICK);
    story.finish();
    let whole = Story::begin(|beginning, facts| {
        beginning.landed = PieceSet::full(PIECES);
        facts.share = 0;
    });
    assert_eq!(whole.end, Some(Ok(())));
}
