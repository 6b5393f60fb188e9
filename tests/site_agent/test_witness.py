"""The witness against logs that grow, go back, fork, lie and break off."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from protocol.canonical import sha256_hex
from protocol.checkpoint import TreeHead, cosigner_key, sign_checkpoint
from protocol.enrolment import auditor_witness_name, witness_name
from protocol.errors import BadSignature, Malformed, VerificationFailed
from protocol.merkle import Tree, leaf_hash
from protocol.signing import MlDsa44SigningKey, SigningKey
from protocol.tiles import TILE_WIDTH
from site_agent.clock import system_clock
from site_agent.coordinator_client import CoordinatorClient, CoordinatorRefused
from site_agent.database import open_database, transaction
from site_agent.enrol import enrol
from site_agent.keystore import load_keys
from site_agent.settings import SiteHome, load_settings
from site_agent.witness import repository
from site_agent.witness.cycle import LogMisbehaved, Witness
from site_agent.witness.mirror import MirrorDamaged, MirrorUnwritable
from site_agent.witness.names import own_witness
from site_agent.witness.repository import HeadMoved
from site_agent.witness.states import LogFacts, PolicyVerdict, Verdict, judge, judge_policy
from tests.papers import papers_file
from tests.site_agent.made_up_coordinator import MadeUpCoordinator, MadeUpLog, made_up_coordinator, problem

pytestmark = pytest.mark.processes


@pytest.fixture
def coordinator(tmp_path: Path):
    (tmp_path / "coordinator").mkdir()
    with made_up_coordinator(tmp_path / "coordinator") as coordinator:
        coordinator.log.add(b"first", b"second", b"third")
        yield coordinator


@pytest.fixture
def witness(tmp_path: Path, coordinator: MadeUpCoordinator):
    home = SiteHome(tmp_path / "site")
    enrol(coordinator.token(), home, system_clock, papers_file())
    settings, keys = load_settings(home), load_keys(home)
    engine = open_database(home)
    with CoordinatorClient(settings, keys) as client:
        yield Witness(settings, keys, engine, client, system_clock)
    engine.dispose()


def alarms(witness: Witness) -> list[str]:
    with transaction(witness.engine) as session:
        return [alarm.code for alarm in repository.alarms(session)]


def held(witness: Witness) -> repository.Held:
    with transaction(witness.engine) as session:
        found = repository.held(session, witness.log.name)
    assert found is not None
    return found


def test_a_turn_mirrors_persists_and_cosigns(coordinator, witness):
    turn = witness.turn()
    assert (turn.size, turn.new_entries, turn.cosigned) == (3, 3, True)
    assert list(witness.mirror.entries(3)) == [b"first", b"second", b"third"]
    assert held(witness).head == coordinator.log.head()
    assert coordinator.verified_cosignatures(witness.keys.witness) == [3]


def test_a_log_that_has_not_grown_is_cosigned_once(coordinator, witness):
    witness.turn()
    turn = witness.turn()
    assert (turn.new_entries, turn.cosigned) == (0, False)
    assert len(coordinator.cosignatures) == 1


@pytest.mark.parametrize("growth", [1, TILE_WIDTH - 3, TILE_WIDTH - 2, TILE_WIDTH, 3 * TILE_WIDTH + 1])
def test_a_log_grows_across_bundles(coordinator, witness, growth):
    witness.turn()
    coordinator.log.add(*(f"entry {number}".encode() for number in range(growth)))
    turn = witness.turn()
    assert (turn.size, turn.new_entries, turn.cosigned) == (3 + growth, growth, True)
    assert list(witness.mirror.entries(turn.size)) == coordinator.log.entries
    witness.mirror.verify(turn.size, coordinator.log.head().root)
    assert coordinator.verified_cosignatures(witness.keys.witness) == [3, 3 + growth]


def test_a_partial_bundle_that_is_gone_is_read_from_the_full_one(coordinator, witness):
    coordinator.log.add(*(b"more %d" % number for number in range(300)))
    note = coordinator.log.note(100)
    coordinator.routes["GET", "/v1/log/checkpoint"] = lambda _: (200, note)
    gone = problem(404, "not-found", "No such tile.")
    coordinator.routes["GET", "/v1/log/tile/entries/000.p/100"] = lambda _: gone
    assert witness.turn().size == 100


def test_a_rollback_is_refused_and_remembered(coordinator, witness):
    witness.turn()
    note = coordinator.log.note(2)
    coordinator.routes["GET", "/v1/log/checkpoint"] = lambda _: (200, note)
    with pytest.raises(LogMisbehaved, match="went back from 3 entries to 2"):
        witness.turn()
    assert alarms(witness) == ["rollback"]
    assert held(witness).head.size == 3
    assert len(coordinator.cosignatures) == 1
    with transaction(witness.engine) as session:
        (alarm,) = repository.alarms(session)
    assert alarm.served_note == note
    assert alarm.held_note == coordinator.log.note(3)


def test_two_histories_of_one_size_are_a_fork(coordinator, witness):
    witness.turn()
    coordinator.log.entries[1] = b"rewritten"
    with pytest.raises(LogMisbehaved, match="two different histories"):
        witness.turn()
    assert alarms(witness) == ["fork"]
    assert len(coordinator.cosignatures) == 1


def test_a_longer_log_with_a_rewritten_past_is_refused(coordinator, witness):
    witness.turn()
    coordinator.log.entries[0] = b"rewritten"
    coordinator.log.add(b"fourth")
    with pytest.raises(LogMisbehaved, match="do not lead to"):
        witness.turn()
    assert alarms(witness) == ["inconsistent"]
    assert held(witness).head.size == 3
    assert list(witness.mirror.entries(3)) == [b"first", b"second", b"third"]


def test_entries_that_do_not_hash_to_the_root_are_refused(coordinator, witness):
    from protocol.tiles import encode_bundle

    forged = encode_bundle([b"first", b"forged", b"third"])
    coordinator.routes["GET", "/v1/log/tile/entries/000.p/3"] = lambda _: (200, forged)
    with pytest.raises(LogMisbehaved, match="do not lead to"):
        witness.turn()
    assert alarms(witness) == ["inconsistent"]
    assert coordinator.cosignatures == []


def test_an_alarm_is_raised_once_and_an_honest_log_is_followed_again(coordinator, witness):
    witness.turn()
    note = coordinator.log.note(1)
    coordinator.routes["GET", "/v1/log/checkpoint"] = lambda _: (200, note)
    for _ in range(3):
        with pytest.raises(LogMisbehaved):
            witness.turn()
    del coordinator.routes["GET", "/v1/log/checkpoint"]
    coordinator.log.add(b"fourth")
    assert witness.turn().size == 4
    assert alarms(witness) == ["rollback"]


def test_a_checkpoint_by_another_key_is_not_read(coordinator, witness):
    witness.turn()
    note = sign_checkpoint(coordinator.log.head(), SigningKey.generate()).to_bytes()
    coordinator.routes["GET", "/v1/log/checkpoint"] = lambda _: (200, note)
    with pytest.raises(BadSignature):
        witness.turn()
    assert alarms(witness) == []


@pytest.mark.parametrize("served", [b"", b"\xff\xfe", b"x" * 1000, "cloister/test\n3\nAAAA\n\n— x AAAAAAA=\n".encode()])
def test_what_is_no_checkpoint_is_refused(coordinator, witness, served):
    coordinator.routes["GET", "/v1/log/checkpoint"] = lambda _: (200, served)
    with pytest.raises((Malformed, BadSignature)):
        witness.turn()
    assert coordinator.cosignatures == []


@pytest.mark.parametrize("served", [b"", b"\0", b"\0\x05firs", b"\0\x05first", b"\xff\xff" + b"x" * 70000])
def test_a_broken_bundle_is_refused_without_an_alarm(coordinator, witness, served):
    coordinator.routes["GET", "/v1/log/tile/entries/000.p/3"] = lambda _: (200, served)
    with pytest.raises(Malformed):
        witness.turn()
    assert alarms(witness) == []
    del coordinator.routes["GET", "/v1/log/tile/entries/000.p/3"]
    assert witness.turn().size == 3


def test_the_head_is_on_disk_before_anything_is_signed(coordinator, witness):
    """When the coordinator gets the cosignature, another reader of the database already sees the head."""
    seen: list[int] = []

    def look(body: bytes) -> tuple[int, bytes]:
        engine = open_database(witness.settings.home)
        with transaction(engine) as session:
            found = repository.held(session, witness.log.name)
        engine.dispose()
        seen.append(found.head.size if found else -1)
        return 204, b""

    coordinator.routes["POST", "/v1/log/cosignatures"] = look
    witness.turn()
    assert seen == [3]


def test_a_cosignature_that_was_not_delivered_is_sent_again_unchanged(coordinator, witness):
    lines: list[bytes] = []

    def fail(body: bytes) -> tuple[int, bytes]:
        lines.append(body)
        return problem(503, "unavailable", "Busy.")

    coordinator.routes["POST", "/v1/log/cosignatures"] = fail
    with pytest.raises(CoordinatorRefused):
        witness.turn()
    del coordinator.routes["POST", "/v1/log/cosignatures"]
    turn = witness.turn()
    assert (turn.new_entries, turn.cosigned) == (0, True)
    assert [text.encode() for text in coordinator.cosignatures] == lines


def test_a_cosignature_that_came_too_late_does_not_stop_the_witness(coordinator, witness):
    stale = problem(409, "stale-cosignature", "Too old.")
    coordinator.routes["POST", "/v1/log/cosignatures"] = lambda _: stale
    assert not witness.turn().cosigned
    coordinator.log.add(b"fourth")
    del coordinator.routes["POST", "/v1/log/cosignatures"]
    assert witness.turn().cosigned


def test_no_size_ever_gets_two_roots(witness):
    """Even if the head were lost, what was reserved for a size stands."""
    one = TreeHead("cloister/test", 5, b"a" * 32)
    with transaction(witness.engine) as session:
        repository.reserve(session, one, at="2026-01-01T00:00:00Z")
    with pytest.raises(VerificationFailed, match="never signs two"), transaction(witness.engine) as session:
        repository.reserve(session, TreeHead("cloister/test", 5, b"b" * 32), at="2026-01-01T00:00:00Z")


def test_a_head_that_moved_meanwhile_is_not_overwritten(coordinator, witness):
    witness.turn()
    before = held(witness)
    coordinator.log.add(b"fourth")
    witness.turn()
    after = repository.Held(TreeHead(before.head.origin, 9, b"z" * 32), before.frontier, b"", None)
    with pytest.raises(HeadMoved), transaction(witness.engine) as session:
        repository.advance(session, before, after, at="2026-01-01T00:00:00Z")
    with pytest.raises(HeadMoved), transaction(witness.engine) as session:
        repository.advance(session, None, after, at="2026-01-01T00:00:00Z")
    assert held(witness).head.size == 4


def test_the_mirror_is_verified_offline_and_repaired(coordinator, witness):
    coordinator.log.add(*(b"more %d" % number for number in range(300)))
    witness.turn()
    root = held(witness).head.root
    path = witness.settings.home.mirror / "tile/entries/000"
    original = path.read_bytes()
    path.write_bytes(original.replace(b"second", b"SECOND"))
    with pytest.raises(MirrorDamaged, match="does not hash"):
        witness.mirror.verify(303, root)
    path.write_bytes(original[:100])
    with pytest.raises(MirrorDamaged, match="bundle 0") as caught:
        witness.mirror.verify(303, root)
    assert "log repair" in caught.value.remedy
    path.unlink()
    with pytest.raises(MirrorDamaged):
        witness.mirror.verify(303, root)
    assert witness.repair() == 303
    witness.mirror.verify(303, root)


def test_a_repair_with_other_entries_is_an_alarm(coordinator, witness):
    witness.turn()
    coordinator.log.entries[0] = b"rewritten"
    with pytest.raises(LogMisbehaved):
        witness.repair()
    assert alarms(witness) == ["entries"]


def test_a_damaged_mirror_stops_growth_and_says_how_to_mend_it(coordinator, witness):
    witness.turn()
    (witness.settings.home.mirror / "tile/entries/000").unlink()
    coordinator.log.add(b"fourth")
    with pytest.raises(MirrorDamaged, match="lacks entries"):
        witness.turn()
    witness.repair()
    assert witness.turn().size == 4


def test_a_full_disk_is_an_error_that_the_agent_survives(coordinator, witness, monkeypatch):
    import errno

    import site_agent.witness.mirror as room

    def full(path: Path, _: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(room, "write_durably", full)
        with pytest.raises(MirrorUnwritable, match="No space left") as caught:
            witness.turn()
    assert caught.value.remedy
    assert coordinator.cosignatures == []
    assert witness.turn().size == 3


# The witness policy


def witness_key(site: str = "clinic-b"):
    return cosigner_key(witness_name(site), SigningKey.generate())


def auditor_key(name: str):
    return cosigner_key(auditor_witness_name(name), MlDsa44SigningKey.generate())


def enrolled(log: MadeUpLog, site: str, key, policy) -> None:
    digests = {"witness": sha256_hex(key.text.encode()), "witness_policy": policy.digest}
    log.event("site.enrolled", subject=f"site:{site}", digests=digests)


def test_a_policy_follows_the_log(coordinator, witness):
    mine, other = own_witness("clinic-a", witness.keys), witness_key()
    coordinator.policy = coordinator.log.policy(mine, other)
    enrolled(coordinator.log, "clinic-b", other, coordinator.policy)
    assert witness.turn().policy_changed
    with transaction(witness.engine) as session:
        assert repository.policy_in_force(session) == coordinator.policy
    assert not witness.turn().policy_changed
    revoked = coordinator.log.policy(mine)
    coordinator.log.event("site.revoked", subject="site:clinic-b", digests={"witness_policy": revoked.digest})
    coordinator.policy = revoked
    assert witness.turn().policy_changed


def test_a_policy_with_a_witness_that_nobody_enrolled_is_an_alarm(coordinator, witness):
    mine, other = own_witness("clinic-a", witness.keys), witness_key()
    coordinator.policy = coordinator.log.policy(mine, other)
    coordinator.log.event("policy.decided", digests={"witness_policy": coordinator.policy.digest})
    assert not witness.turn().policy_changed  # the log says nothing of a change
    coordinator.log.event("site.enrolled", digests={"witness_policy": coordinator.policy.digest})
    with pytest.raises(LogMisbehaved, match="does not follow"):
        witness.turn()
    assert alarms(witness) == [PolicyVerdict.UNEXPLAINED_WITNESS]


def auditor_event(log: MadeUpLog, event: str, name: str, key, policy) -> None:
    digests = {"witness": sha256_hex(key.text.encode()), "witness_policy": policy.digest}
    log.event(event, subject=f"auditor:{name}", digests=digests)


def test_an_auditor_joins_and_leaves_the_policy_by_the_log(coordinator, witness):
    mine, ada = own_witness("clinic-a", witness.keys), auditor_key("ada")
    alone = coordinator.log.policy(mine)
    coordinator.policy = coordinator.log.policy(mine, ada)
    auditor_event(coordinator.log, "witness.joined", "ada", ada, coordinator.policy)
    assert witness.turn().policy_changed
    coordinator.policy = alone
    auditor_event(coordinator.log, "witness.removed", "eve", ada, alone)
    with pytest.raises(LogMisbehaved, match="does not follow"):
        witness.turn()
    auditor_event(coordinator.log, "witness.removed", "ada", ada, alone)
    assert witness.turn().policy_changed


def test_a_second_auditor_is_an_alarm(coordinator, witness):
    mine, ada, eve = own_witness("clinic-a", witness.keys), auditor_key("ada"), auditor_key("eve")
    coordinator.policy = coordinator.log.policy(mine, ada, eve)
    for name, key in (("ada", ada), ("eve", eve)):
        auditor_event(coordinator.log, "witness.joined", name, key, coordinator.policy)
    with pytest.raises(LogMisbehaved, match="does not follow"):
        witness.turn()
    assert alarms(witness) == [PolicyVerdict.UNEXPLAINED_WITNESS]


def test_a_policy_of_another_log_or_without_this_site_is_an_alarm(coordinator, witness):
    mine, other = own_witness("clinic-a", witness.keys), witness_key()
    coordinator.policy = MadeUpLog().policy(mine, other)
    enrolled(coordinator.log, "clinic-b", other, coordinator.policy)
    with pytest.raises(LogMisbehaved):
        witness.turn()
    coordinator.policy = coordinator.log.policy(other)
    enrolled(coordinator.log, "clinic-b", other, coordinator.policy)
    with pytest.raises(LogMisbehaved):
        witness.turn()
    assert alarms(witness) == [PolicyVerdict.OTHER_LOG, PolicyVerdict.LEFT_OUT]


def test_a_policy_that_the_log_does_not_name_last_waits(coordinator, witness):
    mine, other, third = own_witness("clinic-a", witness.keys), witness_key(), witness_key("clinic-c")
    named, served = coordinator.log.policy(mine, other), coordinator.log.policy(mine, other, third)
    enrolled(coordinator.log, "clinic-b", other, named)
    coordinator.policy = served
    assert not witness.turn().policy_changed
    assert alarms(witness) == []
    enrolled(coordinator.log, "clinic-c", third, served)
    assert witness.turn().policy_changed


def test_a_policy_with_a_low_quorum_is_refused(coordinator, witness):
    import json

    mine, other, third = own_witness("clinic-a", witness.keys), witness_key(), witness_key("clinic-c")
    policy = coordinator.log.policy(mine, other, third)
    enrolled(coordinator.log, "clinic-b", other, policy)
    document = policy.to_document() | {"quorum": 1}
    coordinator.routes["GET", "/v1/log/policy"] = lambda _: (200, json.dumps(document).encode())
    with pytest.raises(Malformed, match="quorum"):
        witness.turn()


def test_verdicts_on_heads():
    head = TreeHead("log/x", 4, b"a" * 32)
    assert judge(None, head) is Verdict.EXTENDS
    assert judge(head, head) is Verdict.SAME
    assert judge(head, TreeHead("log/x", 4, b"b" * 32)) is Verdict.FORK
    assert judge(head, TreeHead("log/x", 3, b"a" * 32)) is Verdict.ROLLBACK
    assert judge(head, TreeHead("log/x", 5, b"a" * 32)) is Verdict.EXTENDS


def test_a_removed_witness_needs_a_revocation():
    log = MadeUpLog()
    mine, other = witness_key("clinic-a"), witness_key()
    old, new = log.policy(mine, other), log.policy(mine)
    facts = LogFacts(policies=[new.digest])
    assert judge_policy(old, new, facts, mine.text) is PolicyVerdict.UNEXPLAINED_WITNESS
    facts.left.add(witness_name("clinic-b"))
    assert judge_policy(old, new, facts, mine.text) is PolicyVerdict.ACCEPT


def test_entries_of_any_form_are_no_facts():
    facts = LogFacts().read(
        [b"", b"\xff", b"[]", b'{"event":1}', b'{"event":"site.enrolled","digests":[]}', b"{" * 900]
    )
    assert facts == LogFacts()


def test_a_cosignature_tells_the_time(coordinator, witness):
    from protocol.checkpoint import verify_cosignature
    from protocol.note import parse_signatures

    before = int(datetime.now(UTC).timestamp())
    witness.turn()
    (line,) = parse_signatures(coordinator.cosignatures[0].encode())
    at = verify_cosignature(coordinator.log.head(), line, own_witness("clinic-a", witness.keys))
    assert before <= at <= int(datetime.now(UTC).timestamp())


def test_the_root_that_the_mirror_gives_is_rfc6962s(coordinator, witness):
    witness.turn()
    tree = Tree(leaf_hash(entry) for entry in (b"first", b"second", b"third"))
    witness.mirror.verify(3, tree.root())
