//! Ledger of a store's space: the size and last use of every blob and partial, for quota, free-space floor and TTL.
//!
//! Every blob and partial on disk has one entry here, a partial with the size of its whole blob,
//! so that a fill that was admitted can always finish. The sums equal the entries, and `by_use` holds exactly the entries. An
//! entry that is pinned (read or filled) or already leaving is never chosen as a victim. Pure: no disk, no clock.

use std::collections::{BTreeSet, HashMap};

use piecemeal_proto::Digest;

use super::entry::{Entry, EntryKind, Generation};
use crate::values::clock::Age;

/// Every blob and partial in the store, in order of last use.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    entries: HashMap<Digest, Entry>,
    by_use: BTreeSet<(Age, Digest)>,
    blobs: Sum,
    partials: Sum,
    generations: u64,
}

/// The number of the entries of one kind, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
}

impl Ledger {
    /// Adds an entry, in place of an older one.
    pub(crate) fn insert(&mut self, digest: Digest, kind: EntryKind, bytes: u64, used: Age) -> Generation {
        self.remove(&digest);
        self.generations += 1;
        let generation = Generation(self.generations);
        let entry = Entry {
            kind,
            bytes,
            used,
            generation,
            pins: 0,
            is_leaving: false,
        };
        self.entries.insert(digest, entry);
        self.by_use.insert((used, digest));
        self.sum(kind).add(bytes);
        generation
    }

    /// The entry, unless it is on its way out.
    pub(crate) fn get(&self, digest: &Digest) -> Option<&Entry> {
        self.entries.get(digest).filter(|entry| !entry.is_leaving)
    }

    /// The kind of the digest's entry, leaving or not.
    pub(crate) fn kind(&self, digest: &Digest) -> Option<EntryKind> {
        self.entries.get(digest).map(|entry| entry.kind)
    }

    pub(crate) fn remove(&mut self, digest: &Digest) -> Option<Entry> {
        let entry = self.entries.remove(digest)?;
        self.by_use.remove(&(entry.used, *digest));
        self.sum(entry.kind).subtract(entry.bytes);
        Some(entry)
    }

    /// Marks an entry as used at `now`.
    pub(crate) fn touch(&mut self, digest: &Digest, now: Age) {
        if let Some(entry) = self.entries.get_mut(digest)
            && entry.used < now
        {
            self.by_use.remove(&(entry.used, *digest));
            entry.used = now;
            self.by_use.insert((now, *digest));
        }
    }

    /// Keeps an entry from being a victim until [`Ledger::unpin`]. `None` when there is no such entry, or it is leaving.
    pub(crate) fn pin(&mut self, digest: &Digest) -> Option<Generation> {
        let entry = self.entries.get_mut(digest).filter(|entry| !entry.is_leaving)?;
        entry.pins += 1;
        Some(entry.generation)
    }

    /// Takes one pin back, and counts that as a use when it was one; says whether the entry that was pinned is still there.
    pub(crate) fn unpin(&mut self, digest: &Digest, generation: Generation, now: Option<Age>) -> bool {
        let Some(entry) = self
            .entries
            .get_mut(digest)
            .filter(|entry| entry.generation == generation)
        else {
            return false;
        };
        entry.pins = entry.pins.checked_sub(1).expect("every unpin follows its pin");
        if let Some(now) = now {
            self.touch(digest, now);
        }
        true
    }

    /// A partial became a blob, keeping its pins.
    pub(crate) fn promote(&mut self, digest: &Digest, now: Age) {
        if let Some(entry) = self.entries.get_mut(digest)
            && entry.kind == EntryKind::Partial
        {
            entry.kind = EntryKind::Blob;
            let bytes = entry.bytes;
            self.partials.subtract(bytes);
            self.blobs.add(bytes);
            self.touch(digest, now);
        }
    }

    /// The least recently used entries that together hold at least `shortage_bytes`; `None` when all that may go would not
    /// suffice. `enter` may refuse an entry, such as one that another task works on; what it returns stands for the victim.
    pub(crate) fn victims<G>(
        &self,
        shortage_bytes: u64,
        mut enter: impl FnMut(&Digest) -> Option<G>,
    ) -> Option<Vec<G>> {
        let mut victims = Vec::new();
        let mut found_bytes = 0_u64;
        for (_, digest) in &self.by_use {
            if found_bytes >= shortage_bytes {
                break;
            }
            let entry = &self.entries[digest];
            // An empty blob frees nothing: it goes by TTL only.
            if entry.is_evictable()
                && entry.bytes > 0
                && let Some(victim) = enter(digest)
            {
                victims.push(victim);
                found_bytes = found_bytes.saturating_add(entry.bytes);
            }
        }
        (found_bytes >= shortage_bytes).then_some(victims)
    }

