"""Every table of the coordinator: importing this fills `coordinator.database.metadata`."""

from __future__ import annotations

from coordinator.audit import tables as audit
from coordinator.database import metadata
from coordinator.evidence import tables as evidence
from coordinator.incidents import tables as incidents
from coordinator.passkeys import tables as passkeys
from coordinator.people import tables as people
from coordinator.policy import tables as policy
from coordinator.releases import tables as releases
from coordinator.retention import tables as retention
from coordinator.reviews import tables as reviews
from coordinator.rounds import tables as rounds
from coordinator.sites import tables as sites
from coordinator.studies import tables as studies

__all__ = [
    "audit",
    "evidence",
    "incidents",
    "metadata",
    "passkeys",
    "people",
    "policy",
    "releases",
    "retention",
    "reviews",
    "rounds",
    "sites",
    "studies",
]
