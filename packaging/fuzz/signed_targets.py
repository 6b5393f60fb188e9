"""What people and sites sign, and the papers that they write: good inputs, and the product's own reading of them.

Made from the tests' own whole release and authenticator, so it runs in the repository.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from target import Target

sys.path.append(str(Path(__file__).resolve().parents[2]))

from coordinator.incidents.report import read_report as read_incident
from coordinator.releases.review import read_approval
from coordinator.releases.serving import read_report as read_serving
from coordinator.reviews.decide import read_notice
from protocol.activated_policy import bundle, read_bundle
from protocol.approver_signature import document_of, read_signed, verify_passkey, verify_signed
from protocol.attestation import STATEMENT_TYPE, make_statement, open_statement
from protocol.canonical import canonical, parse, sha256_hex
from protocol.envelope import Envelope, pae, seal
from protocol.errors import CloisterError, Malformed
from protocol.identifiers import Role
from protocol.incident import INCIDENT_REPORT_TYPE, Incident, IncidentReport
from protocol.papers import read_records, read_safeguards
from protocol.passkey import PasskeySignature, encode
from protocol.plan import PlannedApprover
from protocol.policy_set import (
    POLICY_ACTIVATION_TYPE,
    POLICY_SET_TYPE,
    POLICY_VOTE_TYPE,
    PolicyActivation,
    PolicySet,
    PolicyVote,
)
from protocol.release import APPROVAL_TYPE, Approval
from protocol.serving import SERVING_REPORT_TYPE, ServingReport
from protocol.signing import SigningKey
from protocol.strict_yaml import load_yaml
from protocol.withdrawal import WITHDRAWAL_NOTICE_TYPE, WithdrawalNotice
from site_agent.releases.trusted_release import Fetched, TrustRoot, trust_keys
from tests.authenticator import Authenticator
from tests.papers import SAFEGUARDS, safeguards, site_records
from tests.releases import ADDRESS, Maker

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
AT = "2026-06-01T12:00:00Z"
DIGEST = "sha256:" + "7" * 64
SITE_KEY = SigningKey.from_seed(b"s" * 32)
SITE: Any = SimpleNamespace(name="clinic-a", identity=SITE_KEY.public.text)
JSON_WORDS = (b'{"', b'":', b'","', b"null", b"true", b"false", b"[]", b"{}", b'""', b'"\\u0000"', DIGEST.encode())
ENVELOPE_WORDS = (b'"payload":', b'"payloadType":', b'"signatures":', b'"keyid":', b'"sig":')
_FOUND = b"the parts of an assertion"


def signed_targets() -> dict[str, Target]:
    """By name."""
    return {
        "passkey assertions": _assertions(),
        "approver signatures": _approver_signatures(),
        "release approvals": _approvals(),
        "release statements": _release_statements(),
        "policy sets": _policy_sets(),
        "papers": _papers(),
        "attestations": _attestations(),
        "withdrawals": _by_site(
            WITHDRAWAL_NOTICE_TYPE,
            WithdrawalNotice(
                review="review-0123456789abcdef", site="clinic-a", study="heart", plan_digest=DIGEST,
                grounds=("consent-withdrawn", "erasure"), made_at=AT,
            ).model_dump(mode="json"),
            lambda data: read_notice(data, SITE).model_dump(mode="json"),
            (b"objection", b"authorization-revoked", b"review-"),
        ),
        "incident reports": _by_site(
            INCIDENT_REPORT_TYPE, _incident(), lambda data: {"happened": read_incident(data, SITE).model_dump()},
            (b"federation", b"everything", b"basis-invalidated", b"site", b"study"),
        ),
        "serving reports": _by_site(
            SERVING_REPORT_TYPE,
            ServingReport(
                report="serving-0123456789abcdef", number=3, site="clinic-a", release="heart-r1",
                subject_digest=DIGEST, change="stopped", server="server-0123456789abcdef", code="ended",
                rules=("gdpr:G04",), answered=50, at=AT,
            ).model_dump(mode="json"),
            lambda data: read_serving(data, SITE).model_dump(mode="json"),
            (b"refused", b"running", b"started"),
        ),
    }  # fmt: skip


def _by_site(
    kind: str, document: Mapping[str, Any], read: Callable[[bytes], Mapping[str, Any]], words: tuple[bytes, ...]
) -> Target:
    """A document under the site's key. Inputs are changed envelopes, and changed documents, which the site's key then
    signs: a dishonest site. Taken: an envelope that the key never signed, or a document that is read as another."""
    sealed, plain = seal(kind, dict(document), SITE_KEY).to_bytes(), canonical(dict(document))
    good = [read(sealed)]

    def take(data: bytes) -> bool:
        if b'"payloadType"' in data[:20_000] and b'"signatures"' in data:
            return read(data) not in good or data in (sealed, plain)
        if data == plain:
            return True
        body = _canonical_if_json(data)
        signature = SITE_KEY.sign(pae(kind, body))
        found = read(Envelope(kind, body, ((SITE_KEY.public.key_id, signature),)).to_bytes())
        return not _says(parse(body), found)

    return Target((sealed, plain), (*JSON_WORDS, *ENVELOPE_WORDS, *words), take)


def _canonical_if_json(data: bytes) -> bytes:
    try:
        return canonical(parse(data))
    except CloisterError:
        return data


def _says(told: Any, found: Any) -> bool:
    """Whether all that was told is in what was read, value for value: nothing was taken for another thing."""
    if isinstance(found, dict):
        return isinstance(told, dict) and all(_says(told[name], found[name]) for name in found if name in told)
    if isinstance(found, list | tuple):
        return isinstance(told, list) and len(told) == len(found) and all(map(_says, told, found))
    return type(told) is type(found) and bool(told == found)


def _incident() -> dict[str, Any]:
    happened = Incident(
        incident="incident-0123456789abcdef", kind="data-breach", scope="site", about="clinic-a", aware_at=AT
    )
    return IncidentReport(site="clinic-a", happened=happened, reported_at=AT).model_dump(mode="json")


def _attestations() -> Target:
    attested = safeguards().attested(NOW.date())
    statement = make_statement(
        "clinic-a", DIGEST, attested, site_records("clinic-a", today=NOW.date()), now=NOW - timedelta(minutes=1)
    )

    def read(data: bytes) -> Mapping[str, Any]:
        opened = open_statement(
            data, site="clinic-a", coordinator=DIGEST, key=SITE_KEY.public, after="2026-05-01T00:00:00Z", now=NOW
        )
        return opened.model_dump(mode="json")

    words = (b'"disk_encryption":', b'"tls_min":"1.2"', b'"records":', b'"kind":"dpia"', b'"expires":', b"2026-02-30")
    return _by_site(STATEMENT_TYPE, statement.model_dump(mode="json"), read, words)


def _papers() -> Target:
    """Nobody vouches for a file's text, so none is taken for another: what is looked for is a crash, and papers that
    don't survive being told to the coordinator."""
    lines = ["attestation:", *(f"  {name}: {_yaml(value)}" for name, value in SAFEGUARDS.items()), "records:"]
    lines += [
        f"- {{kind: {kind}, issuer: University hospital, issued: '2026-05-01', expires: '2027-05-01', {source}}}"
        for kind, source in (("dpa", "document: dpa.pdf"), ("risk_analysis", f"file: '{DIGEST}'"))
    ]
    seeds = ("\n".join(lines).encode() + b"\n",)

    def read(data: bytes) -> bool:
        loaded = load_yaml(data).value
        if not isinstance(loaded, dict):
            raise Malformed("The papers are no mapping.", "Give attestation and records.")
        found = read_safeguards(loaded.get("attestation"))
        about = {"scope": "site", "subject": "clinic-a"}
        records = read_records(loaded.get("records"), lambda name, _: sha256_hex(name.encode()), about=about)
        told = found.attested(date(2026, 6, 1)) if found.last_material_change is None else None
        if told is not None and len({record.digest for record in records}) == len(records):
            mine = [record for record in records if (record.scope, record.subject) == ("site", "clinic-a")]
            made = make_statement("clinic-a", DIGEST, told, mine[:200], now=NOW).model_dump(mode="json")
            sealed = seal(STATEMENT_TYPE, made, SITE_KEY).to_bytes()
            open_statement(sealed, site="clinic-a", coordinator=DIGEST, key=SITE_KEY.public, after=None, now=NOW)
        return data in seeds

    words = (b"- ", b": ", b"&a ", b"*a", b"!!python/object ", b"<<: ", b"{", b"}", b"yes", b"'1.3'", b"2026-02-30",
             b"dpia", b"expires", b"document: ../../x", b"|", b"null", b"\n")  # fmt: skip
    return Target(seeds, words, read)


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"'{value}'"


