//! Queue of the reports to the scheduler: bounded in memory, closed while there is no connection to send them.
//!
//! Invariant: reports keep their order, but for one case: a `Have` that continues an earlier one of the same blob joins it, as
//! long as no other report about a blob came in between.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use piecemeal_proto::{
    PIECE_COUNT_MAX, PIECE_HASH_BYTES,
    wire::{self, HAVE_PIECES_MAX, MESSAGE_BYTES_MAX, report::Report},
};
use prost::Message;
use tokio::sync::Notify;

/// The node's components fill it, the connection empties it.
#[derive(Debug, Default)]
pub(super) struct ReportQueue {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    open: bool,
    overflowed: bool,
    reports: VecDeque<wire::Report>,
    bytes: usize,
    /// Reports that have left the queue: turns a position in `continued` into an index.
    left: u64,
    /// By blob, fill and the piece that would come next: the position of the `Have` that it would continue.
    continued: HashMap<(String, u64, u32), u64>,
}

impl ReportQueue {
    /// Reports are kept from now on. Earlier ones belonged to an earlier connection, and are dropped.
    pub(super) fn open(&self) {
        *self.inner.lock() = Inner {
            open: true,
            ..Inner::default()
        };
    }

    /// Reports are dropped from now on.
    pub(super) fn close(&self) {
        *self.inner.lock() = Inner::default();
    }

    /// Never blocks. A report that does not fit closes the queue, and [`ReportQueue::overflowed`] tells the connection.
    pub(super) fn push(&self, report: Report) {
        let mut inner = self.inner.lock();
        if !inner.open {
            return;
        }
        inner.push(report);
        if inner.bytes > QUEUE_BYTES_MAX {
            *inner = Inner {
                overflowed: true,
                ..Inner::default()
            };
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Waits until there is something to send. Cancel safe.
    pub(super) async fn ready(&self) {
        self.wait(|inner| !inner.reports.is_empty()).await;
    }

    /// Waits until the queue has overflowed since it was opened. Cancel safe.
    pub(super) async fn overflowed(&self) {
        self.wait(|inner| inner.overflowed).await;
    }

    /// The oldest reports, as many as fit into one message.
    pub(super) fn poll_message(&self) -> Option<wire::Reports> {
        let mut inner = self.inner.lock();
        // Reports that are being sent can no longer be extended.
        inner.continued.clear();
        let queued = &mut inner.reports;
        let count = message_len(queued.iter());
        let reports: Vec<_> = queued.drain(..count).collect();
        inner.left += u64::try_from(count).expect("a message is small");
        inner.bytes -= reports.iter().map(cost).sum::<usize>();
        (!reports.is_empty()).then_some(wire::Reports { reports })
    }

    async fn wait(&self, condition: impl Fn(&Inner) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Listens before it looks, so that no change falls in between.
            changed.as_mut().enable();
            if condition(&self.inner.lock()) {
                return;
            }
            changed.await;
        }
    }
}

impl Inner {
    fn push(&mut self, report: Report) {
        match report {
            Report::Have(have) => self.push_have(have),
            // A lease's end concerns no piece.
            report @ Report::LeaseEnded(_) => self.append(report),
            report => {
                self.continued.clear();
                self.append(report);
            }
        }
    }

    fn append(&mut self, report: Report) {
        let report = wire::Report { report: Some(report) };
        self.bytes += cost(&report);
        self.reports.push_back(report);
    }

    fn push_have(&mut self, have: wire::Have) {
        let digest = have.digest.clone();
        let (fill, end) = (have.fill, have.first.saturating_add(have.count));
        let place = self.continued.remove(&(digest.clone(), fill, have.first));
        let place = match place.and_then(|place| self.join(place, &have)) {
            Some(place) => place,
            None => {
                self.append(Report::Have(have));
                self.left + u64::try_from(self.reports.len()).expect("the queue is bounded") - 1
            }
        };
        self.continued.insert((digest, fill, end), place);
    }

    /// Adds the pieces of `have` to those of the `Have` at `place`, if the two are alike.
    fn join(&mut self, place: u64, have: &wire::Have) -> Option<u64> {
        let index = usize::try_from(place.checked_sub(self.left)?).ok()?;
        let report = self.reports.get_mut(index)?;
        let cost_before = cost(report);
        let Some(Report::Have(first)) = report.report.as_mut() else {
            return None;
        };
        let count = first.count.checked_add(have.count)?;
        let alike = first.blob_bytes == have.blob_bytes
            && first.piece_bytes == have.piece_bytes
            && first.hash_algorithm == have.hash_algorithm
            && first.hashes.is_empty() == have.hashes.is_empty();
        if !alike || usize::try_from(count).ok()? > HAVE_PIECES_MAX {
            return None;
        }
        first.count = count;
        first.hashes.extend_from_slice(&have.hashes);
        self.bytes += cost(report) - cost_before;
        Some(place)
    }
}

/// Cuts reports into messages that a scheduler reads.
pub(super) fn pack(reports: Vec<Report>) -> impl Iterator<Item = wire::Reports> {
    let mut left: VecDeque<_> = reports
        .into_iter()
        .map(|report| wire::Report { report: Some(report) })
        .collect();
    std::iter::from_fn(move || {
        let count = message_len(left.iter());
        (count > 0).then(|| wire::Reports {
            reports: left.drain(..count).collect(),
        })
    })
}

/// The number of `reports` that fit one message: at least one, if there is any.
fn message_len<'a>(reports: impl Iterator<Item = &'a wire::Report>) -> usize {
    let mut bytes = 0;
    let fitting = reports.take(MESSAGE_REPORTS_MAX).take_while(|report| {
        let first = bytes == 0;
        bytes += report.encoded_len() + FRAMING_BYTES;
        first || bytes <= MESSAGE_BYTES_MAX / 2
    });
    fitting.count()
}

