//! Turn of a fill: while it is not its turn, its bodies are left unread.
//!
//! Bytes that upstream has sent wait in the connection: none of them is asked for twice, unless upstream closes it meanwhile.

use std::time::{Duration, Instant};

use tokio::sync::watch;

/// A body that waited for longer may have been closed by upstream for that.
const WAITED_LONG: Duration = Duration::from_secs(1);

/// The bodies' view of their fill's turn.
#[derive(Clone)]
pub(super) struct Turn(watch::Receiver<bool>);

/// How long a body has waited for its turn.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waited(Duration);

impl Turn {
    /// A fill whose turn it is.
    pub(super) fn begin() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(true);
        (sender, Self(receiver))
    }

    /// Waits for the turn.
    pub(super) async fn come(&self, waited: &mut Waited) {
        if *self.0.borrow() {
            return;
        }
        let (mut turn, since) = (self.0.clone(), Instant::now());
        // The sender lives as long as the fill.
        drop(turn.wait_for(|is_turn| *is_turn).await);
        waited.0 += since.elapsed();
    }
}

impl Waited {
    pub(super) fn time(self) -> Duration {
        self.0
    }

    /// Whether upstream may have closed the body because it was not read.
    pub(super) fn is_long(self) -> bool {
        self.0 >= WAITED_LONG
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_waits_while_it_is_not_its_fills_turn() {
        let (turn, of_body) = Turn::begin();
        let mut waited = Waited::default();
        of_body.come(&mut waited).await;
        assert_eq!(waited.time(), Duration::ZERO);
        turn.send_replace(false);
        let body = tokio::spawn(async move {
            let mut waited = Waited::default();
            of_body.come(&mut waited).await;
            waited
        });
        tokio::task::yield_now().await;
        assert!(!body.is_finished());
        turn.send_replace(true);
        assert!(body.await.is_ok_and(|waited| !waited.is_long()));
    }
}
