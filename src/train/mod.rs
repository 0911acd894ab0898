//! What surrounds a training run: its settings, its schedule and its log.
