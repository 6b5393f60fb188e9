"""What can be wrong at the coordinator, whoever asks: errors name facts and know nothing of HTTP."""

from __future__ import annotations

import errno

from protocol.errors import CloisterError


class NotFound(CloisterError):
    """The thing that was named does not exist, or the caller may not know of it."""

    code = "not-found"


class Conflict(CloisterError):
    """The thing is in another state than the request needs."""

    code = "conflict"


class Unauthenticated(CloisterError):
    """Nobody has shown who is calling."""

    code = "unauthenticated"


class Forbidden(CloisterError):
    """The caller is known and may not do this."""

    code = "forbidden"


class TooLarge(CloisterError):
    """A request body over the limit."""

    code = "too-large"


class Unavailable(CloisterError):
    """The coordinator can't serve this now; trying again later may work."""

    code = "unavailable"


class StorageFull(CloisterError):
    """The disk or the database has no room left; nothing was stored."""

    code = "storage-full"


def storage_problem(error: BaseException) -> StorageFull | None:
    """StorageFull when the error, or what caused it, says that a disk or database is full."""
    seen: BaseException | None = error
    while seen is not None:
        full_disk = isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT)
        if full_disk or "disk is full" in str(seen) or "No space left on device" in str(seen):
            return StorageFull(
                "The coordinator's storage is full; nothing was stored.",
                "Free space or enlarge the volume, then retry.",
            )
        seen = seen.__cause__ or getattr(seen, "orig", None)
    return None


def place_of(error: BaseException) -> str:
    """module:line of the innermost frame of ours, without any value."""
    place, trace = "?", error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", "?"))
        if module.partition(".")[0] in ("coordinator", "protocol", "policies", "privacy"):
            place = f"{module}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