    /// The entries that may go and were last used at `moment` or before, the oldest first.
    pub(crate) fn unused_since(&self, moment: Age) -> impl Iterator<Item = Digest> + '_ {
        self.by_use
            .iter()
            .take_while(move |(used, _)| *used <= moment)
            .map(|(_, digest)| *digest)
            .filter(|digest| self.entries[digest].is_evictable())
    }

    /// Takes an entry out of sight while its file is removed; `false` when it may not go.
    pub(crate) fn start_leaving(&mut self, digest: &Digest) -> bool {
        self.entries
            .get_mut(digest)
            .filter(|entry| entry.is_evictable())
            .map(|entry| entry.is_leaving = true)
            .is_some()
    }

    /// The file could not be removed after all.
    pub(crate) fn stop_leaving(&mut self, digest: &Digest) {
        if let Some(entry) = self.entries.get_mut(digest) {
            entry.is_leaving = false;
        }
    }

    pub(crate) fn blobs(&self) -> Sum {
        self.blobs
    }

    pub(crate) fn partials(&self) -> Sum {
        self.partials
    }

    /// Bytes on disk or promised.
    pub(crate) fn bytes(&self) -> u64 {
        self.blobs.bytes.saturating_add(self.partials.bytes)
    }

    /// The digests of one kind, ascending.
    pub(crate) fn digests(&self, kind: EntryKind) -> Vec<Digest> {
        let mut digests: Vec<Digest> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.kind == kind && !entry.is_leaving)
            .map(|(digest, _)| *digest)
            .collect();
        digests.sort_unstable();
        digests
    }

    /// Every entry that is not on its way out.
    pub(crate) fn all(&self) -> Vec<(Digest, Entry)> {
        let staying = self.entries.iter().filter(|(_, entry)| !entry.is_leaving);
        staying.map(|(digest, entry)| (*digest, *entry)).collect()
    }

    fn sum(&mut self, kind: EntryKind) -> &mut Sum {
        match kind {
            EntryKind::Blob => &mut self.blobs,
            EntryKind::Partial => &mut self.partials,
        }
    }
}

impl Sum {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn subtract(&mut self, bytes: u64) {
        self.count -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn digest(id: u8) -> Digest {
        Digest::of(&[id])
    }

    #[test]
    fn an_old_handle_never_unpins_the_successor() {
        let mut ledger = Ledger::default();
        ledger.insert(digest(1), EntryKind::Partial, 10, Age(0));
        let old = ledger.pin(&digest(1)).unwrap();
        ledger.insert(digest(1), EntryKind::Partial, 10, Age(0));
        let new = ledger.pin(&digest(1)).unwrap();
        assert!(!ledger.unpin(&digest(1), old, Some(Age(0))));
        assert!(!ledger.start_leaving(&digest(1)));
        assert!(ledger.unpin(&digest(1), new, Some(Age(0))));
        assert!(ledger.start_leaving(&digest(1)));
        assert_eq!(ledger.pin(&digest(1)), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u8, u64),
        Touch(u8),
        Pin(u8),
        Unpin(u8),
        Promote(u8),
        Remove(u8),
        Evict(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let id = 0_u8..8;
        prop_oneof![
            (id.clone(), 0_u64..40).prop_map(|(id, bytes)| Step::Insert(id, bytes)),
            id.clone().prop_map(Step::Touch),
            id.clone().prop_map(Step::Pin),
            id.clone().prop_map(Step::Unpin),
            id.clone().prop_map(Step::Promote),
            id.prop_map(Step::Remove),
            (0_u64..120).prop_map(Step::Evict),
        ]
    }

    /// The model: a plain list, the least recently used first.
    #[derive(Clone, Debug, PartialEq)]
    struct Item {
        id: u8,
        bytes: u64,
        pins: Vec<Generation>,
    }

    proptest! {
        #[test]
        fn eviction_behaves_like_a_list_in_order_of_use(steps in vec(step(), 0..60)) {
            let mut ledger = Ledger::default();
            let mut model: Vec<Item> = Vec::new();
            for (now, step) in (1..).map(Age).zip(steps) {
                let place = |model: &[Item], id| model.iter().position(|item| item.id == id);
                match step {
                    Step::Insert(id, bytes) => {
                        model.retain(|item| item.id != id);
                        model.push(Item { id, bytes, pins: Vec::new() });
                        ledger.insert(digest(id), EntryKind::Partial, bytes, now);
                    }
                    Step::Touch(id) => {
                        ledger.touch(&digest(id), now);
                        if let Some(at) = place(&model, id) {
                            let item = model.remove(at);
                            model.push(item);
                        }
                    }
                    Step::Pin(id) => {
                        let pin = ledger.pin(&digest(id));
                        prop_assert_eq!(pin.is_some(), place(&model, id).is_some());
                        if let (Some(at), Some(pin)) = (place(&model, id), pin) {
                            model[at].pins.push(pin);
                        }
                    }
                    Step::Unpin(id) => {
                        if let Some(at) = place(&model, id)
                            && let Some(pin) = model[at].pins.pop()
                        {
                            prop_assert!(ledger.unpin(&digest(id), pin, Some(now)));
                            let item = model.remove(at);
                            model.push(item);
                        }
                    }
                    Step::Promote(id) => {
                        let partial = ledger.get(&digest(id)).is_some_and(|entry| entry.kind == EntryKind::Partial);
                        ledger.promote(&digest(id), now);
                        if partial && let Some(at) = place(&model, id) {
                            let item = model.remove(at);
                            model.push(item);
                        }
                    }
                    Step::Remove(id) => {
                        prop_assert_eq!(ledger.remove(&digest(id)).is_some(), place(&model, id).is_some());
                        model.retain(|item| item.id != id);
                    }
                    Step::Evict(shortage) => {
                        let mut expected = Vec::new();
                        let mut freed = 0;
                        for item in model.iter().filter(|item| item.pins.is_empty() && item.bytes > 0) {
                            if freed >= shortage {
                                break;
                            }
                            freed += item.bytes;
                            expected.push(digest(item.id));
                        }
                        let victims = ledger.victims(shortage, |digest| Some(*digest));
                        prop_assert_eq!(&victims, &(freed >= shortage).then_some(expected));
                        for victim in victims.unwrap_or_default() {
                            prop_assert!(ledger.start_leaving(&victim));
                            ledger.remove(&victim);
                            model.retain(|item| digest(item.id) != victim);
                        }
                    }
                }
                prop_assert_eq!(ledger.bytes(), model.iter().map(|item| item.bytes).sum::<u64>());
                prop_assert_eq!(ledger.blobs().count + ledger.partials().count, model.len() as u64);
                prop_assert_eq!(ledger.by_use.len(), model.len());
            }
        }
    }
}
