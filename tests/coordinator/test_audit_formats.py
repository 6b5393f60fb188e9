"""What a query found, as JSON Lines with proofs, FHIR AuditEvent and OCSF."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import fhirkit
import pytest
from click.testing import Result
from typer.testing import CliRunner

from coordinator.audit.append import append
from coordinator.audit.sequencer import integrate_once
from coordinator.audit.witnessing import accept_cosignatures, latest_note
from coordinator.client.audit_bundle import AuditBundle, read_archive
from coordinator.client.audit_formats import fhir_event, ocsf_event, to_fhir, to_jsonl, verify_found
from coordinator.client.audit_proofs import BlockProofs
from coordinator.client.audit_query import AuditQuery, BadQuery, FoundEvent, find
from coordinator.client.cli import app
from coordinator.database import transaction
from protocol.audit_event import EventType
from protocol.checkpoint import cosigner_key
from protocol.enrolment import witness_name
from protocol.merkle import Tree, inclusion_proof, leaf_hash
from protocol.signing import SigningKey
from protocol.witness_policy import WitnessPolicy
from tests.coordinator.appliances import Made, TestSite, exported


@pytest.fixture
def bundle(local: Made, tmp_path: Path) -> bytes:
    """A log of some six hundred entries: two whole blocks and the begin of a third."""
    sites = [TestSite(f"site-{number}", tmp_path) for number in range(3)]
    for site in sites:
        site.enrol_in(local.appliance)
    with transaction(local.appliance.engine) as session:
        for number in range(600):
            event = EventType.STUDY_REFUSED if number % 50 == 0 else EventType.STUDY_CONSENTED
            append(
                session, local.appliance, event, actor="site:site-0", subject=f"study-{number}",
                numbers={"epsilon": number / 8}, groups={"sites": ("site-0",)},
                payload={"name": "Ada", "reason": f"words {number}"} if number % 100 == 0 else None,
            )  # fmt: skip
    integrate_once(local.appliance)
    for site in sites:
        with transaction(local.appliance.engine) as session:
            data = site.cosign(latest_note(session, local.appliance), local.clock())
            accept_cosignatures(
                session, local.appliance, cosigner_key(witness_name(site.name), site.witness).text, data
            )
    return exported(local)


@pytest.fixture
def found(bundle: bytes) -> tuple[AuditBundle, list[FoundEvent]]:
    opened = AuditBundle.of(read_archive(bundle))
    return opened, find(opened, AuditQuery.of(events=["study.refused"]))[1]


def command(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["audit", *arguments[:1], str(path), *arguments[1:]])


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 512, 700])
def test_proofs_from_blocks_are_the_tree_s_own(size: int) -> None:
    hashes = [leaf_hash(b"%d" % number) for number in range(size)]
    tree, proofs = Tree(hashes), BlockProofs()
    for index, digest in enumerate(hashes):
        proofs.add(index, digest)
    for index in {0, size // 2, size - 1}:
        block = index // 256
        around = hashes[block * 256 : block * 256 + 256]
        assert proofs.prove(block, around, index) == inclusion_proof(index, size, tree.read)


def test_the_master_verifies_alone_and_no_byte_of_it_can_change(found: tuple[AuditBundle, list[FoundEvent]]) -> None:
    opened, events = found
    assert len(events) == 12
    master = b"".join(to_jsonl(opened, events))
    report = verify_found(master)
    assert (report.problems, report.entries, report.payloads) == ([], 12, 6)
    policy = WitnessPolicy.from_bytes(opened.small["witness_policy.json"])
    assert verify_found(master, policy=policy, log=policy.log).verified
    stranger = WitnessPolicy(policy.log, (cosigner_key("else/w", SigningKey.generate()),), 1)
    assert not verify_found(master, policy=stranger).verified
    assert not verify_found(master, log=policy.witnesses[0]).verified
    chance = random.Random(3)
    for _ in range(300):
        changed = bytearray(master)
        changed[chance.randrange(len(master))] ^= 1 << chance.randrange(8)
        assert not verify_found(bytes(changed)).verified
    lines = master.splitlines(keepends=True)
    for other in ([lines[0], lines[2], lines[1]], [lines[0], lines[1], lines[1]], lines[1:], [], [lines[0], b"\n"]):
        assert not verify_found(b"".join(other)).verified


def test_the_command_prints_the_master_and_verifies_it(bundle: bytes, tmp_path: Path) -> None:
    path, master = tmp_path / "bundle.tar", tmp_path / "found.jsonl"
    path.write_bytes(bundle)
    printed = command(path, "query", "--event", "study.refused", "--format", "jsonl")
    assert printed.exit_code == 0
    master.write_bytes(printed.stdout_bytes)
    assert json.loads(command(master, "verify", "--json").stdout)["verified"] is True
    master.write_bytes(printed.stdout_bytes.replace(b"words 100", b"words 101"))
    assert json.loads(command(master, "verify", "--json").stdout)["verified"] is False
    assert command(path, "query", "--format", "csv").stdout == command(path, "query", "--csv").stdout
    for wrong in (("--format", "xml"), ("--format", "csv", "--json")):
        assert isinstance(command(path, "query", *wrong).exception, BadQuery)


def required_codes(resource: dict[str, Any]) -> list[str]:
    """What the validator leaves open: the two codes of AuditEvent whose value sets R4 binds as required."""
    bound = {"action": {"C", "R", "U", "D", "E"}, "outcome": {"0", "4", "8", "12"}}
    return [name for name, codes in bound.items() if resource.get(name) not in codes]


def test_fhir_events_are_valid_audit_events_of_r4(found: tuple[AuditBundle, list[FoundEvent]], bundle: bytes) -> None:
    assert fhirkit.FHIR_VERSION == "4.0.1"
    everything = find(read_archive(bundle), AuditQuery())[1]
    actions = set()
    for line in to_fhir("cloister/test", everything):
        assert [str(issue) for issue in fhirkit.validate(line)] == []
        resource = json.loads(line)
        assert required_codes(resource) == []
        assert re.fullmatch(r"[A-Za-z0-9\-.]{1,64}", resource["id"])
        actions.add(resource["action"])
    assert {"C", "U"} <= actions
    first = fhir_event("cloister/test", found[1][2])
    assert first["entity"][0]["what"]["identifier"] == {"system": "urn:cloister:subject", "value": "study-100"}
    assert "Ada" not in json.dumps(first)
    assert "words" not in json.dumps(first)


@pytest.mark.parametrize(
    "change",
    [
        {"agent": [{"who": {"display": "x"}}]},
        {"recorded": "yesterday"},
        {"source": None},
        {"outcome": {"code": {"code": "0"}}},
        {"code": {"text": "what R5 calls the type"}},
        {"entity": [{"detail": [{"type": "without a value"}]}]},
        {"entity": [{"detail": [{"type": "two", "valueString": "x", "valueBase64Binary": "eA=="}]}]},
        {"action": "X"},
        {"outcome": "5"},
    ],
)
def test_what_is_no_audit_event_of_r4_is_found_out(
    found: tuple[AuditBundle, list[FoundEvent]], change: dict[str, Any]
) -> None:
    changed = {**fhir_event("cloister/test", found[1][0]), **change}
    resource = {name: value for name, value in changed.items() if value is not None}
    assert fhirkit.validate(resource) or required_codes(resource)


def test_ocsf_events_have_what_their_classes_require(bundle: bytes) -> None:
    """The required attributes of OCSF 1.3: Base Event, Entity Management and Authentication."""
    everything = find(read_archive(bundle), AuditQuery())[1]
    for item in everything:
        event = ocsf_event("cloister/test", item)
        assert event["type_uid"] == event["class_uid"] * 100 + event["activity_id"]
        assert (event["category_uid"], event["severity_id"]) == (3, 1)
        assert event["metadata"]["version"] == "1.3.0"
        assert event["metadata"]["product"]["vendor_name"] == "Cloister"
        assert isinstance(event["time"], int)
        assert ("entity" in event) == (event["class_uid"] == 3004)
        assert ("user" in event) == (event["class_uid"] == 3002)
        assert "words" not in json.dumps(event)


def test_every_event_has_an_activity_of_its_own_name() -> None:
    from coordinator.client.audit_formats import _ACTIVITIES

    said = {event.value.partition(".")[2] for event in EventType}
    assert set(_ACTIVITIES) <= said
