"""One turn of the witness: fetch the checkpoint, mirror and verify what is new, persist, then cosign.

Source: https://c2sp.org/tlog-witness, with the site pulling instead of being pushed to: it opens no port. Instead of a
consistency proof it takes every new entry, and its own frontier extended by them must give the served root.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import Engine

from protocol.canonical import canonical
from protocol.checkpoint import TreeHead, cosign, open_checkpoint
from protocol.enrolment import witness_name
from protocol.errors import VerificationFailed
from protocol.merkle import Frontier, leaf_hash
from protocol.note import Note, VerifierKey
from protocol.tiles import TILE_WIDTH, Tile, touched_bundles
from protocol.timestamp import timestamp
from protocol.witness_policy import WitnessPolicy
from site_agent.clock import Clock
from site_agent.coordinator_client import CoordinatorClient, CoordinatorRefused
from site_agent.database import transaction
from site_agent.keystore import SiteKeys
from site_agent.settings import SiteSettings
from site_agent.witness import repository
from site_agent.witness.mirror import Mirror, split_bundle
from site_agent.witness.names import own_witness
from site_agent.witness.repository import Held
from site_agent.witness.states import LogFacts, PolicyVerdict, Verdict, judge, judge_policy


class LogMisbehaved(VerificationFailed):
    """The log contradicts what it published before. The evidence is in the site's database; nothing was cosigned."""

    code = "log-misbehaved"


@dataclass(frozen=True)
class Turn:
    """What a turn did: the log's size that the site holds now, new entries, a cosignature delivered, a new policy."""

    size: int
    new_entries: int
    cosigned: bool
    policy_changed: bool