def _assertions() -> Target:
    """An assertion in its parts, so that changes go deeper than its base64. Taken: parts that no authenticator made."""
    authenticator = Authenticator(ADDRESS)
    document = canonical({"release": "heart-r1", "decision": "approve"})
    signed = authenticator.sign(APPROVAL_TYPE, document)
    parts = tuple(_decoded(text) for text in (signed.client_data, signed.authenticator_data, signed.signature))
    seeds = (_FOUND.join(parts),)

    def read(data: bytes) -> bool:
        given = data.split(_FOUND)
        if len(given) != 3:
            raise Malformed("An assertion has three parts.", "Sign again.")
        texts = dict(zip(("client_data", "authenticator_data", "signature"), map(encode, given), strict=True))
        try:
            made = PasskeySignature.model_validate({**signed.model_dump(), **texts})
        except ValueError:
            raise Malformed("A part is empty or too long.", "Sign again.") from None
        verify_passkey(made, authenticator.passkey, ADDRESS)
        return True

    words = (b'"type":"webauthn.get"', b'"challenge":"', b'"origin":"https://', b'"crossOrigin":true', b"\xa0", b"\x45",
             b"\x00\x00\x00\x00", b"\x30\x46\x02\x21", b"\xff\xff\xff\xff", _FOUND)  # fmt: skip
    return Target(seeds, words, read)


