"""What an exception means to the user: which event ends the run, and who has to act."""

from __future__ import annotations

import errno

import torch

from fm.errors import FMError, Unavailable
from fm.lifecycle import EventType, Fault
from fm.request import TrainRequest, what_takes_less

_OUT_OF_MEMORY = (
    *("out of memory", "can't allocate memory", "cannot allocate memory", "DefaultCPUAllocator"),
    "CUBLAS_STATUS_ALLOC_FAILED",  # of the products' workspace
)

_LOST_PEER = (
    *("Connection closed by peer", "Connection reset by peer", "Socket closed", "Broken pipe", "gloo/transport"),
    *("NCCL communicator was aborted", "ncclRemoteError", "remote process exited", "ncclSystemError"),
)
"""What gloo and NCCL say when the process at the other end is gone."""


def failure_event(error: BaseException, request: TrainRequest | None) -> tuple[EventType, str, Fault]:
    """The event that reports `error`, its message, and whose fault it is. `request`: what was to be done, if that is
    known already."""
    if is_out_of_memory(error):
        where = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        remedy = f"\n  → {what_takes_less(request)}" if request else ""
        return EventType.FAILED, f"the machine's memory does not hold this training{where}{remedy}", Fault.USER
    if isinstance(error, Unavailable):
        return EventType.FAILED, str(error), Fault.INFRASTRUCTURE
    if isinstance(error, FMError):
        return EventType.FAILED, str(error), Fault.USER
    if isinstance(error, OSError) and error.errno in (errno.EIO, errno.ESTALE, errno.ENODEV):
        return EventType.FAILED_EXCEPTION, f"{type(error).__name__}: {error}", Fault.INFRASTRUCTURE
    return EventType.FAILED_EXCEPTION, f"{type(error).__name__}: {error}", Fault.INTERNAL


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory, of the device or the machine, is exhausted."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def is_lost_peer(error: BaseException) -> bool:
    """Whether `error` says that another process of this training does not answer any more."""
    if isinstance(error, torch.distributed.DistNetworkError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST_PEER)
