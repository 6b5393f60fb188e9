"""Sites over HTTP: enrolment, renewal, revocation, and what an attacker tries with certificates."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from sqlmodel import col, select

from coordinator.audit.tables import LogEntry
from coordinator.database import reading, transaction
from coordinator.keystore import load_keys
from coordinator.people import accounts
from coordinator.sites import enrolment
from coordinator.sites.repository import SiteRepository
from protocol.audit_event import AuditEvent
from protocol.canonical import sha256_hex
from protocol.checkpoint import cosigner_key
from protocol.enrolment import EnrolmentRequest, EnrolmentResponse, Token, site_uri, witness_name
from protocol.identifiers import Role
from protocol.note import VerifierKey
from protocol.signing import SigningKey
from protocol.witness_policy import WitnessPolicy
from tests.coordinator.appliances import Served, TestPerson, TestSite, make_coordinator, trusting

pytestmark = pytest.mark.processes


def invite(served: Served, name: str) -> Token:
    with transaction(served.appliance.engine) as session:
        return enrolment.invite(session, served.appliance, name)


def enrol(served: Served, request: EnrolmentRequest) -> httpx.Response:
    with served.client() as client:
        return client.post("/v1/enrol", json=request.model_dump(mode="json"))


def enrolled(served: Served, name: str, folder: Path) -> TestSite:
    site = TestSite(name, folder)
    answer = enrol(served, site.request(invite(served, name)))
    assert answer.status_code == 201, answer.text
    site.response = EnrolmentResponse.model_validate_json(answer.content)
    return site


def call(served: Served, site: TestSite, path: str = "/v1/sites/me") -> httpx.Response:
    with served.client(context=site.context(served.ca_path)) as client:
        return client.get(path)


def refused_by_tls(served: Served, context: ssl.SSLContext) -> None:
    """With TLS 1.3 the server's refusal of a certificate arrives with the first answer."""
    with served.client(context=context) as client, pytest.raises(httpx.TransportError):
        client.get("/v1/sites/me")


def test_a_site_enrols_and_is_known_by_its_certificate(served: Served, tmp_path: Path) -> None:
    site = enrolled(served, "site-a", tmp_path)
    assert site.response is not None
    certificate = x509.load_pem_x509_certificate(site.response.certificate.encode())
    assert certificate.not_valid_after_utc - datetime.now(UTC) < timedelta(days=7, minutes=1)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["spiffe://cloister/site/site-a"]
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    policy = WitnessPolicy.from_document(site.response.witness_policy)
    assert policy.log == VerifierKey.parse(site.response.log)
    assert cosigner_key(witness_name("site-a"), site.witness) in policy.witnesses
    me = call(served, site).json()
    assert (me["name"], me["status"], me["identity"]) == ("site-a", "active", site.key.public.text)


def test_the_request_cannot_choose_who_it_is(served: Served, tmp_path: Path) -> None:
    site, token = TestSite("site-a", tmp_path), invite(served, "site-a")
    answer = enrol(served, site.request(token, csr=site.csr(subject="site-b")))
    certificate = x509.load_pem_x509_certificate(answer.json()["certificate"].encode())
    assert certificate.subject.rfc4514_string() == "CN=site-a"


def test_a_token_is_used_once_expires_and_is_one_sites(served: Served, tmp_path: Path) -> None:
    first, second = invite(served, "site-a"), invite(served, "site-b")
    thief = TestSite("site-b", tmp_path)
    other = enrol(served, thief.request(second, secret=first.secret))
    assert (other.status_code, other.json()["code"]) == (403, "token-refused")
    assert enrol(served, TestSite("site-a", tmp_path).request(first)).status_code == 201, "the token was not spent"
    again = enrol(served, TestSite("site-a", tmp_path).request(first))
    assert "used already" in again.json()["detail"]
    served.clock.move(hours=24)
    late = enrol(served, thief.request(second))
    assert "expired" in late.json()["detail"]
    unknown = enrol(served, thief.request(second, secret="A" * 43))
    assert (unknown.status_code, unknown.json()["code"]) == (403, "token-refused")