def _decoded(text: str) -> bytes:
    import base64

    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _approver_signatures() -> Target:
    """Taken: another document, or one signed by somebody else."""
    key, authenticator = SigningKey.from_seed(b"p" * 32), Authenticator(ADDRESS, counts=False)
    approver = PlannedApprover(
        person="bo", role=Role.COMPLIANCE_OFFICER, key=key.public.text, passkeys=(authenticator.passkey,)
    )
    document = canonical({"release": "heart-r1", "decision": "approve"})
    seeds = (
        seal(APPROVAL_TYPE, document, key).to_bytes(),
        authenticator.sign(APPROVAL_TYPE, document).to_bytes(),
    )

    def read(data: bytes) -> bool:
        signed = read_signed(data)
        verify_signed(signed, APPROVAL_TYPE, approver, ADDRESS)
        return document_of(signed) != document or data in seeds

    words = (*ENVELOPE_WORDS, b'"kind":"passkey"', b'"credential":"', b'"client_data":"', b'"signature":"', b"-", b"_")
    return Target(seeds, (*JSON_WORDS, *words), read)


def _approvals() -> Target:
    """A reviewer's decision under the plan's roster. Taken: a decision that nobody of it made."""
    maker = Maker()
    plan, appliance = maker.plan(), SimpleNamespace(settings=SimpleNamespace(address=ADDRESS))
    good = [
        Approval(
            release="heart-study-r1", subject_digest=DIGEST, person=name, role=role, decision="approve",
            meaning="reviewed-and-approved", reason_hash=DIGEST, packs={}, challenge=DIGEST, signed_at=AT,
        )
        for name, role in maker.voters
    ]  # fmt: skip
    seeds = tuple(
        seal(APPROVAL_TYPE, told.model_dump(mode="json"), maker.people[told.person]).to_bytes() for told in good
    )

    def read(data: bytes) -> bool:
        claimed, _ = read_approval(appliance, plan, data)  # type: ignore[arg-type]
        return claimed not in good or data in seeds

    return Target(seeds, (*JSON_WORDS, *ENVELOPE_WORDS, b'"person":"cy"', b'"role":'), read)


