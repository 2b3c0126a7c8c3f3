//! Stories of a transfer behind a leader on a virtual clock, each event by hand.

use std::time::Duration;

use super::{
    action::{Action, End, Leader, Reason, Reply, Rival},
    comparison::{LOOK_EVERY, PROBE_BYTES, SAMPLE_BYTES},
    machine::{Following, LEADER_PATIENCE, LEADER_WAITS_MAX, OWN_PATIENCE},
};
use crate::fill::patience::PLACE_PATIENCE;

const SAMPLE: Action = Action::Compare(SAMPLE_BYTES as u64);
const PROBE: Action = Action::Compare(PROBE_BYTES);
const MILLISECOND: Duration = Duration::from_millis(1);

/// A transfer whose task has looked which transfer leads.
struct Story {
    machine: Following,
    now: Duration,
    /// What has come from the leader, in bytes.
    arrived: u64,
}

impl Story {
    fn begin(leader: Leader) -> Self {
        let mut story = Self {
            machine: Following::new(),
            now: Duration::ZERO,
            arrived: 0,
        };
        assert_eq!(story.actions(), [Action::FindLeader]);
        story.machine.handle_leader(story.now, leader);
        story
    }

    /// A transfer that follows a public leader.
    fn follow() -> Self {
        let mut story = Self::begin(Leader::Public);
        story.machine.handle_first_bytes(true);
        story.arrived = 1000;
        story.reply(Reply::Has);
        assert_eq!(story.actions(), [Action::AwaitBytes, SAMPLE, Action::Follow]);
        story
    }

    /// A transfer that takes over from a leader that has stopped, and has room for it.
    fn take_over() -> Self {
        let mut story = Self::follow();
        story.wait();
        story.reply(Reply::Has);
        for step in [&[PROBE, Action::TakePlace][..], &[Action::TakeRoom]] {
            assert_eq!(story.actions(), step);
            story.machine.handle_done(story.now, Some(1000));
        }
        assert_eq!(story.actions(), [Action::TakeOver]);
        story
    }

    /// A transfer that has filled its blob apart, while its leader had so much.
    fn fill_apart(leader_had: Option<u64>) -> Self {
        let mut story = Self::begin(Leader::Private);
        for step in [Action::TakePlace, Action::OpenBody, Action::TakeRoom, Action::Receive] {
            assert_eq!(story.actions(), [step]);
            story.machine.handle_done(story.now, leader_had);
        }
        assert_eq!(story.actions(), [Action::Judge]);
        story
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.machine.poll_action()).collect()
    }

    fn reply(&mut self, reply: Reply) {
        self.machine.handle_reply(self.now, reply, self.arrived);
    }

    /// Nothing happens until the machine's next deadline; how long that takes.
    fn wait(&mut self) -> Duration {
        let due = self.machine.poll_timeout().expect("it waits for a time");
        let before = std::mem::replace(&mut self.now, due);
        self.machine.handle_timeout(due - MILLISECOND, self.arrived, false);
        assert_eq!(self.machine.poll_timeout(), Some(due), "it is too soon");
        self.machine.handle_timeout(due, self.arrived, false);
        due - before
    }

    fn judge(&mut self, rival: Option<Rival>) -> Vec<Action> {
        self.machine.handle_rival(rival);
        self.actions()
    }
}

fn agrees(arrived: u64) -> Option<Rival> {
    Some(Rival {
        arrived: Some(arrived),
        agrees: true,
        lacks: false,
    })
}

fn differs(arrived: u64) -> Option<Rival> {
    Some(Rival {
        arrived: Some(arrived),
        agrees: false,
        lacks: false,
    })
}

const FILLS_NOTHING: Option<Rival> = Some(Rival {
    arrived: None,
    agrees: true,
    lacks: false,
});

#[test]
fn a_transfer_without_a_leader_leads() {
    assert_eq!(Story::begin(Leader::Own).actions(), [Action::End(End::Lead)]);
}

#[test]
fn a_private_leader_is_left_at_once_and_is_asked_for_nothing() {
    assert_eq!(Story::begin(Leader::Private).actions(), [Action::TakePlace]);
}

#[test]
fn a_leader_with_the_same_bytes_is_followed_to_the_blob() {
    let mut story = Story::follow();
    assert!(story.machine.awaits_end());
    story.machine.handle_leader_ended(true);
    assert_eq!(story.actions(), [Action::End(End::Followed)]);
    assert_eq!(story.machine.poll_timeout(), None);
}

#[test]
fn a_leader_with_other_bytes_is_left_before_a_reader_sees_one() {
    let mut story = Story::begin(Leader::Public);
    story.machine.handle_first_bytes(true);
    story.reply(Reply::Other);
    assert_eq!(story.actions(), [Action::AwaitBytes, SAMPLE, Action::TakePlace]);
}

