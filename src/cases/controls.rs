//! Faults planted on purpose: a check that never fails cannot be told from one that does not run.
