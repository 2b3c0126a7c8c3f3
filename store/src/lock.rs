//! Mutexes that survive a panic.
//!
//! The critical sections of this crate are short and leave their data whole at every step, so a panic elsewhere in a thread
//! that held one is no reason to bring down every other user of the store.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
