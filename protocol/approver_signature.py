"""Whether an approver of a plan's roster signed a document: by their Ed25519 key (DSSE), or by one of their passkeys
(W3C Web Authentication Level 2, 7.2). Pure; the same at the coordinator and at each site."""

from __future__ import annotations

from typing import Literal

from webauthn import verify_authentication_response
from webauthn.helpers import decode_credential_public_key
from webauthn.helpers.cose import COSEAlgorithmIdentifier
from webauthn.helpers.structs import AuthenticationCredential, AuthenticatorAssertionResponse

from protocol.canonical import parse
from protocol.envelope import Envelope, open_json
from protocol.errors import BadSignature, Malformed
from protocol.passkey import (
    Passkey,
    PasskeySignature,
    challenge_of,
    decode,
    is_passkey_signature,
    origin_of,
    relying_party,
)
from protocol.plan import PlannedApprover
from protocol.signing import VerifyingKey

Signed = Envelope | PasskeySignature
Method = Literal["key", "passkey"]
ALGORITHMS = (
    COSEAlgorithmIdentifier.EDDSA,
    COSEAlgorithmIdentifier.ECDSA_SHA_256,
    COSEAlgorithmIdentifier.RSASSA_PKCS1_v1_5_SHA_256,
)


def read_signed(data: bytes) -> Signed:
    """The envelope, or the passkey's signature, in these bytes. Nothing is verified. Raises Malformed."""
    return PasskeySignature.from_bytes(data) if is_passkey_signature(parse(data)) else Envelope.from_bytes(data)


def document_of(signed: Signed) -> bytes:
    """The bytes that were signed."""
    return signed.document if isinstance(signed, PasskeySignature) else signed.payload


def verify_signed(signed: Signed, payload_type: str, approver: PlannedApprover, address: str) -> Method:
    """How the approver signed. address: the coordinator's "host:port", as whoever verifies pinned it.

    Raises BadSignature unless it was this approver, by a key that the plan's roster fixes, and nobody beside them.
    """
    if isinstance(signed, PasskeySignature):
        passkey = next((entry for entry in approver.passkeys if entry.credential == signed.credential), None)
        if passkey is None:
            raise BadSignature("The passkey is not one that the plan fixes for this person.", _AGAIN)
        if signed.payload_type != payload_type:
            raise BadSignature(f"The passkey signed {signed.payload_type}, not {payload_type}.", _AGAIN)
        verify_passkey(signed, passkey, address)
        return "passkey"
    if approver.key is None:
        raise BadSignature("The plan fixes no Ed25519 key for this person.", "Sign with your passkey.")
    key = VerifyingKey.from_text(approver.key)
    _, verified = open_json(signed, payload_type, {key.key_id: key})
    if len(verified) != len(signed.signatures):
        raise BadSignature("The document carries a signature by an unknown key.", "Sign it with your own key alone.")
    return "key"


def verify_passkey(signed: PasskeySignature, passkey: Passkey, address: str, *, count: int = 0) -> int:
    """The authenticator's signature counter, once its assertion over exactly this document verifies: made at the origin
    of `address`, for its host, in no foreign frame, by a person who was present and verified.

    count: the counter so far; one that did not grow tells of a copied authenticator. Raises BadSignature.
    """
    client_data = parse(decode(signed.client_data), limit=len(signed.client_data))
    if not isinstance(client_data, dict) or client_data.get("crossOrigin", False) is not False:
        raise BadSignature("The passkey was asked for in another site's frame.", _AGAIN)
    key = decode(passkey.key)
    require_algorithm(key)
    credential = AuthenticationCredential(
        id=signed.credential,
        raw_id=decode(signed.credential),
        response=AuthenticatorAssertionResponse(
            client_data_json=decode(signed.client_data),
            authenticator_data=decode(signed.authenticator_data),
            signature=decode(signed.signature),
        ),
    )
    try:
        return verify_authentication_response(
            credential=credential,
            expected_challenge=challenge_of(signed.payload_type, signed.document),
            expected_rp_id=relying_party(address),
            expected_origin=origin_of(address),
            credential_public_key=key,
            credential_current_sign_count=count,
            require_user_verification=True,
        ).new_sign_count
    except Exception as error:  # its parsers raise errors of many kinds; none may pass
        raise BadSignature(f"The passkey's signature does not verify ({_why(error)}).", _AGAIN) from error


def require_algorithm(key: bytes) -> None:
    """Raises Malformed unless the COSE key is of Ed25519, P-256 or RSA with SHA-256."""
    unused = Malformed("The passkey's key is of a kind that is not used here.", "Register another passkey.")
    try:
        algorithm = decode_credential_public_key(key).alg
    except Exception as error:  # as above
        raise unused from error
    if algorithm not in ALGORITHMS:
        raise unused


def _why(error: Exception) -> str:
    # The library's sentences, cut to a code: they may quote what was sent.
    told = str(error)
    for words, code in (
        ("challenge", "it is for another document"),
        ("origin", "it was made at another address"),
        ("RP ID", "it was made for another host"),
        ("User verification", "the person was not verified"),
        ("not present", "nobody was present"),
        ("sign count", "the authenticator was copied, or the signature is an old one"),
        ("client data type", "it is no assertion"),
    ):
        if words in told:
            return code
    return "the signature is wrong"


_AGAIN = "Sign again, on the coordinator's own page, with the passkey that you registered before the study was planned."
