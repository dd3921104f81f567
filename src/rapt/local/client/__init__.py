"""The way to a service: only privatized files and wire values go out, and no signature here takes a text."""

from __future__ import annotations

from rapt.local.client.client import AsyncServiceClient, ServiceClient, follow_job
from rapt.local.client.objects import (
    CheckpointInfo,
    Completion,
    FileInfo,
    JobEvent,
    JobInfo,
    ModelInfo,
    PoolInfo,
    Prediction,
)

__all__ = [
    "AsyncServiceClient",
    "CheckpointInfo",
    "Completion",
    "FileInfo",
    "JobEvent",
    "JobInfo",
    "ModelInfo",
    "PoolInfo",
    "Prediction",
    "ServiceClient",
    "follow_job",
]