def test_enrolment_needs_one_own_key(served: Served, tmp_path: Path) -> None:
    site = enrolled(served, "site-a", tmp_path)
    token, other = invite(served, "site-b"), TestSite("site-b", tmp_path)
    twin = TestSite("site-b", tmp_path, key=site.key)
    assert enrol(served, twin.request(token)).json()["code"] == "conflict"
    assert enrol(served, other.request(token, identity=site.key.public.text)).json()["code"] == "refused"
    assert enrol(served, other.request(token, csr=other.csr(SigningKey.generate()))).json()["code"] == "refused"
    assert enrol(served, other.request(token, csr="nothing")).json()["code"] == "malformed"
    assert enrol(served, other.request(token, csr=_tampered(other.csr()))).json()["code"] in (
        "malformed",
        "bad-signature",
    )
    assert enrol(served, other.request(token, csr=_ec_request())).json()["code"] == "malformed"
    stolen = cosigner_key(witness_name("site-b"), site.witness).text
    assert enrol(served, other.request(token, witness=stolen)).status_code in (400, 409)
    foreign = cosigner_key(witness_name("site-a"), SigningKey.generate()).text
    assert enrol(served, other.request(token, witness=foreign)).json()["code"] == "malformed"
    own_identity = cosigner_key(witness_name("site-b"), other.key).text
    assert enrol(served, other.request(token, witness=own_identity)).json()["code"] == "malformed"
    assert enrol(served, other.request(token)).status_code == 201, "nothing of all that spent the token"


def test_renewal_gives_a_new_serial_over_the_same_key_only(served: Served, tmp_path: Path) -> None:
    site = enrolled(served, "site-a", tmp_path)
    assert site.response is not None
    with served.client(context=site.context(served.ca_path)) as client:
        other = client.post("/v1/sites/me/renew", json={"csr": site.csr(SigningKey.generate())})
        assert (other.status_code, other.json()["code"]) == (403, "refused")
        renewed = client.post("/v1/sites/me/renew", json={"csr": site.csr()})
    assert renewed.status_code == 200
    before, after = (
        x509.load_pem_x509_certificate(pem.encode())
        for pem in (site.response.certificate, renewed.json()["certificate"])
    )
    assert before.serial_number != after.serial_number
    with served.client(context=site.context(served.ca_path, renewed.json()["certificate"])) as client:
        assert client.get("/v1/sites/me").json()["serial"] == f"{after.serial_number:x}"


def test_a_revoked_site_is_refused_on_its_open_connection(served: Served, tmp_path: Path) -> None:
    site, other = enrolled(served, "site-a", tmp_path), enrolled(served, "site-b", tmp_path)
    with served.client(context=site.context(served.ca_path)) as client:
        assert client.get("/v1/sites/me").status_code == 200
        with transaction(served.appliance.engine) as session:
            enrolment.revoke(session, served.appliance, "site-a")
        refused = client.get("/v1/sites/me")
        assert (refused.status_code, refused.json()["code"]) == (403, "site-revoked")
        assert client.post("/v1/sites/me/renew", json={"csr": site.csr()}).status_code == 403
        assert client.post("/v1/log/cosignatures", content=b"x").status_code == 403
    assert call(served, other).status_code == 200
    again = TestSite("site-a", tmp_path)
    token = invite(served, "site-a")
    assert enrol(served, TestSite("site-a", tmp_path, key=site.key).request(token)).json()["code"] == "conflict"
    assert enrol(served, again.request(token)).status_code == 201, "a revoked site may enrol anew, with a new key"
    assert call(served, site).json()["code"] == "site-revoked", "its old certificate stays revoked"