#[test]
fn a_silent_leader_is_left_once_this_upstream_would_bring_the_blob() {
    let mut story = Story::begin(Leader::Public);
    assert_eq!(story.wait(), LEADER_PATIENCE);
    assert_eq!(story.actions(), [Action::AwaitBytes, Action::AskUpstream]);
    story.reply(Reply::Has);
    assert_eq!(story.actions(), [Action::TakePlace]);
}

#[test]
fn a_silent_leader_is_waited_for_ten_times_while_this_upstream_fails_or_does_not_answer() {
    let mut story = Story::begin(Leader::Public);
    for wait in 0..LEADER_WAITS_MAX {
        assert_eq!(story.wait(), LEADER_PATIENCE);
        assert_eq!(story.actions(), [Action::AwaitBytes, Action::AskUpstream]);
        match wait % 2 {
            0 => story.reply(Reply::Fails),
            _ => assert_eq!(story.wait(), OWN_PATIENCE),
        }
    }
    assert_eq!(story.actions(), [Action::TakePlace]);
}

#[test]
fn a_leader_that_begins_after_this_upstream_did_not_answer_is_followed() {
    let mut story = Story::begin(Leader::Public);
    story.wait();
    story.wait();
    story.machine.handle_first_bytes(true);
    story.reply(Reply::Has);
    let expected = [
        Action::AwaitBytes,
        Action::AskUpstream,
        Action::AwaitBytes,
        SAMPLE,
        Action::Follow,
    ];
    assert_eq!(story.actions(), expected);
}

#[test]
fn each_leader_is_waited_for_as_often_as_the_first() {
    let mut story = Story::begin(Leader::Public);
    for _ in 1..LEADER_WAITS_MAX {
        story.wait();
        story.reply(Reply::Fails);
    }
    story.machine.handle_first_bytes(false);
    story.machine.handle_leader_ended(false);
    story.machine.handle_leader(story.now, Leader::Public);
    story.actions();
    story.wait();
    story.reply(Reply::Fails);
    assert_eq!(story.actions(), [Action::AskUpstream, Action::AwaitBytes]);
}

#[test]
fn an_upstream_that_refuses_ends_the_transfer_whenever_it_is_asked() {
    let mut waiting = Story::begin(Leader::Public);
    waiting.wait();
    let mut sampling = Story::begin(Leader::Public);
    sampling.machine.handle_first_bytes(true);
    let mut probing = Story::follow();
    probing.wait();
    for mut story in [waiting, sampling, probing] {
        story.actions();
        story.reply(Reply::Refuses);
        assert_eq!(story.actions(), [Action::End(End::Failed)]);
    }
}

#[test]
fn a_transfer_whose_first_sample_cannot_be_compared_fails() {
    let mut story = Story::begin(Leader::Public);
    story.machine.handle_first_bytes(true);
    story.reply(Reply::Fails);
    assert_eq!(story.actions(), [Action::AwaitBytes, SAMPLE, Action::End(End::Failed)]);
}

#[test]
fn a_slow_leader_is_left_for_a_faster_upstream_and_for_one_that_turns_out_to_have_other_bytes() {
    for (reply, took, is_left) in [
        (Reply::Has, Duration::from_secs(1), true),
        (Reply::Has, Duration::from_secs(4), false),
        (Reply::Other, Duration::ZERO, true),
        (Reply::Fails, Duration::ZERO, false),
    ] {
        let mut story = Story::follow();
        // 4 KiB a second.
        story.arrived += 8 * 1024;
        assert_eq!(story.wait(), LOOK_EVERY);
        assert_eq!(story.actions(), [PROBE]);
        story.now += took;
        story.reply(reply);
        let expected: &[Action] = if is_left { &[Action::TakePlace] } else { &[] };
        assert_eq!(story.actions(), expected, "{reply:?} after {took:?}");
        assert_eq!(story.machine.awaits_end(), !is_left);
    }
}

#[test]
fn what_a_slow_leader_has_is_taken_over_and_it_ends_once_the_blob_is_proven_and_can_be_kept() {
    for (lacks, arrived, expected) in [
        (true, 1001, &[Action::EndLeader(Reason::Slow), Action::JudgeNext][..]),
        (false, 1001, &[Action::End(End::Apart)]),
        (false, 1000, &[Action::EndLeader(Reason::Silent), Action::JudgeNext]),
    ] {
        let mut story = Story::take_over();
        story.machine.handle_done(story.now, Some(arrived));
        assert_eq!(story.actions(), [Action::Judge]);
        let rival = Rival {
            arrived: Some(arrived),
            agrees: true,
            lacks,
        };
        assert_eq!(story.judge(Some(rival)), expected);
    }
}