/// A report's approximate size in memory, in bytes.
fn cost(report: &wire::Report) -> usize {
    size_of::<wire::Report>() + report.encoded_len()
}

/// Most reports in one message: fewer than a scheduler takes, with room to spare for the limits of other versions.
const MESSAGE_REPORTS_MAX: usize = 1024;
/// Tag and length of a report within its message.
const FRAMING_BYTES: usize = 8;
/// Memory of the queue, in bytes: a description of the largest blob's pieces, which comes all at once, and as much again as one
/// message for the rest. At about 200 bytes a report that rest is 20,000 reports: several seconds of a fast disk's pieces.
const QUEUE_BYTES_MAX: usize = PIECE_COUNT_MAX as usize * PIECE_HASH_BYTES + MESSAGE_BYTES_MAX;

#[cfg(test)]
mod tests {
    use super::*;

    fn have(digest: &str, first: u32, count: u32) -> Report {
        Report::Have(wire::Have {
            digest: digest.into(),
            fill: 7,
            first,
            count,
            hashes: (first..first + count)
                .flat_map(|piece| [piece.to_le_bytes()[0]; 32])
                .collect(),
            ..wire::Have::default()
        })
    }

    fn unwant(digest: &str) -> Report {
        Report::Unwant(wire::Unwant { digest: digest.into() })
    }

    fn ended(lease: u64) -> Report {
        Report::LeaseEnded(wire::LeaseEnded {
            lease,
            ..wire::LeaseEnded::default()
        })
    }

    fn queue(reports: impl IntoIterator<Item = Report>) -> ReportQueue {
        let queue = ReportQueue::default();
        queue.open();
        for report in reports {
            queue.push(report);
        }
        queue
    }

    fn sent(queue: &ReportQueue) -> Vec<Report> {
        let messages = std::iter::from_fn(|| queue.poll_message());
        messages
            .flat_map(|message| message.reports)
            .map(|report| report.report.unwrap())
            .collect()
    }

    #[test]
    fn pieces_that_continue_each_other_are_one_report() {
        let queue = queue([
            have("a", 0, 1),
            have("b", 5, 2),
            ended(1),
            have("a", 1, 1),
            have("a", 9, 1),
            have("b", 7, 1),
            have("a", 2, 1),
            have("a", 10, 1),
        ]);
        let expected = [have("a", 0, 3), have("b", 5, 3), ended(1), have("a", 9, 2)];
        assert_eq!(sent(&queue), expected);
        assert_eq!(queue.inner.lock().bytes, 0);
    }

    #[test]
    fn pieces_are_not_moved_past_what_was_said_in_between() {
        let reports = [have("a", 0, 1), unwant("a"), have("a", 1, 1)];
        assert_eq!(sent(&queue(reports.clone())), reports);
    }

    #[test]
    fn what_was_sent_is_not_added_to() {
        let queue = queue([have("a", 0, 1)]);
        assert_eq!(sent(&queue), [have("a", 0, 1)]);
        queue.push(have("a", 1, 1));
        assert_eq!(sent(&queue), [have("a", 1, 1)]);
    }

    #[test]
    fn unlike_pieces_stay_apart() {
        let mut other_fill = have("a", 1, 1);
        let mut no_hashes = have("a", 1, 1);
        if let (Report::Have(other_fill), Report::Have(no_hashes)) = (&mut other_fill, &mut no_hashes) {
            other_fill.fill = 8;
            no_hashes.hashes.clear();
        }
        for other in [other_fill, no_hashes] {
            let reports = [have("a", 0, 1), other];
            assert_eq!(sent(&queue(reports.clone())), reports);
        }
        let most = u32::try_from(HAVE_PIECES_MAX).unwrap();
        let reports = [have("a", 0, most), have("a", most, 1)];
        assert_eq!(sent(&queue(reports.clone())), reports);
    }

    #[test]
    fn messages_keep_within_what_a_scheduler_reads() {
        let count = u32::try_from(HAVE_PIECES_MAX).unwrap();
        let large = (0..20).map(|index| have("a", index * 2 * count, count));
        let small = (0..3000).map(ended);
        let reports: Vec<_> = large.chain(small).collect();
        let queue = queue(reports.clone());
        let messages: Vec<_> = std::iter::from_fn(|| queue.poll_message()).collect();
        assert_eq!(messages, pack(reports.clone()).collect::<Vec<_>>());
        for message in &messages {
            assert!(message.encoded_len() <= MESSAGE_BYTES_MAX && message.reports.len() <= MESSAGE_REPORTS_MAX);
        }
        assert_eq!(
            messages.into_iter().flat_map(|message| message.reports).count(),
            reports.len()
        );
    }

    #[tokio::test]
    async fn nothing_is_kept_while_closed_and_too_much_closes() {
        let queue = ReportQueue::default();
        queue.push(ended(1));
        assert_eq!(sent(&queue), []);
        queue.open();
        let count = u32::try_from(HAVE_PIECES_MAX).unwrap();
        let whole = u32::try_from(QUEUE_BYTES_MAX / HAVE_PIECES_MAX / PIECE_HASH_BYTES).unwrap();
        for index in 0..=whole {
            queue.push(have("a", index * 2 * count, count));
        }
        queue.overflowed().await;
        assert_eq!(sent(&queue), []);
        queue.push(ended(2));
        assert_eq!(sent(&queue), []);
        queue.open();
        queue.push(ended(3));
        queue.ready().await;
        assert_eq!(sent(&queue), [ended(3)]);
    }
}
