//! A recorded training step of another implementation, computed again.
