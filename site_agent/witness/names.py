"""Which witness a site is."""

from __future__ import annotations

from protocol.checkpoint import cosigner_key
from protocol.enrolment import witness_name
from protocol.note import VerifierKey
from site_agent.keystore import SiteKeys


def own_witness(site: str, keys: SiteKeys) -> VerifierKey:
    """The verifier key (C2SP cosignature/v1, Ed25519) of this site's witness."""
    return cosigner_key(witness_name(site), keys.witness)
