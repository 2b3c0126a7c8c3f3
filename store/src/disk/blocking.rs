//! Blocking threads: how work on the disk leaves the runtime's threads.
//!
//! Work that has begun runs to its end.

use std::io;

/// Runs `work` on a blocking thread. It runs to its end even when the caller gives up.
///
/// # Errors
/// When the runtime is shutting down and `work` never ran.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => Ok(value),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(io::Error::other("the runtime is shutting down")),
        },
    }
}
