"""What the SuperLink's process runs: `superlink_child.py PARENT_PID <flower-superlink arguments>`.

It watches its parent: when the coordinator is gone, however it went, this process goes too. A parent-death signal
from the kernel would not do, for it follows the *thread* that started the child.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

WATCH_SECONDS = 0.2


def follow_parent(parent: int) -> None:
    """End this process as soon as `parent` is no longer its parent."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Run Flower's own command in this process."""
    threading.Thread(target=follow_parent, args=(int(sys.argv[1]),), daemon=True).start()
    sys.argv = ["flower-superlink", *sys.argv[2:]]
    from flwr.superlink.cli import flower_superlink

    flower_superlink()


if __name__ == "__main__":
    main()
