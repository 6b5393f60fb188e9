"""What sites consent to, whatever the kind of study: who takes part under which key, in which rounds, and how much
noise each secure sum has. `protocol.study` and `protocol.exploration` hold the two kinds."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from protocol.identifiers import Digest, Frozen, KeyText, Label, PersonName, Role, SiteName, Timestamp
from protocol.passkey import Passkey
from protocol.proposal import MAX_SITES, MINIMUM_CELL, Jurisdiction, Proposal
from protocol.round import Phase
from protocol.signing import VerifyingKey


class PlannedSite(Frozen):
    """A site's pinned identity and its public counts (constants of the plan)."""

    name: SiteName
    identity: KeyText
    jurisdiction: Jurisdiction
    patients: Annotated[int, Field(gt=MINIMUM_CELL)]
    held_out: Annotated[int, Field(ge=0)]
    snapshot: Digest


class PlannedApprover(Frozen):
    """A person whose signature counts at release: fixed when the sites consent, so nobody can be invented later.
    key: Ed25519, for the command line; passkeys: for the coordinator's page; at least one of the two. organisation:
    whom they work for, where a study asks for reviewers from several."""

    person: PersonName
    role: Role
    key: KeyText | None = None
    passkeys: tuple[Passkey, ...] = ()
    organisation: Label | None = None

    @model_validator(mode="after")
    def _can_sign(self) -> PlannedApprover:
        if self.key is None and not self.passkeys:
            raise ValueError("an approver has neither a key nor a passkey")
        return self

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The fingerprints of all that they may sign with."""
        own = () if self.key is None else (VerifyingKey.from_text(self.key).key_id,)
        return (*own, *(passkey.key_id for passkey in self.passkeys))


class SecureSum(Frozen):
    """The numbers of one secure sum, as both ends must derive them from the plan and the cohort alone.

    `clip`: L2 bound of one patient. `sites`: K, the cohort's size. `tolerated`: t = dropouts + colluders.
    `largest_batch`: patients in the sum at most. `noise_multiplier`: sigma over the clip, of which each site adds its
    share; None: the sum adds no noise (whole counts, or changes of a model that were noised before: then `clip` is
    their bound, and `own_noise_std` what each site adds by itself to each of its steps). `length`: coordinates.
    """

    clip: Annotated[float, Field(gt=0)]
    sites: Annotated[int, Field(ge=2, le=MAX_SITES)]
    tolerated: Annotated[int, Field(ge=1)]
    largest_batch: Annotated[int, Field(ge=1)]
    noise_multiplier: Annotated[float, Field(gt=0)] | None
    length: Annotated[int, Field(ge=1)]
    own_noise_std: Annotated[float, Field(gt=0)] | None = None

    @property
    def exact_step(self) -> float:
        """Grid step of a sum without noise modulo 2^32: a power of two that leaves room for twice the largest sum,
        clip * largest_batch, either way. Randomised rounding moves a coordinate by a few steps; whole counts are
        rounded afterwards."""
        return float(2.0 ** (math.frexp(self.clip * self.largest_batch)[1] - 30))


@dataclass(frozen=True)
class Stage:
    """Consecutive rounds of one phase, numbered first .. first + rounds - 1 within it. held_out: they ask of held-out
    patients, so only sites that hold enough of them out take part."""

    phase: Phase
    first: int
    rounds: int
    held_out: bool = False


class Plan(Frozen):
    """What every plan has.

    noise_multiplier: sigma over spec.steps for the spec's (epsilon, delta). epsilon: what it gives. epsilon_worst_site:
    of a site's patients if all others collude. `witness_policy`: protocol.witness_policy's canonical form.
    `coordinator`: the key that signs round requests and releases. `approvers`: whose signatures over the plan or over
    a release of it count.
    """

    spec: Proposal
    spec_digest: Digest
    proposal_digest: Digest
    submitter: PersonName
    sites: Annotated[tuple[PlannedSite, ...], Field(min_length=2, max_length=MAX_SITES)]
    approvers: tuple[PlannedApprover, ...]
    noise_multiplier: Annotated[float, Field(gt=0)]
    epsilon: Annotated[float, Field(gt=0)]
    epsilon_worst_site: Annotated[float, Field(gt=0)]
    packs: dict[Label, Digest]
    witness_policy: dict[str, Any]
    coordinator: KeyText
    created_at: Timestamp

    @model_validator(mode="after")
    def _distinct_sites(self) -> Plan:
        names = [site.name for site in self.sites]
        if names != sorted(set(names)):
            raise ValueError("plan sites must be distinct and in name order")
        if len({site.identity for site in self.sites}) != len(names):
            raise ValueError("two plan sites share one key")
        held = [name for approver in self.approvers for name in approver.key_ids]
        credentials = [passkey.credential for approver in self.approvers for passkey in approver.passkeys]
        if len(set(held)) != len(held) or len(set(credentials)) != len(credentials):
            raise ValueError("two approvers share one key")
        if len({approver.person for approver in self.approvers}) != len(self.approvers):
            raise ValueError("one person is an approver twice")
        return self

    def site(self, name: str) -> PlannedSite:
        """The named site. KeyError if it is not in the plan."""
        return next(site for site in self.sites if site.name == name) if name in self.names else _absent(name)

    @property
    def names(self) -> tuple[str, ...]:
        """Site names in order."""
        return tuple(site.name for site in self.sites)

    @property
    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """Every round of the study in the order in which they run."""

    @property
    @abstractmethod
    def attempts(self) -> Mapping[Phase, int]:
        """The most attempts of each phase, over all its rounds, that the noise is calibrated for."""

    def allows(self, phase: Phase, round_number: int, entry: int) -> bool:
        """Whether the round may use that entry of a grid; 0: none."""
        return entry == 0

    def of_entry(self, entry: int) -> Self:
        """The plan as it stands for that entry of its grid, where it has one; 0: as it is."""
        return self

    def steps_of(self, phase: Phase) -> int:
        """How many noisy steps one attempt of the phase is, and is charged as."""
        return 1

    @abstractmethod
    def body_length(self, phase: Phase) -> int:
        """How many floats a request of the phase brings to the sites."""

    @abstractmethod
    def secure_sum(self, phase: Phase, cohort: Iterable[str]) -> SecureSum:
        """The secure sum of one attempt with `cohort`. KeyError for a site that is not in the plan."""

    def position(self, phase: Phase, round_number: int) -> int:
        """The place of a round in the whole study, from 1. KeyError for a round that the plan does not have."""
        before = 0
        for stage in self.stages:
            if stage.phase == phase and stage.first <= round_number < stage.first + stage.rounds:
                return before + round_number - stage.first + 1
            before += stage.rounds
        raise KeyError((phase, round_number))


def _absent(name: str) -> PlannedSite:
    raise KeyError(name)
