"""A person's connection to the coordinator: TLS 1.3, the pinned CA and no other, nothing taken from the environment."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from protocol.canonical import parse, sha256_hex
from protocol.enrolment import Token
from protocol.errors import CloisterError, Malformed, VerificationFailed

MAX_JSON = 16 << 20
MAX_DOWNLOAD = 1 << 30
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)


class CoordinatorRefused(CloisterError):
    """The coordinator said no. `status`: the HTTP status; `facts`: what else it told, such as policy findings."""

    def __init__(self, status: int, code: str, message: str, remedy: str, facts: dict[str, Any]) -> None:
        super().__init__(message, remedy)
        self.status, self.code, self.facts = status, code, facts


class CoordinatorUnreachable(CloisterError):
    """No answer, or none that TLS vouches for."""

    code = "coordinator-unreachable"


class Connection:
    """A context manager over one coordinator. Paths begin with /v1/; every method raises CoordinatorRefused,
    CoordinatorUnreachable, or Malformed for an answer that is too long or not JSON."""

    def __init__(self, address: str, context: ssl.SSLContext, session: str | None = None) -> None:
        headers = {"user-agent": "cloister"}
        if session:
            headers["authorization"] = f"Bearer {session}"
        self._address = address
        self._http = httpx.Client(
            base_url=f"https://{address}", verify=context, trust_env=False, follow_redirects=False,
            timeout=_TIMEOUT, headers=headers,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def get(self, path: str, **query: str | int) -> Any:
        """The JSON at a path."""
        return self._value(path, self._send("GET", path, MAX_JSON, params=query))

    def download(self, path: str, *, limit: int = MAX_DOWNLOAD, **query: str | int) -> bytes:
        """The bytes at a path, at most `limit`."""
        return self._send("GET", path, limit, params=query)

    def download_to(self, file: BinaryIO, path: str, *, limit: int, timeout_seconds: float, **query: str | int) -> int:
        """Write the bytes at a path, at most `limit`, to `file` as they come; how many. `timeout_seconds`: between two
        pieces, and before the first, while the coordinator writes the answer."""
        timeout = httpx.Timeout(60.0, connect=10.0, read=timeout_seconds)
        return self._receive(file.write, "GET", path, limit, params=query, timeout=timeout)

    def post(self, path: str, document: object | None = None) -> Any:
        """Send a JSON document (none: an empty body); the JSON that comes back, None for an empty answer."""
        return self._value(path, self._send("POST", path, MAX_JSON, json=document))

    def post_bytes(self, path: str, content: bytes, *, kind: str = "application/json") -> Any:
        """Send bytes as they are, such as a signed envelope; the JSON that comes back."""
        return self._value(path, self._send("POST", path, MAX_JSON, content=content, headers={"content-type": kind}))

    def delete(self, path: str) -> None:
        """Delete what is at a path."""
        self._send("DELETE", path, MAX_JSON)

    def _value(self, path: str, body: bytes) -> Any:
        return parse(body, limit=MAX_JSON) if body else None

    def _send(self, method: str, path: str, limit: int, **what: Any) -> bytes:
        if what.get("json", 0) is None:
            del what["json"]
        body = bytearray()
        self._receive(body.extend, method, path, limit, **what)
        return bytes(body)

    def _receive(self, take: Callable[[bytes], object], method: str, path: str, limit: int, **what: Any) -> int:
        """Hand on an answer's bytes piece by piece; a refusal's are kept from `take`."""
        try:
            with self._http.stream(method, path, **what) as answer:
                refusal, length = bytearray(), 0
                hand_on = take if answer.is_success else refusal.extend
                for chunk in answer.iter_bytes():
                    length += len(chunk)
                    if length > (limit if answer.is_success else MAX_JSON):
                        raise Malformed(f"An answer of {self._address} is longer than {limit} bytes.", "Report it.")
                    hand_on(chunk)
                if not answer.is_success:
                    raise self._refusal(answer.status_code, bytes(refusal))
                return length
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _refusal(self, status: int, body: bytes) -> CoordinatorRefused:
        try:
            told = parse(body, limit=MAX_JSON)
        except Malformed:
            told = None
        problem: dict[str, Any] = dict(told) if isinstance(told, dict) else {}
        known = {"type", "title", "status", "detail", "code", "remedy", "instance"}
        return CoordinatorRefused(
            status,
            one_line(problem.get("code")) or f"http-{status}",
            one_line(problem.get("detail")) or f"The coordinator at {self._address} answered {status}.",
            one_line(problem.get("remedy")) or "Ask the coordinator's administrator.",
            {key: value for key, value in problem.items() if key not in known},
        )

    def _unreachable(self, error: httpx.HTTPError) -> CoordinatorUnreachable:
        reason = str(error).lower()
        if any(word in reason for word in ("certificate", "tls", "ssl")):
            return CoordinatorUnreachable(
                f"Who answers at {self._address} is not the coordinator that was pinned.",
                "Check that nothing intercepts TLS on the way; ask the coordinator's administrator.",
            )
        return CoordinatorUnreachable(
            f"The coordinator at {self._address} does not answer ({type(error).__name__}).",
            "Check that it is served, its address, and that this machine may connect to it.",
        )


def pinned_context(ca: Path) -> ssl.SSLContext:
    """TLS 1.3, trusting this CA alone."""
    context = _tls13()
    context.load_verify_locations(ca)
    return context


def fetch_authority(token: Token) -> bytes:
    """The CA (PEM) of the coordinator that the token names, once its fingerprint is found to be the token's.

    Nothing is said to whoever answers but the question for it. Raises VerificationFailed for another CA.
    """
    anybody = _tls13()
    anybody.check_hostname = False
    anybody.verify_mode = ssl.CERT_NONE  # the fingerprint decides, before anything secret is sent
    with Connection(token.address, anybody) as connection:
        pem = connection.download("/v1/ca", limit=1 << 16)
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except (ValueError, x509.InvalidVersion):
        certificate = None
    if certificate is None or sha256_hex(certificate.public_bytes(Encoding.DER)) != token.ca:
        raise VerificationFailed(
            f"Who answers at {token.address} is not the coordinator that made the token.",
            "Check the address with the coordinator's administrator before you try again.",
        )
    return certificate.public_bytes(Encoding.PEM)


def one_line(value: object) -> str:
    """Text from the other side, fit for a terminal."""
    if not isinstance(value, str):
        return ""
    return "".join(character if character.isprintable() else " " for character in value)[:2000].strip()


def _tls13() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
