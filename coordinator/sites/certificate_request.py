"""Reading a certificate request (PKCS #10): the key and the proof that its sender holds it; nothing else counts."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from protocol.errors import BadSignature, Malformed
from protocol.signing import VerifyingKey


def request_key(pem: str) -> VerifyingKey:
    """The Ed25519 key of a self-signed request. Subject, extensions and attributes are ignored: we say who it is.

    Raises Malformed for bytes that are no request or another kind of key, BadSignature when it isn't self-signed.
    """
    remedy = "Make the request with `cloister-site enrol`."
    try:
        request = x509.load_pem_x509_csr(pem.encode("ascii"))
        key = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature, x509.InvalidVersion):
        raise Malformed("The certificate request can't be read.", remedy) from None
    if not isinstance(key, Ed25519PublicKey):
        raise Malformed("The certificate request is over a key that is not Ed25519.", remedy)
    if not signed:
        raise BadSignature("The certificate request is not signed by its own key.", remedy)
    return VerifyingKey.from_bytes(key.public_bytes_raw())