def test_a_site_reaches_only_its_own(served: Served, tmp_path: Path) -> None:
    """There is no path that names another site: who is meant is always the certificate."""
    first, second = enrolled(served, "site-a", tmp_path / "a"), enrolled(served, "site-b", tmp_path / "b")
    registration = {"schema_digest": sha256_hex(b"s"), "snapshot": sha256_hex(b"x"), "patients": 40, "held_out": 10}
    with served.client(context=first.context(served.ca_path)) as client:
        assert client.put("/v1/sites/me/datasets/cohort", json=registration).status_code == 204
        assert client.put("/v1/sites/site-b/datasets/cohort", json=registration).status_code == 404
        assert client.get("/v1/sites/site-b").status_code == 404
        assert client.get("/v1/sites").status_code == 401, "a site is not a person"
    assert [row["name"] for row in call(served, first).json()["datasets"]] == ["cohort"]
    assert call(served, second).json()["datasets"] == []


def test_counts_below_the_minimum_cell_and_other_nonsense_are_refused(served: Served, tmp_path: Path) -> None:
    site = enrolled(served, "site-a", tmp_path)
    good = {"schema_digest": sha256_hex(b"s"), "snapshot": sha256_hex(b"x"), "patients": 40, "held_out": 10}
    bad: list[dict[str, object]] = [
        {"patients": 9}, {"held_out": 40}, {"held_out": -1}, {"patients": "many"}, {"name": "x"}, {"snapshot": "x"},
    ]  # fmt: skip
    with served.client(context=site.context(served.ca_path)) as client:
        for change in bad:
            assert client.put("/v1/sites/me/datasets/cohort", json=good | change).status_code in (400, 422), change
        assert client.put("/v1/sites/me/datasets/Not%20a%20name", json=good).status_code == 400
    assert call(served, site).json()["datasets"] == []


def test_a_certificate_of_another_ca_does_not_connect(served: Served, tmp_path: Path) -> None:
    """The forger has all but our CA's key: the right names, the site's own key even."""
    site = enrolled(served, "site-a", tmp_path)
    forger = make_coordinator(tmp_path / "forger")
    forged = forger.appliance.keys.authority.issue_site(
        "site-a", site.key.public, now=datetime.now(UTC), entropy=forger.appliance.entropy
    )
    pem = forged.public_bytes(serialization.Encoding.PEM).decode()
    refused_by_tls(served, site.context(served.ca_path, pem))
    forger.appliance.engine.dispose()


def test_an_expired_certificate_does_not_connect_and_ends_on_an_open_connection(served: Served, tmp_path: Path) -> None:
    site = enrolled(served, "site-a", tmp_path)
    keys = load_keys(served.appliance.settings)
    past = datetime.now(UTC) - timedelta(days=8)
    old = keys.authority.issue_site("site-a", site.key.public, now=past, entropy=served.appliance.entropy)
    refused_by_tls(served, site.context(served.ca_path, old.public_bytes(serialization.Encoding.PEM).decode()))
    with served.client(context=site.context(served.ca_path)) as client:
        assert client.get("/v1/sites/me").status_code == 200
        served.clock.move(days=7)
        refused = client.get("/v1/sites/me")
    assert (refused.status_code, "expired" in refused.json()["detail"]) == (403, True)


def test_a_certificate_of_ours_that_was_never_recorded_is_refused(served: Served, tmp_path: Path) -> None:
    """Such as one from a stolen backup of the CA's folder, before its theft is known."""
    site = enrolled(served, "site-a", tmp_path)
    keys = load_keys(served.appliance.settings)
    for name, key in (("site-a", site.key), ("site-a", SigningKey.generate()), ("nowhere", site.key)):
        unrecorded = keys.authority.issue_site(
            name, key.public, now=datetime.now(UTC), entropy=served.appliance.entropy
        )
        pem = unrecorded.public_bytes(serialization.Encoding.PEM).decode()
        with served.client(context=site.context(served.ca_path, pem, key)) as client:
            assert client.get("/v1/sites/me").status_code == 403


def test_the_servers_own_certificate_is_no_sites(served: Served) -> None:
    context = trusting(served.ca_path)
    context.load_cert_chain(served.appliance.keys.server_certificate_path, served.appliance.keys.server_key_path)
    refused_by_tls(served, context)


