//! Lines in which a process says what it has done, and the state of its folder that must hold from then on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use super::killer::Phase;

/// A line of the process, written before it goes on. Blobs are told by their place in the story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Phase(Phase),
    Opened(String),
    Beginning(usize),
    Wrote(usize, u32),
    /// The first bytes of a piece.
    Tail(usize, u32, usize),
    /// All that was written is written down.
    Saved,
    Published(usize),
    Held(usize),
    Evicting,
    Evicted(usize),
    /// Eviction is over; partials went without a word.
    Swept,
    NamesExpire,
    Removing(usize),
    Removed(usize),
    Ended(Phase, u64, u64, u64),
    Done,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Phase(phase) => write!(f, "phase {phase}"),
            Self::Opened(node) => write!(f, "opened {node}"),
            Self::Beginning(blob) => write!(f, "beginning {blob}"),
            Self::Wrote(blob, piece) => write!(f, "wrote {blob} {piece}"),
            Self::Tail(blob, piece, bytes) => write!(f, "tail {blob} {piece} {bytes}"),
            Self::Saved => write!(f, "saved"),
            Self::Published(blob) => write!(f, "published {blob}"),
            Self::Held(blob) => write!(f, "held {blob}"),
            Self::Evicting => write!(f, "evicting"),
            Self::Evicted(blob) => write!(f, "evicted {blob}"),
            Self::Swept => write!(f, "swept"),
            Self::NamesExpire => write!(f, "names-expire"),
            Self::Removing(blob) => write!(f, "removing {blob}"),
            Self::Removed(blob) => write!(f, "removed {blob}"),
            Self::Ended(phase, steps, micros, bytes) => write!(f, "ended {phase} {steps} {micros} {bytes}"),
            Self::Done => write!(f, "done"),
        }
    }
}

impl FromStr for Line {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        fn next<T: FromStr>(words: &mut dyn Iterator<Item = &str>) -> Option<T> {
            words.next()?.parse().ok()
        }
        let words = &mut text.split(' ');
        let line = match words.next() {
            Some("phase") => next(words).map(Self::Phase),
            Some("opened") => next(words).map(Self::Opened),
            Some("beginning") => next(words).map(Self::Beginning),
            Some("wrote") => next(words)
                .zip(next(words))
                .map(|(blob, piece)| Self::Wrote(blob, piece)),
            Some("tail") => next(words)
                .zip(next(words))
                .zip(next(words))
                .map(|((blob, piece), bytes)| Self::Tail(blob, piece, bytes)),
            Some("saved") => Some(Self::Saved),
            Some("published") => next(words).map(Self::Published),
            Some("held") => next(words).map(Self::Held),
            Some("evicting") => Some(Self::Evicting),
            Some("evicted") => next(words).map(Self::Evicted),
            Some("swept") => Some(Self::Swept),
            Some("names-expire") => Some(Self::NamesExpire),
            Some("removing") => next(words).map(Self::Removing),
            Some("removed") => next(words).map(Self::Removed),
            Some("ended") => next(words)
                .zip(next(words))
                .zip(next(words).zip(next(words)))
                .map(|((phase, steps), (micros, bytes))| Self::Ended(phase, steps, micros, bytes)),
            Some("done") => Some(Self::Done),
            _ => None,
        };
        line.ok_or_else(|| format!("{text:?} is no line"))
    }
}

/// The state that must hold of a folder, by the lines of its processes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub(crate) phase: Option<Phase>,
    pub(crate) node: Option<String>,
    pub(crate) published: BTreeSet<usize>,
    pub(crate) gone: BTreeSet<usize>,
    pub(crate) held: BTreeSet<usize>,
    /// Pieces, and lengths of tails, that a process that dies may lose.
    pub(crate) wrote: BTreeSet<(usize, u32)>,
    pub(crate) tails: BTreeMap<(usize, u32), usize>,
    /// And those that it may not.
    pub(crate) saved: BTreeSet<(usize, u32)>,
    pub(crate) saved_tails: BTreeMap<(usize, u32), usize>,
    pub(crate) evicting: bool,
    pub(crate) names: bool,
    pub(crate) done: bool,
}

impl Known {
    pub(crate) fn hear(&mut self, line: &Line) {
        match line {
            Line::Phase(phase) => {
                self.phase = Some(*phase);
                self.held.clear();
            }
            Line::Opened(node) => {
                let known = self.node.get_or_insert_with(|| node.clone());
                assert_eq!(known, node, "a node keeps its id");
                // The next one to save does not know of what the last one lost.
                self.wrote = self.saved.clone();
                self.tails = self.saved_tails.clone();
            }
            Line::Beginning(blob) => _ = self.gone.remove(blob),
            Line::Wrote(blob, piece) => {
                self.wrote.insert((*blob, *piece));
                self.tails.remove(&(*blob, *piece));
            }
            Line::Tail(blob, piece, bytes) => _ = self.tails.insert((*blob, *piece), *bytes),
            Line::Saved => {
                self.saved = self.wrote.clone();
                self.saved_tails = self.tails.clone();
            }
            Line::Published(blob) => {
                self.forget(*blob);
                self.published.insert(*blob);
            }
            Line::Held(blob) => _ = self.held.insert(*blob),
            Line::Evicting => self.evicting = true,
            Line::Evicted(blob) => {
                self.published.remove(blob);
                self.gone.insert(*blob);
            }
            Line::Swept => {
                self.evicting = false;
                self.forget_partials();
            }
            Line::NamesExpire => self.names = false,
            Line::Removing(blob) => {
                self.published.remove(blob);
                self.forget(*blob);
            }
            Line::Removed(blob) => _ = self.gone.insert(*blob),
            Line::Ended(..) => {}
            Line::Done => self.done = true,
        }
    }

    pub(crate) fn forget(&mut self, blob: usize) {
        for pieces in [&mut self.wrote, &mut self.saved] {
            pieces.retain(|(of, _)| *of != blob);
        }
        for tails in [&mut self.tails, &mut self.saved_tails] {
            tails.retain(|(of, _), _| *of != blob);
        }
    }

    fn forget_partials(&mut self) {
        self.wrote.clear();
        self.saved.clear();
        self.tails.clear();
        self.saved_tails.clear();
    }

    pub(crate) fn must_have(&self, blob: usize) -> bool {
        self.published.contains(&blob) && (!self.evicting || self.held.contains(&blob))
    }

    pub(crate) fn must_have_piece(&self, blob: usize, piece: u32) -> bool {
        !self.evicting && self.saved.contains(&(blob, piece))
    }

    pub(crate) fn tail_min(&self, blob: usize, piece: u32) -> usize {
        let saved = self.saved_tails.get(&(blob, piece)).filter(|_| !self.evicting);
        saved.copied().unwrap_or(0)
    }
}
