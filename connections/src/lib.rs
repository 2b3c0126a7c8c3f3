//! The connections of a port: which callers may hold one, and for how long.
//!
//! `slots` decides, `gate` carries it out, `watched` tells it how each connection does. Servers of any protocol use them.

mod gate;
mod slots;
mod watched;

pub use gate::{Gate, Slot, descriptors_max};
pub use slots::{Admitted, Block, Expired, Policy, Share, SlotId, Slots};
pub use watched::Watched;