@dataclass(frozen=True)
class Witness:
    """A site as a witness of its coordinator's log."""

    settings: SiteSettings
    keys: SiteKeys
    engine: Engine
    client: CoordinatorClient
    clock: Clock

    @property
    def log(self) -> VerifierKey:
        """The pinned key of the log."""
        return VerifierKey.parse(self.settings.log)

    @property
    def mirror(self) -> Mirror:
        """The site's copy of the entries."""
        return Mirror(self.settings.home.mirror)

    def turn(self) -> Turn:
        """Do one turn.

        Raises LogMisbehaved for a rollback, a fork or entries that do not lead to the root (recorded as an alarm),
        BadSignature for a checkpoint that is not the log's, Malformed, MirrorDamaged, MirrorUnwritable, HeadMoved (try
        again), the client's errors and DatabaseUnusable.
        """
        with self.mirror.exclusively():
            return self._turn()

    def _turn(self) -> Turn:
        with transaction(self.engine) as session:
            before = repository.held(session, self.log.name)
        note = self.client.checkpoint()
        served = open_checkpoint(note, self.log).head
        verdict = judge(before.head if before else None, served)
        if verdict in (Verdict.ROLLBACK, Verdict.FORK):
            raise self._alarm(verdict, _disagreement(verdict, before, served), before, note)
        held = before
        if held is None or verdict is Verdict.EXTENDS:
            held = self._extend(before, served, note)
        cosigned = held.head.size > 0 and self._cosign(held.head)
        return Turn(
            size=held.head.size,
            new_entries=held.head.size - (before.head.size if before else 0),
            cosigned=cosigned,
            policy_changed=self._follow_policy(held),
        )

    def repair(self) -> int:
        """Fetch every entry again into the mirror; they must hash to the root that the site holds. The entries.

        Raises LogMisbehaved when they do not, and as `turn` does.
        """
        with transaction(self.engine) as session:
            held = repository.held(session, self.log.name)
        if held is None:
            return 0
        with self.mirror.exclusively():
            frontier = self._fetch(Frontier(), held.head.size, LogFacts())
        if frontier.root != held.head.root:
            raise self._alarm("entries", "The entries served do not hash to a root the log signed.", held, held.note)
        return held.head.size

    def _extend(self, before: Held | None, served: TreeHead, note: bytes) -> Held:
        """Mirror the new entries, check that they lead to the served root, and persist the new head."""
        facts = LogFacts()
        frontier = self._fetch(before.frontier if before else Frontier(), served.size, facts)
        if frontier.root != served.root:
            detail = f"The {served.size} entries served do not lead to the root signed for them" + (
                f", from the {before.head.size} entries that the site holds." if before else "."
            )
            raise self._alarm("inconsistent", detail, before, note)
        policy_digest = facts.policies[-1] if facts.policies else before.policy_digest if before else None
        after = Held(served, frontier, _log_signed(note, self.log), policy_digest)
        with transaction(self.engine) as session:
            repository.advance(session, before, after, at=timestamp(self.clock()))
        return after

    def _fetch(self, frontier: Frontier, size: int, facts: LogFacts) -> Frontier:
        """The frontier after the entries up to `size`, which are written to the mirror bundle by bundle, unverified."""
        for bundle in touched_bundles(frontier.size, size):
            known = max(0, frontier.size - bundle.index * TILE_WIDTH)
            new = self._bundle(bundle)[known:]
            self.mirror.write(bundle.index, (*self.mirror.first(bundle.index, known), *new))
            frontier, _ = frontier.extend(leaf_hash(entry) for entry in new)
            facts.read(new)
        return frontier

    def _bundle(self, bundle: Tile) -> tuple[bytes, ...]:
        """A bundle's entries; where the log has grown beyond the partial bundle, the first of the full one."""
        try:
            data = self.client.entries(bundle.path)
        except CoordinatorRefused as refusal:
            if refusal.status != 404 or bundle.width == TILE_WIDTH:
                raise
            data = self.client.entries(Tile(None, bundle.index).path)
        return split_bundle(bundle.index, data, bundle.width)

    def _cosign(self, head: TreeHead) -> bool:
        """Cosign a head that is persisted, unless the coordinator has that cosignature already; whether it was sent."""
        now = self.clock()
        with transaction(self.engine) as session:
            reserved = repository.reserve(session, head, at=timestamp(now))
        if reserved.delivered:
            return False
        line = reserved.cosignature
        if line is None:
            signature = cosign(
                head, witness_name(self.settings.site), self.keys.witness, timestamp=int(now.timestamp())
            )
            line = signature.line.encode()
            with transaction(self.engine) as session:
                repository.keep_cosignature(session, head.size, line, delivered=False)
        try:
            self.client.post_cosignatures(line)
        except CoordinatorRefused as refusal:
            if refusal.code != "stale-cosignature":
                raise
            return False
        with transaction(self.engine) as session:
            repository.keep_cosignature(session, head.size, line, delivered=True)
        return True

    def _follow_policy(self, held: Held) -> bool:
        """Accept the policy that the log names now, if it is not the one in force; whether it was accepted."""
        with transaction(self.engine) as session:
            in_force = repository.policy_in_force(session)
        if held.policy_digest in (None, in_force.digest):
            return False
        document = self.client.witness_policy()
        served = WitnessPolicy.from_document(document)
        facts = LogFacts().read(self.mirror.entries(held.head.size))
        verdict = judge_policy(in_force, served, facts, own_witness(self.settings.site, self.keys).text)
        if verdict in (PolicyVerdict.SAME, PolicyVerdict.WAIT):
            return False
        if verdict is not PolicyVerdict.ACCEPT:
            raise self._alarm(
                verdict, "The witness policy served does not follow from the log.", held, canonical(document)
            )
        with transaction(self.engine) as session:
            repository.accept_policy(session, served, at=timestamp(self.clock()))
        return True

    def _alarm(self, code: str, detail: str, held: Held | None, served_note: bytes) -> LogMisbehaved:
        with transaction(self.engine) as session:
            repository.raise_alarm(
                session,
                code,
                detail,
                held_note=held.note if held else None,
                served_note=served_note,
                at=timestamp(self.clock()),
            )
        return LogMisbehaved(
            detail, "Nothing was cosigned. See cloister-site log check; show the evidence to the federation's auditor."
        )


def _disagreement(verdict: Verdict, before: Held | None, served: TreeHead) -> str:
    held = before.head.size if before else 0
    if verdict is Verdict.ROLLBACK:
        return f"The log went back from {held} entries to {served.size}."
    return f"The log shows two different histories of {served.size} entries."


def _log_signed(note: bytes, log: VerifierKey) -> bytes:
    """The note with the log's own signature alone."""
    parsed = Note.parse(note)
    own = tuple(line for line in parsed.signatures if (line.name, line.key_id) == (log.name, log.key_id))
    return replace(parsed, signatures=own).to_bytes()