def test_tls_older_than_1_3_and_plain_http_are_refused(served: Served) -> None:
    old = trusting(served.ca_path)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with served.client(context=old) as client, pytest.raises(httpx.ConnectError):
        client.get("/v1/health")
    with httpx.Client(trust_env=False) as client, pytest.raises(httpx.TransportError):
        client.get(f"http://{served.address}/v1/health")
    with served.client(context=ssl.create_default_context()) as client, pytest.raises(httpx.ConnectError):
        client.get("/v1/health")
    with served.client() as client:
        assert client.get("/v1/health").json() == {"status": "ok", "parts": {"log": "ok"}}


def test_without_a_certificate_or_with_headers_that_claim_one(served: Served) -> None:
    claims = {
        "x-ssl-client-cert": "anything",
        "x-forwarded-for": "127.0.0.1",
        "x-client-dn": f"URI:{site_uri('site-a')}",
    }
    with served.client() as client:
        refused = client.get("/v1/sites/me", headers=claims)
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")


def test_a_body_over_the_limit_is_refused(served: Served) -> None:
    limit = served.appliance.settings.body_limit

    def pieces() -> Iterator[bytes]:
        for _ in range(limit // 65536 + 2):
            yield b" " * 65536

    for body in (b" " * (limit + 1), pieces()):
        with served.client() as client:
            try:
                assert client.post("/v1/enrol", content=body).status_code == 413
            except httpx.TransportError:
                # The server hangs up on who goes on sending: the answer may be lost on the way to such a caller.
                continue
    with served.client() as client:
        assert client.get("/v1/health").status_code == 200
        assert client.post("/v1/enrol", content=b" " * 100).status_code in (400, 422)


def test_an_invalid_request_is_not_echoed(served: Served) -> None:
    secret = "patient-4711"
    with served.client() as client:
        for body in ({"secret": secret, secret: 1}, [secret], secret):
            refused = client.post("/v1/enrol", json=body)
            assert refused.status_code == 422
            assert secret not in refused.text


def test_people_see_sites_and_data_sets(served: Served, tmp_path: Path) -> None:
    enrolled(served, "site-a", tmp_path)
    ada = TestPerson("ada")
    ada.join(served, Role.RESEARCHER)
    with served.client(token=ada.sign_in(served)) as client:
        assert [row["name"] for row in client.get("/v1/sites").json()] == ["site-a"]
        assert client.get("/v1/datasets").json() == []
    with reading(served.appliance.engine) as session:
        assert [row.name for row in SiteRepository(session).active()] == ["site-a"]
    assert timedelta(hours=8) == accounts.LIFETIME


def _tampered(csr: str) -> str:
    lines = csr.splitlines()
    body = lines[2]
    lines[2] = ("A" if body[10] != "A" else "B").join([body[:10], body[11:]])
    return "\n".join(lines) + "\n"


def _ec_request() -> str:
    from cryptography.hazmat.primitives import hashes

    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def test_a_site_that_leaves_is_logged_and_revoked(served: Served, tmp_path: Path) -> None:
    site = enrolled(served, "hospital-a", tmp_path)
    said = {"retained": 0, "decision_digest": sha256_hex(b"decision")}
    with served.client(context=site.context(served.ca_path)) as client:
        assert client.post("/v1/sites/me/departure", json={**said, "retained": -1}).status_code == 422
        assert client.post("/v1/sites/me/departure", json=said).status_code == 204
        assert client.get("/v1/sites/me").status_code == 403
    with reading(served.appliance.engine) as session:
        leaves = session.exec(select(LogEntry.leaf).order_by(col(LogEntry.id))).all()
    events = [AuditEvent.model_validate_json(leaf) for leaf in leaves]
    assert [event.event.value for event in events][-2:] == ["site.left", "site.revoked"]
    assert (events[-2].actor, dict(events[-2].numbers)) == ("site:hospital-a", {"retained": 0})
