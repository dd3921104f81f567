"""Tuning: methods, tasks, losses, the training loop, and what of a run survives a pause."""
