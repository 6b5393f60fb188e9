"""Fetch a bundle and gather what this site pinned: the I/O around `trusted_release`."""

from __future__ import annotations

import secrets

from sqlmodel import col, select

from protocol.bundle import MAX_BUNDLE
from protocol.errors import VerificationFailed
from protocol.signing import VerifyingKey
from protocol.witness_policy import WitnessPolicy
from site_agent.consent.states import Answer
from site_agent.consent.tables import StudyGrant
from site_agent.coordinator_client import CoordinatorClient
from site_agent.database import open_database, transaction
from site_agent.durable_files import make_private_folder
from site_agent.releases.trusted_release import TrustRoot
from site_agent.settings import SiteHome, SiteSettings
from site_agent.training.budget_store import evaluated_models
from site_agent.witness.tables import AcceptedWitnessPolicy


def root_of(settings: SiteSettings, *, installed: bool = False) -> TrustRoot:
    """The trust root of an enrolled site, from its own files and database alone. installed: for a release that is
    installed, whose plan this site granted once: a grant withdrawn since does not make its seal a forgery."""
    standing = col(StudyGrant.state) != Answer.REFUSED.value
    if not installed:
        standing = col(StudyGrant.state) == Answer.GRANTED.value
    with transaction(open_database(settings.home)) as session:
        granted = session.exec(select(StudyGrant.plan_digest).where(standing)).all()
        evaluated = {plan: evaluated_models(session, plan) for plan in granted}
        query = select(AcceptedWitnessPolicy.policy_json).order_by(col(AcceptedWitnessPolicy.id).desc()).limit(1)
        policy = session.exec(query).first()
    if policy is None:
        raise VerificationFailed(
            "This site has not pinned a witness policy yet.", "Start cloister-site agent and let it follow the log."
        )
    pinned = WitnessPolicy.from_bytes(policy.encode())
    key = VerifyingKey.from_text(settings.coordinator)
    return TrustRoot(settings.site, key, pinned, frozenset(granted), evaluated, settings.address)


def fetch(client: CoordinatorClient, home: SiteHome, release: str) -> bytes:
    """Download a bundle through a private file; its bytes. Raises what the client raises, VerificationFailed over
    the size cap."""
    make_private_folder(home.releases)
    path = home.releases / f".{secrets.token_hex(8)}.download"
    try:
        with path.open("xb") as file:
            size = client.download_release(release, file)
        if size > MAX_BUNDLE:
            raise VerificationFailed("The bundle is larger than a release may be.", "Tell the coordinator's operator.")
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)
