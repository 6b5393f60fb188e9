"""Check an evidence report: who signed it, that no byte of it was changed since, and the checkpoint that it carries.

The signature is validated by pyHanko against the coordinator's certificate authority and nothing else. PDF leaves room
around the signature that no signature covers, filled with zeros: here nothing else may stand in it.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from protocol.canonical import sha256_hex
from protocol.errors import CloisterError, Malformed, VerificationFailed
from protocol.witness_policy import WitnessPolicy

MAX_REPORT = 64 << 20
ATTACHED = ("checkpoint", "log.vkey", "witness_policy.json")
_CONTENTS = re.compile(rb"<([0-9A-F]*)>")
_FORM = (
    "signed_data", "v1", [{"algorithm": "sha256", "parameters": None}], {"content_type": "data", "content": None},
    1, None, 1, "v1", None,
)  # fmt: skip
"""Of the signature: types and versions, one certificate (the signer's), no revocation lists, one signer."""
_REMEDY = "Do not rely on it; ask for the report again, and compare it with an export of the log."


@dataclass(frozen=True)
class CheckedReport:
    """A report that holds. signer: the certificate's subject; ca: the fingerprint of the authority that issued it;
    signed_at: what the signer said; size, cosigners: of the attached checkpoint."""

    signer: str
    ca: str
    signed_at: str
    size: int
    cosigners: tuple[str, ...]
    files: dict[str, bytes]

    def document(self) -> dict[str, Any]:
        """JSON."""
        return {
            "verified": True, "signer": self.signer, "ca": self.ca, "signed_at": self.signed_at,
            "checkpoint_size": self.size, "cosigners": list(self.cosigners),
        }  # fmt: skip


def check_report(data: bytes, ca: bytes, *, policy: WitnessPolicy | None = None) -> CheckedReport:
    """The report in a PDF, signed under the authority in `ca` (PEM), as a whole and unchanged.

    policy: the witness policy that a hospital pinned; left out, the attached one. Raises VerificationFailed, Malformed.
    """
    try:
        authority = x509.load_pem_x509_certificate(ca)
    except ValueError:
        raise Malformed("The certificate authority is not a PEM certificate.", "Give ca.pem of your account.") from None
    try:
        with _quiet():
            signer, signed_at, files = _open(data, authority)
    except CloisterError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged PDF fails in as many ways as the parser has lines
        raise _refused(f"it can't be read as a signed PDF ({type(error).__name__})") from None
    attached = WitnessPolicy.from_bytes(files["witness_policy.json"])
    checkpoint = (policy or attached).accept(files["checkpoint"])
    if files["log.vkey"] != attached.log.text.encode() + b"\n":
        raise _refused("the attached log key is not the attached policy's")
    fingerprint = sha256_hex(authority.public_bytes(Encoding.DER))
    return CheckedReport(signer, fingerprint, signed_at, checkpoint.size, tuple(sorted(checkpoint.cosigners)), files)


def _open(data: bytes, authority: x509.Certificate) -> tuple[str, str, dict[str, bytes]]:
    from asn1crypto import x509 as asn1_x509
    from pyhanko.pdf_utils.reader import PdfFileReader
    from pyhanko.sign.validation import validate_pdf_signature
    from pyhanko.sign.validation.status import SignatureCoverageLevel
    from pyhanko_certvalidator import ValidationContext

    reader = PdfFileReader(io.BytesIO(data))
    signatures = reader.embedded_signatures
    if len(signatures) != 1:
        raise _refused(f"it has {len(signatures)} signatures, not one")
    root = asn1_x509.Certificate.load(authority.public_bytes(Encoding.DER))
    status = validate_pdf_signature(signatures[0], ValidationContext(trust_roots=[root], allow_fetching=False))
    if not status.intact or not status.valid:
        raise _refused("its bytes are not those that were signed")
    if not status.trusted:
        raise _refused("its signer has no valid certificate of this authority")
    if status.coverage is not SignatureCoverageLevel.ENTIRE_FILE or not status.bottom_line:
        raise _refused("the signature does not cover the whole file")
    _require_nothing_hidden(data, signatures[0].byte_range, signatures[0].pkcs7_content)
    _require_one_form(_der(signatures[0].pkcs7_content), status.signing_cert, authority)
    at = status.signer_reported_dt
    return (
        status.signing_cert.subject.human_friendly,
        at.strftime("%Y-%m-%dT%H:%M:%SZ") if at is not None else "",
        _attachments(reader),
    )


def _require_nothing_hidden(data: bytes, byte_range: list[int], signature: bytes) -> None:
    """The gap in the signed ranges is the signature in upper-case hexadecimal, then zeros."""
    start, length, after, rest = byte_range
    gap = _CONTENTS.fullmatch(data[start + length : after])
    plain = _der(signature).hex().upper().encode()
    if start or after + rest != len(data) or gap is None or gap[1].rstrip(b"0") != plain.rstrip(b"0"):
        raise _refused("there is something beside the signature that the signature does not cover")


def _require_one_form(signature: bytes, signer: Any, authority: x509.Certificate) -> None:
    """What of a CMS signature (RFC 5652) no signature covers stands there as a coordinator writes it, in the one
    encoding that DER has: parsers are lenient about the rest."""
    from asn1crypto import cms

    info = cms.ContentInfo.load(signature)
    content = info["content"]
    signed = content["signer_infos"][0]
    form = (
        info["content_type"].native, content["version"].native, content["digest_algorithms"].native,
        content["encap_content_info"].native, len(content["certificates"]), content["crls"].native,
        len(content["signer_infos"]), signed["version"].native, signed["unsigned_attrs"].native,
    )  # fmt: skip
    named = signed["sid"].chosen.dump()
    # The name of the signer is outside its signature, and names are compared without regard to case.
    own = cms.IssuerAndSerialNumber({"issuer": signer.issuer, "serial_number": signer.serial_number}).dump()
    if form != _FORM or info.dump(force=True) != signature or named != own:
        raise _refused("its signature is not of the form that a coordinator makes")
    try:
        x509.load_der_x509_certificate(signer.dump()).verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        raise _refused("its signer's certificate is not as this authority issued it") from None


def _der(data: bytes) -> bytes:
    """The DER value that `data` begins with."""
    if len(data) < 4 or data[0] != 0x30 or data[1] != 0x82:
        raise _refused("its signature is not of the form that a coordinator makes")
    return data[: 4 + int.from_bytes(data[2:4], "big")]


def _attachments(reader: Any) -> dict[str, bytes]:
    names = reader.root["/Names"]["/EmbeddedFiles"]["/Names"]
    found = {
        str(names[at]): bytes(names[at + 1].get_object()["/EF"]["/F"].get_object().data)
        for at in range(0, len(names), 2)
    }
    if set(found) != set(ATTACHED):
        raise _refused(f"it does not carry {', '.join(ATTACHED)}")
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """pyHanko reports what it finds wrong with a traceback of its own: the one line that we raise is enough."""
    logger = logging.getLogger("pyhanko")
    before, logger.disabled = logger.disabled, True
    children = [
        logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith(("pyhanko.", "pyhanko_"))
    ]
    levels = [child.level for child in children]
    for child in children:
        child.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.disabled = before
        for child, level in zip(children, levels, strict=True):
            child.setLevel(level)


def _refused(why: str) -> VerificationFailed:
    return VerificationFailed(f"This is not a true evidence report: {why}.", _REMEDY)
