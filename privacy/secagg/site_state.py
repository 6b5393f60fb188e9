"""The bytes of a site's secure aggregation state: JSON of a fixed shape, for the site's own encrypted
database.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from privacy.secagg.key_agreement import MLKEM_SEED_BYTES, PairRoots, SetupKeys
from privacy.secagg.masking import KEY_BYTES
from privacy.secagg.messages import DIGEST_BYTES, Encapsulations, KeyAdvert, check_keys, from_text, to_text
from privacy.secagg.refusals import Refusal, Refused

VERSION = 2
_FIELDS = frozenset(
    {"version", "site", "study", "plan_digest", "peers", "minimum_cohort", "lengths", "allowed", "transcript"}
    | {"setup", "adverts", "sent", "early_roots", "roots", "last", "spent"}
)


def dump(fields: Mapping[str, Any]) -> bytes:
    """The machine's fields -> bytes; the same fields always give the same bytes."""
    setup: SetupKeys | None = fields["setup"]
    sent: Encapsulations | None = fields["sent"]
    roots: PairRoots | None = fields["roots"]
    adverts: Mapping[str, KeyAdvert] = fields["adverts"]
    document = {
        **fields,
        "version": VERSION,
        "plan_digest": to_text(fields["plan_digest"]),
        "transcript": fields["transcript"] and to_text(fields["transcript"]),
        "setup": setup and {"x25519": to_text(setup.x25519_private), "mlkem": to_text(setup.mlkem_seed)},
        "adverts": {site: advert.to_dict() for site, advert in adverts.items()},
        "sent": sent and sent.to_dict(),
        "early_roots": _roots_to_dict(fields["early_roots"]),
        "roots": roots and {"round": roots.round_number, "roots": _roots_to_dict(roots.roots)},
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def load(state: bytes) -> dict[str, Any]:
    """The inverse of `dump`. Raises Refused for anything that it would not write."""
    try:
        document = json.loads(state)
        fields = dict(check_keys("The stored secure aggregation state", document, _FIELDS))
        loaded = _parse(fields)
        if dump(loaded) == bytes(state):
            return loaded
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged() from error
    raise _damaged()


def _parse(fields: dict[str, Any]) -> dict[str, Any]:
    if fields.pop("version") != VERSION:
        raise _damaged()
    setup, sent, roots, last = fields["setup"], fields["sent"], fields["roots"], fields["last"]
    return {
        **fields,
        "plan_digest": from_text("The plan digest", fields["plan_digest"], DIGEST_BYTES),
        "peers": tuple(fields["peers"]),
        "transcript": fields["transcript"] and from_text("The transcript", fields["transcript"], DIGEST_BYTES),
        "setup": setup
        and SetupKeys(
            from_text("The X25519 key", setup["x25519"], KEY_BYTES),
            from_text("The ML-KEM seed", setup["mlkem"], MLKEM_SEED_BYTES),
        ),
        "adverts": {site: KeyAdvert.from_dict(advert) for site, advert in fields["adverts"].items()},
        "sent": sent and Encapsulations.from_dict(sent),
        "early_roots": _roots_from_dict(fields["early_roots"]),
        "roots": roots and PairRoots(int(roots["round"]), _roots_from_dict(roots["roots"])),
        "spent": {str(purpose): int(count) for purpose, count in fields["spent"].items()},
        "last": None if last is None else (int(last[0]), int(last[1])),
    }


def _damaged() -> Refused:
    return Refused(
        Refusal.STATE_DAMAGED,
        "The stored secure aggregation state cannot be read.",
        "Restore the database, or set up the study anew.",
    )


def _roots_to_dict(roots: Mapping[str, bytes]) -> dict[str, str]:
    return {peer: to_text(root) for peer, root in roots.items()}


def _roots_from_dict(roots: Mapping[str, object]) -> dict[str, bytes]:
    return {peer: from_text("A pair root", root, KEY_BYTES) for peer, root in roots.items()}