def _release_statements() -> Target:
    """A bundle's statement, plan and subject. Taken: any but the ones that the pinned coordinator signed."""
    maker = Maker()
    files = maker.files()
    names = ("statement.dsse.json", "subject.json")
    plan_digest = sha256_hex(Envelope.from_bytes(files["plan.dsse.json"], limit=16 << 20).payload)
    root = TrustRoot(
        site="clinic-a", coordinator=maker.coordinator.public, policy=maker.policy(),
        granted_plans=frozenset({plan_digest}), evaluated={}, address=ADDRESS,
    )  # fmt: skip

    def read(data: bytes) -> bool:
        name = names[0] if b'"payloadType"' in data else names[1]
        trusted = trust_keys(Fetched({**files, name: data}), root)
        return trusted.subject.digest != _digest_of(files) or data in (files[name],)

    return Target(
        tuple(files[name] for name in names),
        (*JSON_WORDS, *ENVELOPE_WORDS, b'"_type":', b'"predicateType":', b'"predicate":', b'"epsilon":', b'"outside'),
        read,
    )


def _digest_of(files: Mapping[str, bytes]) -> str:
    return sha256_hex(files["subject.json"])


def _policy_sets() -> Target:
    """Whole bundles. Taken: another set, other votes or other documents than the signed ones."""
    coordinator = SigningKey.from_seed(b"c" * 32)
    people = {name: SigningKey.from_seed(name.encode() * 16) for name in ("bo", "cy", "di")}
    documents = {"gdpr": b"pack: gdpr\n", "facts": b"facts: {}\n", "cases/gdpr": b"cases: []\n"}
    digests = {name: sha256_hex(data) for name, data in documents.items()}
    first = PolicySet(
        origin="package", coordinator="cloister/test", number=1, previous=None, documents=digests, proposer=None,
        proposed_at=AT,
    )  # fmt: skip
    second = first.model_copy(update={"origin": "people", "number": 2, "previous": first.digest, "proposer": "di"})
    votes = [
        seal(
            POLICY_VOTE_TYPE,
            PolicyVote(
                set=second.digest, policy=second.policy, person=name, role=role, decision="activate",
                reason_hash=DIGEST, signed_at=AT,
            ).model_dump(mode="json"),
            people[name],
        ).to_bytes()
        for name, role in (("bo", Role.COMPLIANCE_OFFICER), ("cy", Role.CLINICAL_LEAD))
    ]  # fmt: skip

    def bundled(given: PolicySet, signer: SigningKey, cast: list[bytes], signed: Mapping[str, SigningKey]) -> bytes:
        activation = PolicyActivation(
            set=given.digest, policy=given.policy, people={name: key.public.text for name, key in signed.items()},
            votes=tuple(map(sha256_hex, cast)), activated_at=AT,
        )  # fmt: skip
        stated = seal(POLICY_ACTIVATION_TYPE, activation.model_dump(mode="json"), coordinator).to_bytes()
        envelope = seal(POLICY_SET_TYPE, given.model_dump(mode="json"), signer).to_bytes()
        return canonical(bundle(envelope, cast, stated, documents))

    seeds = (bundled(first, coordinator, [], {}), bundled(second, people["di"], votes, people))
    good = [read_bundle(data, coordinator.public) for data in seeds]

    def read(data: bytes) -> bool:
        found = read_bundle(data, coordinator.public)
        return found not in good or data in seeds

    words = (b'"set":', b'"votes":', b'"activation":', b'"documents":', b'"cases/gdpr":', b'"facts":')
    return Target(seeds, (*JSON_WORDS, *ENVELOPE_WORDS, *words), read)
