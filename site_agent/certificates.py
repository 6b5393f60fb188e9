"""The site's certificate: the request it makes and what it accepts in return. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from protocol.canonical import sha256_hex
from protocol.enrolment import CERTIFICATE_DAYS, site_uri
from protocol.errors import Malformed, VerificationFailed
from protocol.signing import SigningKey, VerifyingKey

SKEW = timedelta(minutes=5)
_LONGEST = timedelta(days=CERTIFICATE_DAYS + 1)


@dataclass(frozen=True)
class Issued:
    """A certificate that was checked: its PEM and the moments between which it holds."""

    pem: str
    not_before: datetime
    not_after: datetime


def request_certificate(site: str, identity: SigningKey) -> str:
    """The CSR (PEM) for this site's key, signed by it; common name and SPIFFE URI say which site."""
    key = serialization.load_pem_private_key(identity.to_pem(), None)
    assert isinstance(key, Ed25519PrivateKey)
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)]))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(site_uri(site))]), critical=False)
        .sign(key, None)
    )
    return request.public_bytes(serialization.Encoding.PEM).decode("ascii")


def certificate_authority(data: bytes, expected: str) -> x509.Certificate:
    """The one CA certificate in PEM `data`, if SHA-256 over its DER is `expected` ("sha256:" + hex).

    Raises Malformed for anything but one certificate, VerificationFailed for another or for one that is no CA.
    """
    certificate = _one(data)
    if sha256_hex(certificate.public_bytes(serialization.Encoding.DER)) != expected:
        raise VerificationFailed(
            "The coordinator's CA is not the one that the token names: nothing was sent to it.",
            "Somebody may be in between, or the token is of another coordinator. Compare the fingerprint with the "
            "coordinator's administrator by telephone.",
        )
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        constraints = None
    if constraints is None or not constraints.ca:
        raise VerificationFailed("The coordinator's CA certificate is not a CA's.", "Update the coordinator.")
    return certificate


def fingerprint(pem: bytes) -> str:
    """SHA-256 over the DER of the one certificate in `pem`, as tokens carry it. Raises Malformed."""
    return sha256_hex(_one(pem).public_bytes(serialization.Encoding.DER))


def check_issued(pem: str, ca: bytes, site: str, identity: VerifyingKey, *, now: datetime) -> Issued:
    """The certificate in `pem`, if the pinned CA issued it for this site and key and it holds now.

    Raises Malformed for anything but one certificate, VerificationFailed otherwise.
    """
    certificate = _one(pem.encode())
    issued = Issued(pem, certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    try:
        certificate.verify_directly_issued_by(_one(ca))
    except (InvalidSignature, ValueError, TypeError):
        raise _refused("it is not signed by the pinned CA") from None
    key = certificate.public_key()
    if not isinstance(key, Ed25519PublicKey) or key.public_bytes_raw() != identity.raw:
        raise _refused("it is for another key")
    if _uris(certificate) != [site_uri(site)]:
        raise _refused("it names another site")
    if not issued.not_before - SKEW <= now < issued.not_after:
        raise VerificationFailed(
            f"The certificate does not hold now: it is for {issued.not_before:%Y-%m-%d %H:%M} to "
            f"{issued.not_after:%Y-%m-%d %H:%M} UTC.",
            "Check this machine's clock, and the coordinator's.",
        )
    if issued.not_after - issued.not_before > _LONGEST:
        raise _refused(f"it is for longer than {CERTIFICATE_DAYS} days")
    return issued


def validity(pem: bytes) -> Issued:
    """When the site's own stored certificate holds. Raises Malformed for anything but one certificate."""
    certificate = _one(pem)
    return Issued(pem.decode("ascii"), certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def _one(data: bytes) -> x509.Certificate:
    try:
        (certificate,) = x509.load_pem_x509_certificates(data)
    except (ValueError, x509.InvalidVersion):
        raise Malformed("This is not one certificate in PEM.", "Update both sides to the same version.") from None
    return certificate


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _refused(why: str) -> VerificationFailed:
    return VerificationFailed(
        f"The coordinator's answer holds a certificate that can't be accepted: {why}.",
        "Nothing was installed. Report it to the coordinator's administrator.",
    )
