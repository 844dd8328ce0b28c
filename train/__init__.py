"""Training: synthetic data, the stages, and the checkpoints they make."""
