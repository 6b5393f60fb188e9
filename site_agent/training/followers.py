"""The worker's further processes, one for each device: forked before torch is loaded, in a network of their own.

Patients' data stays in these processes, which share the worker's confinement. They talk over the loopback of a network
namespace that nothing else is in; where the system gives the worker none, there are no further processes.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from privacy.local.ranks import Ranks

_PR_SET_PDEATHSIG = 1
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
# A process that waits for the first to begin its next step; the agent ends an idle worker long before.
LONGEST_WAIT = timedelta(hours=1)


class NoClosedNetwork(Exception):
    """This system does not let the worker have a network of its own, so it must not have several processes."""


def raise_loopback() -> None:
    """Bring up this network namespace's own loopback, for which a fresh one needs to be asked. Raises OSError."""
    import fcntl
    import socket
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))


def fork_followers(processes: int, follow: Callable[[int], None], kept: tuple[int, ...]) -> None:
    """Fork the processes of rank 1 to `processes` - 1, which run `follow(rank)` and end with this one.

    kept: descriptors that are the first process' alone, closed in the others. To be called before there is any thread.
    """
    first = os.getpid()
    for rank in range(1, processes):
        if os.fork():
            continue
        status = 1
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == first:
                for descriptor in kept:
                    os.close(descriptor)
                follow(rank)
                status = 0
        finally:
            # Nothing of the first process' may be flushed or run twice.
            os._exit(status)


def meeting_place() -> str:
    """Where the processes find each other: memory that only they have, by a path that each of them can open. It must
    be made before they are forked."""
    return f"/proc/self/fd/{os.memfd_create('ranks', 0)}"


def join(place: str, rank: int, processes: int, *, gpu: bool) -> Ranks:
    """This process among the site's: with NCCL where each can have a GPU of its own, else with gloo. Waits for all."""
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import FileStore

    from privacy.local.ranks import Ranks

    devices = gpu and torch.cuda.is_available() and torch.cuda.device_count() >= processes
    if devices:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if devices else "gloo",
        store=FileStore(place, processes),
        rank=rank,
        world_size=processes,
        timeout=LONGEST_WAIT,
    )
    return Ranks(f"cuda:{rank}" if devices else "cpu")
