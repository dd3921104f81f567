"""Replicas of the base models on a Ray cluster: what they compute for a service, and what runs its jobs."""
