"""The monitor: what an honest log looks like from outside, and every way in which a dishonest one gives itself away."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from coordinator.audit.append import append
from coordinator.audit.sequencer import log_key
from coordinator.client.audit_monitor import LogAlarm, Turn, Watched, compare, take_turn
from coordinator.client.audit_watch import load
from coordinator.database import transaction
from coordinator.errors import NotFound
from protocol.audit_event import AuditEvent, EventType
from protocol.checkpoint import TreeHead, cosign, cosigner_key, sign_checkpoint
from protocol.errors import BadSignature, CloisterError, Malformed
from protocol.merkle import Tree, leaf_hash
from protocol.note import KeyType, VerifierKey
from protocol.signing import SigningKey
from protocol.tiles import Tile, encode_bundle, encode_tile
from protocol.witness_policy import WitnessPolicy, required_quorum
from tests.coordinator.appliances import Served, TestSite

ORIGIN = "cloister/test"
LOG_KEY = SigningKey.from_seed(b"l" * 32)
LOG = VerifierKey(ORIGIN, KeyType.ED25519, LOG_KEY.public.raw)
SITES = {letter: SigningKey.from_seed(letter.encode() * 32) for letter in "abcd"}
NOW = 1_800_000_000
STALL = 600


def name_of(letter: str) -> str:
    return f"site-{letter}/witness"


def policy_of(letters: str = "abc") -> WitnessPolicy:
    keys = tuple(cosigner_key(name_of(letter), SITES[letter]) for letter in letters)
    return WitnessPolicy(LOG, keys, required_quorum(len(keys)))


def entry(number: int, policy: WitnessPolicy | None = None) -> bytes:
    return AuditEvent(
        event=EventType.STUDY_CONSENTED, at="2026-11-23T00:00:00Z", actor="site:a", subject=f"study-{number}",
        digests={"witness_policy": policy.digest} if policy else {},
    ).leaf()  # fmt: skip


@dataclass
class MadeUpLog:
    """A log as a coordinator serves it. `size`, `root`: what it signs instead of the truth."""

    entries: list[bytes] = field(default_factory=list)
    served: WitnessPolicy = field(default_factory=policy_of)
    cosigned: int = 0
    cosigners: str = "abc"
    cosigned_at: int = NOW
    size: int | None = None
    root: bytes | None = None

    def grow(self, count: int, policy: WitnessPolicy | None = None, *, vouched: bool = True) -> MadeUpLog:
        """More entries, of which the first names a policy; cosigned, if `vouched`."""
        start = len(self.entries)
        self.entries += [entry(start + number, policy if number == 0 else None) for number in range(count)]
        if vouched:
            self.cosigned = len(self.entries)
        return self

    def copy(self) -> MadeUpLog:
        return replace(self, entries=list(self.entries))

    def tree(self) -> Tree:
        return Tree(map(leaf_hash, self.entries))

    def head(self, size: int) -> TreeHead:
        return TreeHead(ORIGIN, size, self.tree().root(size))

    def checkpoint(self) -> bytes:
        head = self.head(len(self.entries) if self.size is None else self.size)
        return sign_checkpoint(replace(head, root=self.root or head.root), LOG_KEY).to_bytes()

    def witnessed(self) -> bytes:
        if not self.cosigned:
            raise NotFound("no quorum", "wait")
        head = self.head(self.cosigned)
        lines = [cosign(head, name_of(letter), SITES[letter], timestamp=self.cosigned_at) for letter in self.cosigners]
        return sign_checkpoint(head, LOG_KEY).with_signatures(*lines).to_bytes()

    def policy(self) -> bytes:
        return self.served.to_bytes()

    def tile(self, tile: Tile) -> bytes:
        if tile.level is None:
            return encode_bundle(self.entries[tile.index * 256 : tile.index * 256 + tile.width])
        return encode_tile(tile, self.tree().read)


def turn(log: MadeUpLog, held: Watched, now: int = NOW, quiet: int | None = None) -> tuple[Watched, Turn]:
    return take_turn(log, held, now=now, stall_seconds=STALL, quiet_seconds=quiet)


def alarm(log: MadeUpLog, held: Watched, now: int = NOW, quiet: int | None = None) -> LogAlarm:
    with pytest.raises(LogAlarm) as caught:
        turn(log, held, now, quiet)
    assert caught.value.remedy
    assert caught.value.notes
    return caught.value


@pytest.fixture
def log() -> MadeUpLog:
    return MadeUpLog().grow(300, policy_of())


@pytest.fixture
def held(log: MadeUpLog) -> Watched:
    return turn(log, Watched.fresh(LOG, None, now=NOW))[0]


def test_an_honest_log_is_followed_across_turns_and_restarts(log: MadeUpLog, held: Watched) -> None:
    assert held.policy == policy_of()
    for more in (1, 211, 256, 3):
        held, seen = turn(log.grow(more), Watched.from_bytes(held.to_bytes()))
        assert (seen.size, seen.new_entries, seen.witnessed) == (len(log.entries), more, len(log.entries))
        assert len(seen.cosigners) == 3
    again, seen = turn(log, held)
    assert (again, seen.new_entries) == (held, 0)


def test_a_fork_of_the_same_size_or_a_larger_one_is_found(log: MadeUpLog, held: Watched) -> None:
    other = log.copy()
    other.entries[7] = entry(100_000)
    assert alarm(other, held).kind == "fork"
    found = alarm(other.grow(20), held)
    assert found.kind == "inconsistent"
    assert len(found.notes) == 2


@pytest.mark.parametrize("at", [0, 255, 298])
def test_an_entry_dropped_from_what_was_seen_is_found(at: int, log: MadeUpLog, held: Watched) -> None:
    del log.entries[at]
    log.cosigned = len(log.entries)
    assert alarm(log, held).kind == "rollback"
    assert alarm(log.grow(10), held).kind == "inconsistent"


def test_a_rollback_is_found(log: MadeUpLog, held: Watched) -> None:
    log.size, log.cosigned = 299, 299
    assert alarm(log, held).kind == "rollback"


def test_entries_changed_under_an_honest_root_are_found(log: MadeUpLog, held: Watched) -> None:
    log.grow(5)
    log.root, log.cosigned = log.head(305).root, 300
    log.entries[303] = entry(5_000)
    assert alarm(log, held).kind == "inconsistent"


def test_what_the_sites_cosigned_must_be_what_is_shown(log: MadeUpLog) -> None:
    """The coordinator shows this monitor a history of its own, beside the one that the sites cosigned."""
    honest = log.copy()

    class TwoFaced(MadeUpLog):
        def witnessed(self) -> bytes:
            return honest.witnessed()

    fresh = Watched.fresh(LOG, None, now=NOW)
    log.entries[3] = entry(9_999)
    assert alarm(TwoFaced(log.entries), fresh).kind == "fork"
    assert alarm(TwoFaced(log.entries[:200]), fresh).kind == "rollback"


def test_entries_that_no_quorum_vouches_for_are_a_stall(log: MadeUpLog, held: Watched) -> None:
    log.grow(4, vouched=False)
    after, seen = turn(log, held, NOW + STALL)
    assert (seen.size, seen.witnessed) == (304, 300)
    assert alarm(log, after, NOW + STALL + 1).kind == "unwitnessed"
    log.cosigned, log.cosigners = 304, "a"
    assert alarm(log, after, NOW + 2 * STALL + 1).kind == "unwitnessed"
    log.cosigners, log.cosigned_at = "ab", NOW + STALL
    assert turn(log, after, NOW + 9 * STALL)[1].witnessed == 304


def test_no_quorum_from_the_begin_is_a_stall(log: MadeUpLog) -> None:
    log.cosigned = 0
    held, _ = turn(log, Watched.fresh(LOG, None, now=NOW))
    assert turn(log, held, NOW + STALL)[1].witnessed == 0
    assert alarm(log, held, NOW + STALL + 1).kind == "unwitnessed"


def test_a_log_that_stands_still_is_told_where_that_is_asked(log: MadeUpLog, held: Watched) -> None:
    assert turn(log, held, NOW + 10_000)[1].new_entries == 0
    assert alarm(log, held, NOW + 10_000, quiet=9_999).kind == "quiet"
    assert turn(log.grow(1), held, NOW + 10_000, quiet=9_999)[0].grown_at == NOW + 10_000


def test_witnesses_change_only_as_the_log_tells(log: MadeUpLog, held: Watched) -> None:
    wider = policy_of("abcd")
    log.served = wider
    assert turn(log, held)[0].policy == policy_of(), "the log has not told of it"
    log.grow(2, wider)
    log.cosigners = "abd"
    after, seen = turn(log, held)
    assert after.policy == wider
    assert (seen.witnesses_added, seen.witnesses_removed) == ((name_of("d"),), ())
    log.grow(1, policy_of("bcd"))
    assert alarm(log, after).kind == "policy", "the log names another than is served"


def test_another_log_s_checkpoint_is_refused(log: MadeUpLog) -> None:
    stranger = VerifierKey(ORIGIN, KeyType.ED25519, SITES["a"].public.raw)
    with pytest.raises(BadSignature):
        turn(log, Watched.fresh(stranger, None, now=NOW))


def test_a_checkpoint_that_somebody_else_was_served_is_compared(log: MadeUpLog, held: Watched) -> None:
    for size in (1, 299, 300):
        assert compare(log, held, sign_checkpoint(log.head(size), LOG_KEY).to_bytes()) == size
    longer = log.copy().grow(9)
    assert compare(longer, held, longer.checkpoint()) == 309
    forked = log.copy()
    forked.entries[2] = entry(77)
    for size in (3, 300):
        with pytest.raises(LogAlarm) as caught:
            compare(log, held, sign_checkpoint(forked.head(size), LOG_KEY).to_bytes())
        assert caught.value.kind == "fork"
    with pytest.raises(BadSignature):
        compare(log, held, sign_checkpoint(log.head(3), SITES["a"]).to_bytes())


def test_a_changed_state_is_refused(held: Watched) -> None:
    data = held.to_bytes()
    assert Watched.from_bytes(data) == held
    document = json.loads(data)
    for change in ({"size": 299}, {"peaks": document["peaks"][::-1]}, {"note": ""}, {"version": 2}, {"log": "x"}):
        changed = json.dumps({**document, **change}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        with pytest.raises(CloisterError):
            Watched.from_bytes(changed.encode())
    with pytest.raises(Malformed):
        Watched.from_bytes(b"{}")


@pytest.mark.processes
def test_the_command_follows_a_coordinator_and_shouts(served: Served, tmp_path: Path) -> None:
    """Over TLS, without an account; then with a checkpoint that the same log signed of another history."""
    for number in range(2):
        TestSite(f"site-{number}", tmp_path).enrol_in(served.appliance)
    with transaction(served.appliance.engine) as session:
        append(session, served.appliance, EventType.STUDY_CONSENTED, actor="site:a", subject="study-1")
    state, key = tmp_path / "monitor" / "state.json", log_key(served.appliance)
    (tmp_path / "ca.pem").write_bytes(served.ca_path.read_bytes())

    def monitor(*more: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "coordinator.client.cli", "audit", "monitor", "--state", str(state), "--address",
                 served.address, "--ca", str(tmp_path / "ca.pem"), "--json", *more]  # fmt: skip
        return subprocess.run(words, capture_output=True, text=True, check=False)

    assert "--log-key" in monitor().stdout
    assert not state.exists()
    done = monitor("--log-key", key.text)
    assert done.returncode == 0, done.stdout + done.stderr
    seen = Watched.from_bytes(state.read_bytes())
    assert json.loads(done.stdout)["size"] == seen.frontier.size >= 1
    head = TreeHead(key.name, seen.frontier.size, bytes(32))
    forked = sign_checkpoint(head, served.appliance.keys.log).to_bytes()
    (tmp_path / "other").write_bytes(forked)
    done = monitor("--compare", str(tmp_path / "other"))
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["alarm"] == "fork"
    assert "Traceback" not in done.stderr
    evidence = json.loads(next(state.parent.glob("state.json.alarm-*")).read_text())
    assert forked.decode() in evidence["evidence"]
    assert load(state, key, None, now=NOW).log == key
