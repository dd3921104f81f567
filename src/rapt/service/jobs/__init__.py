"""Tuning jobs: what was asked, who runs them, and what is told of them on the way."""
