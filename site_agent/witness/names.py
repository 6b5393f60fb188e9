"""What a site's witness is called."""

from __future__ import annotations

from protocol.checkpoint import cosigner_key
from protocol.note import VerifierKey
from site_agent.keystore import SiteKeys


def witness_name(site: str) -> str:
    """The key name under which a site cosigns checkpoints: "<site>/witness"."""
    return f"{site}/witness"


def own_witness(site: str, keys: SiteKeys) -> VerifierKey:
    """The verifier key (C2SP cosignature/v1, Ed25519) of this site's witness."""
    return cosigner_key(witness_name(site), keys.witness)