#[test]
fn an_upstream_proves_the_blob_alone_where_it_is_wrong_with_a_leaders_pieces_and_fails_where_it_is_wrong_again() {
    let mut story = Story::take_over();
    story.machine.handle_wrong();
    assert_eq!(story.actions(), [Action::StartOver, Action::OpenBody]);
    for step in [Action::TakeRoom, Action::Receive] {
        story.machine.handle_done(story.now, Some(1000));
        assert_eq!(story.actions(), [step]);
    }
    let mut liar = story;
    liar.machine.handle_wrong();
    assert_eq!(liar.actions(), [Action::End(End::Failed)]);
}

#[test]
fn a_slow_leader_is_not_left_for_an_upstream_that_does_not_answer() {
    let mut story = Story::follow();
    assert_eq!(story.wait(), LOOK_EVERY);
    assert_eq!(story.wait(), LOOK_EVERY, "the answer's time is over");
    assert_eq!(story.actions(), [PROBE]);
    assert_eq!(story.wait(), 2 * LOOK_EVERY, "the next look");
}

#[test]
fn a_fast_leader_is_not_compared() {
    let mut story = Story::follow();
    for _ in 0..10 {
        story.arrived += 100 * 1024 * 1024;
        assert_eq!(story.wait(), LOOK_EVERY);
        assert_eq!(story.actions(), []);
    }
}

#[test]
fn a_leader_that_fails_has_its_place_taken_and_readers_wait_only_if_they_had_begun() {
    let mut early = Story::begin(Leader::Public);
    early.machine.handle_first_bytes(false);
    assert!(early.machine.awaits_end() && early.machine.poll_timeout().is_none());
    early.machine.handle_leader_ended(false);
    assert_eq!(early.actions(), [Action::AwaitBytes, Action::FindLeader]);
    let mut late = Story::follow();
    late.machine.handle_leader_ended(false);
    assert_eq!(late.actions(), [Action::StartOver, Action::FindLeader]);
    for mut story in [early, late] {
        story.machine.handle_leader(story.now, Leader::Own);
        assert_eq!(story.actions(), [Action::End(End::Lead)]);
    }
}

#[test]
fn a_leader_that_is_proven_wrong_ends_and_so_does_each_that_follows_it_until_none_is_left() {
    let mut story = Story::fill_apart(Some(10));
    let ends = [Action::EndLeader(Reason::OtherBytes), Action::JudgeNext];
    assert_eq!(story.judge(differs(1000)), ends);
    assert_eq!(story.judge(differs(10)), ends);
    assert_eq!(story.judge(None), [Action::End(End::Keep)]);
}

#[test]
fn a_leader_that_has_stood_still_ends_and_one_that_goes_on_with_the_blob_s_bytes_stays() {
    let ends = [Action::EndLeader(Reason::Silent), Action::JudgeNext];
    assert_eq!(Story::fill_apart(Some(10)).judge(agrees(10)), ends);
    assert_eq!(Story::fill_apart(Some(10)).judge(FILLS_NOTHING), ends);
    assert_eq!(Story::fill_apart(None).judge(FILLS_NOTHING), ends);
    let stays = [Action::End(End::Apart)];
    assert_eq!(Story::fill_apart(Some(10)).judge(agrees(11)), stays);
    assert_eq!(Story::fill_apart(None).judge(agrees(0)), stays);
}

#[test]
fn a_leader_that_has_just_begun_in_the_place_of_another_has_its_time() {
    for next in [agrees(0), FILLS_NOTHING] {
        let mut story = Story::fill_apart(Some(10));
        story.judge(differs(10));
        assert_eq!(story.judge(next), [Action::End(End::Apart)]);
    }
}

#[test]
fn a_fill_apart_waits_for_its_places_ten_seconds_and_gives_its_own_up_when_it_is_told_to() {
    let mut story = Story::begin(Leader::Private);
    assert_eq!(story.wait(), PLACE_PATIENCE);
    assert_eq!(story.actions(), [Action::TakePlace, Action::End(End::Crowded)]);
    for done in 1..=3 {
        let mut story = Story::begin(Leader::Private);
        (0..done).for_each(|_| story.machine.handle_done(story.now, None));
        story.machine.handle_crowded();
        assert_eq!(story.actions().last(), Some(&Action::End(End::Crowded)));
    }
    let mut story = Story::begin(Leader::Private);
    (0..2).for_each(|_| story.machine.handle_done(story.now, None));
    assert_eq!(story.wait(), PLACE_PATIENCE);
    assert_eq!(story.actions().last(), Some(&Action::End(End::Crowded)));
}

#[test]
fn a_fill_apart_that_fails_ends_no_leader() {
    for done in 0..=3 {
        let mut story = Story::begin(Leader::Private);
        (0..done).for_each(|_| story.machine.handle_done(story.now, Some(10)));
        story.machine.handle_failed();
        assert_eq!(story.actions().last(), Some(&Action::End(End::Failed)));
        story.machine.handle_rival(differs(10));
        assert_eq!(story.actions(), []);
    }
}
