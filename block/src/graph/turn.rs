//! Whose turn it is to change a graph.
//!
//! A change that takes several steps must not meet another half way: what it takes back, or closes as left over, would not
//! be what it found. Ownership of all nodes is such a change, so a guest that is resumed or migrates waits for a
//! command under way.

use super::BlockGraph;
use crate::ranges::RangeGuard;

/// A turn; the next one begins when it is dropped.
#[must_use = "the turn is over when it is dropped"]
pub struct Turn(#[expect(dead_code, reason = "held until it is dropped")] RangeGuard);

impl BlockGraph {
    /// Waits for those who came before.
    pub async fn turn(&self) -> Turn {
        Turn(self.0.turns.lock(0..1, true).await)
    }
}
