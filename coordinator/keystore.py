"""The coordinator's own keys and its certificate authority (X.509 over P-256, the curve that browsers and PDF readers
know; sites' certificates are over their own Ed25519 keys).

Keys lie unencrypted in `keys/`, 0600 in a 0700 folder that only the coordinator's user can read; the volume
is the operator's to encrypt. A key file that others can read is refused.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coordinator.settings import Settings, split_address
from protocol.canonical import sha256_hex
from protocol.enrolment import CERTIFICATE_DAYS, site_uri
from protocol.errors import CloisterError
from protocol.signing import SigningKey, VerifyingKey

Entropy = Callable[[int], bytes]
PublicKey = Ed25519PublicKey | EllipticCurvePublicKey
SECRET_BYTES = 32
CA_DAYS = 3650
SERVER_DAYS = 397
REPORT_USAGES = [x509.ObjectIdentifier("1.3.6.1.5.5.7.3.36"), ExtendedKeyUsageOID.EMAIL_PROTECTION]
"""Signing documents (RFC 9336), and what PDF readers on NSS ask for in its place."""
SKEW = timedelta(minutes=5)  # a site whose clock is a little behind must not find its certificate in the future

_KEYS = ("ca.key.pem", "server.key.pem", "log.key.pem", "coordinator.key.pem")
_SECRETS = ("pseudonym.secret", "challenge.secret")


class KeystoreError(CloisterError):
    """A key or certificate file is missing, damaged or readable by others."""

    code = "keystore"


@dataclass(frozen=True)
class Authority:
    """The CA: its certificate (DER) and the key that issues; `fingerprint` is what tokens carry."""

    certificate: x509.Certificate
    _key: EllipticCurvePrivateKey = field(repr=False)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")

    @property
    def fingerprint(self) -> str:
        """ "sha256:" + hex over the certificate's DER bytes."""
        return sha256_hex(self.certificate.public_bytes(serialization.Encoding.DER))

    def issue_site(self, site: str, identity: VerifyingKey, *, now: datetime, entropy: Entropy) -> x509.Certificate:
        """A certificate for TLS clients over the site's key: 7 days, the site's URI as its only name."""
        name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(site_uri(site))])
        return self._issue(
            site, Ed25519PublicKey.from_public_bytes(identity.raw), name, ExtendedKeyUsageOID.CLIENT_AUTH,
            now=now, days=CERTIFICATE_DAYS, entropy=entropy,
        )  # fmt: skip

    def issue_server(
        self, address: str, key: EllipticCurvePublicKey, *, now: datetime, entropy: Entropy
    ) -> x509.Certificate:
        """A certificate for this TLS server at "host:port"; its name is the host, an IP address or a DNS name."""
        host, _ = split_address(address)
        try:
            names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(host))]
        except ValueError:
            names = [x509.DNSName(host)]
        return self._issue(
            host[:64], key, x509.SubjectAlternativeName(names), ExtendedKeyUsageOID.SERVER_AUTH,
            now=now, days=SERVER_DAYS, entropy=entropy,
        )  # fmt: skip

    def issue_report_signer(
        self, name: str, key: EllipticCurvePublicKey, *, now: datetime, entropy: Entropy
    ) -> x509.Certificate:
        """A certificate that signs documents (RFC 9336) and nothing else, over a key that is used once.

        It lasts as long as the authority: the report must be checkable for as long as it is kept.
        """
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        end = self.certificate.not_valid_after_utc
        return (
            _builder(subject, self.certificate.subject, key, now, end, entropy)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True, content_commitment=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(REPORT_USAGES), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, SHA256())
        )

    def _issue(
        self, common_name: str, key: PublicKey, names: x509.SubjectAlternativeName, usage: x509.ObjectIdentifier,
        *, now: datetime, days: int, entropy: Entropy,
    ) -> x509.Certificate:  # fmt: skip
        end = min(now + timedelta(days=days), self.certificate.not_valid_after_utc)
        builder = _builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]), self.certificate.subject,
                           key, now, end, entropy)  # fmt: skip
        builder = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(names, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        return builder.sign(self._key, SHA256())


@dataclass(frozen=True)
class Keys:
    """All that the coordinator signs and hides with. Nothing here appears in a repr."""

    authority: Authority = field(repr=False)
    log: SigningKey = field(repr=False)
    coordinator: SigningKey = field(repr=False)
    pseudonym_secret: bytes = field(repr=False)
    challenge_secret: bytes = field(repr=False)
    folder: Path

    @property
    def server_certificate_path(self) -> Path:
        return self.folder / "server.pem"

    @property
    def server_key_path(self) -> Path:
        return self.folder / "server.key.pem"

    @property
    def ca_path(self) -> Path:
        return self.folder / "ca.pem"


def make_keys(settings: Settings, *, now: datetime, entropy: Entropy) -> None:
    """Make every key and certificate in the (new) keys folder. Randomness for keys is the OS generator's."""
    folder = settings.keys_folder
    folder.mkdir(mode=0o700)
    ca_key = generate_private_key(SECP256R1())
    authority = Authority(_self_signed(settings.name, ca_key, now=now, entropy=entropy), ca_key)
    write_private(folder / "ca.key.pem", _pem(ca_key))
    write_private(folder / "ca.pem", authority.pem.encode("ascii"))
    write_private(folder / "server.key.pem", _pem(generate_private_key(SECP256R1())))
    for name in ("log.key.pem", "coordinator.key.pem"):
        write_private(folder / name, SigningKey.generate().to_pem())
    for name in _SECRETS:
        write_private(folder / name, entropy(SECRET_BYTES))
    renew_server_certificate(load_keys(settings), settings.address, now=now, entropy=entropy)


def load_keys(settings: Settings) -> Keys:
    """The keys of an existing home. Raises KeystoreError for a missing, damaged or exposed file."""
    folder = settings.keys_folder
    pems = {name: _read_private(folder / name) for name in _KEYS}
    secrets = {name: _read_private(folder / name) for name in _SECRETS}
    if any(len(secret) != SECRET_BYTES for secret in secrets.values()):
        raise _damaged(folder / _SECRETS[0])
    certificate = _certificate(folder / "ca.pem")
    ca_key = _private(folder / "ca.key.pem", pems["ca.key.pem"])
    if certificate.public_key() != ca_key.public_key():
        raise KeystoreError(f"{folder}/ca.pem and ca.key.pem do not belong together.", "Restore both from a backup.")
    return Keys(
        authority=Authority(certificate, ca_key),
        log=SigningKey.from_pem(pems["log.key.pem"]),
        coordinator=SigningKey.from_pem(pems["coordinator.key.pem"]),
        pseudonym_secret=secrets["pseudonym.secret"],
        challenge_secret=secrets["challenge.secret"],
        folder=folder,
    )


def renew_server_certificate(keys: Keys, address: str, *, now: datetime, entropy: Entropy) -> bool:
    """Issue the server's certificate anew if it is missing, for another address or two thirds through its life.

    Returns whether a new one was written.
    """
    path = keys.server_certificate_path
    key = _private(keys.server_key_path, _read_private(keys.server_key_path)).public_key()
    fresh = keys.authority.issue_server(address, key, now=now, entropy=entropy)
    if path.exists():
        old = _certificate(path)
        life = old.not_valid_after_utc - old.not_valid_before_utc
        same = _names(old) == _names(fresh) and old.public_key() == key and old.issuer == fresh.issuer
        if same and now < old.not_valid_before_utc + life * 2 / 3:
            return False
    chain = fresh.public_bytes(serialization.Encoding.PEM) + keys.authority.pem.encode("ascii")
    write_private(path, chain)
    return True


def write_private(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that it is there whole or not at all, durably, mode 0600."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def _read_private(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        data = path.read_bytes()
    except FileNotFoundError:
        raise KeystoreError(f"{path} is missing.", "Restore the keys folder from a backup.") from None
    except OSError as error:
        raise KeystoreError(f"{path} can't be read: {error.strerror}.", "Run as the coordinator's own user.") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeystoreError(f"{path} is accessible to other users.", f"Run: chmod 600 {path}")
    return data


def _private(path: Path, pem: bytes) -> EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        raise _damaged(path) from None
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise _damaged(path)
    return key


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        raise KeystoreError(f"{path} is missing.", "Restore the keys folder from a backup.") from None
    except ValueError:
        raise _damaged(path) from None


def _damaged(path: Path) -> KeystoreError:
    return KeystoreError(f"{path} is damaged.", "Restore the keys folder from a backup.")


def _pem(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def _self_signed(name: str, key: EllipticCurvePrivateKey, *, now: datetime, entropy: Entropy) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Cloister CA {name}"[:64])])
    builder = _builder(subject, subject, key.public_key(), now, now + timedelta(days=CA_DAYS), entropy)
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, SHA256())
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: PublicKey,
    now: datetime,
    end: datetime,
    entropy: Entropy,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(_serial(entropy))
        .not_valid_before(now - SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _serial(entropy: Entropy) -> int:
    # RFC 5280 4.1.2.2: positive, at most 20 octets; the top bit stays clear and zero is ruled out.
    return int.from_bytes(b"\x01" + entropy(18), "big")


def _usage(**true: bool) -> x509.KeyUsage:
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: true.get(name, False) for name in names})
