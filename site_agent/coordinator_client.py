"""The site's only way out: HTTPS to the one coordinator that enrolment pinned.

TLS 1.3, the pinned CA and no other, the site's certificate shown; proxies and variables of the environment are
ignored, redirects are never followed, and every answer has a size limit.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from protocol.canonical import parse
from protocol.enrolment import EnrolmentRequest, EnrolmentResponse, GateAnswer, StatementReceipt
from protocol.errors import CloisterError, Malformed
from protocol.identifiers import DIGEST_PATTERN, require_name
from protocol.policy_set import MAX_SET_BYTES
from site_agent.keystore import SiteKeys
from site_agent.settings import SiteSettings

MAX_JSON = 4 << 20
MAX_NOTE = 256 * 1024
MAX_ENTRIES = 24 << 20
MAX_BUNDLE = 1 << 30
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_CHUNK_TIMEOUT = httpx.Timeout(300.0, connect=10.0)
_Document = TypeVar("_Document", bound=BaseModel)


class CoordinatorRefused(CloisterError):
    """The coordinator answered, and said no. `status` is the HTTP status; `code` comes from the coordinator."""

    def __init__(self, code: str, message: str, remedy: str, *, status: int) -> None:
        super().__init__(message, remedy)
        self.code = code
        self.status = status


class CoordinatorUnreachable(CloisterError):
    """No answer, or none that TLS vouches for."""

    code = "coordinator-unreachable"


class CoordinatorMisbehaved(CloisterError):
    """An answer that is too long or not in the agreed form."""

    code = "coordinator-misbehaved"


class CoordinatorClient:
    """One connection pool to the coordinator. Use as a context manager, or call `close`.

    Every method raises CoordinatorRefused, CoordinatorUnreachable or CoordinatorMisbehaved. Not for sharing
    between threads that close it.
    """

    def __init__(self, settings: SiteSettings, keys: SiteKeys) -> None:
        self._open(settings.address, keys.client_tls())

    @classmethod
    def with_context(cls, address: str, context: ssl.SSLContext) -> Self:
        """A client before enrolment: no certificate is shown, and `context` decides whom to trust."""
        client = cls.__new__(cls)
        client._open(address, context)
        return client

    def _open(self, address: str, context: ssl.SSLContext) -> None:
        self._address = address
        self._http = httpx.Client(
            base_url=f"https://{address}",
            verify=context,
            trust_env=False,
            follow_redirects=False,
            timeout=_TIMEOUT,
            headers={"user-agent": "cloister-site", "accept-encoding": "identity"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # Open to anyone

    def ca(self) -> bytes:
        """The coordinator's CA certificate as it is served: PEM. Trust it only after comparing its fingerprint."""
        return self._get("/v1/ca", MAX_NOTE)

    def health(self) -> Mapping[str, Any]:
        """The coordinator's own word on its state."""
        return self._json("GET", "/v1/health")

    def enrol(self, request: EnrolmentRequest) -> EnrolmentResponse:
        """Ask to be enrolled."""
        body = self._send("POST", "/v1/enrol", document=request.model_dump(mode="json"))
        return self._document(body, EnrolmentResponse)

    def check_enrolment(self, request: EnrolmentRequest) -> GateAnswer:
        """Ask what the enrolment gate would say."""
        body = self._send("POST", "/v1/enrol/check", document=request.model_dump(mode="json"))
        return self._document(body, GateAnswer)

    def checkpoint(self) -> bytes:
        """The latest checkpoint: a signed note, with the cosignatures so far."""
        return self._get("/v1/log/checkpoint", MAX_NOTE)

    def entries(self, path: str) -> bytes:
        """An entry bundle, by its C2SP path below /v1/log/ ("tile/entries/000")."""
        return self._get(f"/v1/log/{path}", MAX_ENTRIES)

    def witness_policy(self) -> Mapping[str, Any]:
        """The witness policy that the coordinator serves now."""
        return self._json("GET", "/v1/log/policy")

    # As this site

    def me(self) -> Mapping[str, Any]:
        """What the coordinator has on record of this site."""
        return self._json("GET", "/v1/sites/me")

    def renew(self, csr: str) -> Mapping[str, Any]:
        """Ask for a new certificate for the same key."""
        return self._json("POST", "/v1/sites/me/renew", document={"csr": csr})

    def post_statement(self, envelope: bytes) -> StatementReceipt:
        """Send this site's signed statement of its papers (DSSE)."""
        body = self._send("POST", "/v1/sites/me/statement", content=envelope)
        return self._document(body, StatementReceipt)

    def register_dataset(self, name: str, document: Mapping[str, Any]) -> None:
        """Register a snapshot: schema digest, snapshot digest and counts, nothing else."""
        require_name(name, "The data set's name")
        self._send("PUT", f"/v1/sites/me/datasets/{name}", document=document)

    def post_cosignatures(self, lines: bytes) -> None:
        """Hand in cosignature lines of the latest checkpoint, as in a signed note."""
        self._send("POST", "/v1/log/cosignatures", content=lines, kind="text/plain; charset=utf-8")

    def policy_bundle(self, policy: str | None = None) -> bytes:
        """A set of packs with its signatures: the one that decides under this digest, else the one in force."""
        if policy is not None and re.fullmatch(DIGEST_PATTERN, policy) is None:
            raise Malformed("That is no policy's digest.", "Copy it from the review or from cloister-site policy show.")
        path = "/v1/policy/bundle" if policy is None else f"/v1/policy/bundles/{policy}"
        return self._get(path, MAX_SET_BYTES)

    def studies(self) -> list[Mapping[str, Any]]:
        """The studies this site is invited to: study, state, plan_envelope (base64), plan_digest."""
        value = self._value("GET", "/v1/sites/me/studies")
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self._misbehaved("The list of studies is not a list of objects.")
        return list(value)

    def work(self) -> Mapping[str, Any]:
        """The cheap poll: {"active": [study], "installable": [release]}."""
        return self._json("GET", "/v1/sites/me/work")

    def post_consent(self, study: str, envelope: bytes) -> None:
        """Send this site's signed answer (DSSE) to a plan."""
        require_name(study, "The study")
        self._send("POST", f"/v1/studies/{study}/consents", content=envelope, kind="application/json")

    def post_incident(self, report: bytes) -> None:
        """Send this site's signed report of an incident."""
        self._send("POST", "/v1/sites/me/incidents", content=report, kind="application/json")

    def post_serving(self, report: bytes) -> None:
        """Send this site's signed report of what it serves."""
        self._send("POST", "/v1/sites/me/releases/serving", content=report, kind="application/json")

    def post_withdrawal(self, notice: bytes) -> None:
        """Send this site's signed notice that patients of a study withdrew."""
        self._send("POST", "/v1/sites/me/withdrawals", content=notice, kind="application/json")

    def offer_contribution(self, packet: bytes) -> tuple[str, tuple[int, ...]]:
        """Announce a contribution that comes in chunks: (where to send them, the numbers of those that are lacking)."""
        body = self._send("POST", "/v1/contributions", content=packet, kind="application/octet-stream")
        try:
            said = parse(body, limit=MAX_JSON)
        except Malformed:
            said = None
        attempt, missing = (said.get("attempt"), said.get("missing")) if isinstance(said, dict) else (None, None)
        numbers = [item for item in missing if type(item) is int and item >= 0] if isinstance(missing, list) else None
        if not isinstance(attempt, str) or not re.fullmatch("[0-9a-f]{32}", attempt) or numbers != missing:
            raise self._misbehaved("The answer to an announced contribution is not in the agreed form.")
        return attempt, tuple(numbers or ())

    def put_chunk(self, attempt: str, number: int, chunk: bytes) -> None:
        """Send one chunk of what was announced. Its answer is waited for as long as a slow line needs to carry it."""
        self._send(
            "PUT",
            f"/v1/contributions/{attempt}/{number}",
            content=chunk,
            kind="application/octet-stream",
            timeout=_CHUNK_TIMEOUT,
        )

    def download_release(self, release: str, file: BinaryIO) -> int:
        """Write a sealed release's bundle to `file`; the bytes written. Nothing is verified here."""
        require_name(release, "The release")
        written = 0
        for chunk in self._stream("GET", f"/v1/releases/{release}/bundle", MAX_BUNDLE):
            written += file.write(chunk)
        return written

    def post_departure(self, document: Mapping[str, Any]) -> None:
        """Say that this site leaves: from the answer on the coordinator refuses it."""
        self._send("POST", "/v1/sites/me/departure", document=document)

    def post_installed(self, release: str, document: Mapping[str, Any]) -> None:
        """Tell the coordinator that a release is installed here."""
        require_name(release, "The release")
        self._send("POST", f"/v1/releases/{release}/installed", document=document)

    def releases(self) -> list[Mapping[str, Any]]:
        """The submitted releases of studies that hold this site, each with its subject and model card, unverified."""
        value = self._value("GET", "/v1/sites/me/releases")
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self._misbehaved("The list of releases is not a list of objects.")
        return list(value)

    def post_veto(self, release: str, envelope: bytes) -> None:
        """Send this site's signed veto (DSSE) of a release."""
        require_name(release, "The release")
        self._send("POST", f"/v1/sites/me/releases/{release}/veto", content=envelope, kind="application/json")

    # How

    def _json(self, method: str, path: str, *, document: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        value = self._value(method, path, document=document)
        if not isinstance(value, dict):
            raise self._misbehaved(f"The answer to {path} is not an object.")
        return value

    def _value(self, method: str, path: str, *, document: Mapping[str, Any] | None = None) -> Any:
        try:
            return parse(self._send(method, path, document=document), limit=MAX_JSON)
        except Malformed as error:
            raise self._misbehaved(f"The answer to {path} is not acceptable JSON: {error.message}") from None

    def _document(self, body: bytes, answer: type[_Document]) -> _Document:
        try:
            return answer.model_validate(parse(body, limit=MAX_JSON))
        except Malformed as error:
            raise self._misbehaved(f"The answer is not acceptable JSON: {error.message}") from None
        except ValidationError as error:
            names = ", ".join(sorted({str(item["loc"][0]) for item in error.errors() if item["loc"]}))
            raise self._misbehaved(f"The answer's fields are wrong: {names or 'not an object'}.") from None

    def _get(self, path: str, limit: int) -> bytes:
        return b"".join(self._stream("GET", path, limit))

    def _send(
        self,
        method: str,
        path: str,
        *,
        document: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        kind: str = "application/json",
        timeout: httpx.Timeout = _TIMEOUT,
    ) -> bytes:
        if document is not None:
            content = json.dumps(document, allow_nan=False).encode()
        return b"".join(self._stream(method, path, MAX_JSON, content=content, kind=kind, timeout=timeout))

    def _stream(
        self,
        method: str,
        path: str,
        limit: int,
        *,
        content: bytes | None = None,
        kind: str = "",
        timeout: httpx.Timeout = _TIMEOUT,
    ) -> Iterator[bytes]:
        """The answer's bytes as they come, at most `limit` of them; a refusal raises before the first."""
        headers = {"content-type": kind} if content is not None else {}
        try:
            with self._http.stream(method, path, content=content, headers=headers, timeout=timeout) as response:
                if not response.is_success:
                    raise self._refusal(response)
                yield from self._bounded(response, limit)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _bounded(self, response: httpx.Response, limit: int) -> Iterator[bytes]:
        received = 0
        for chunk in response.iter_bytes():
            received += len(chunk)
            if received > limit:
                raise self._misbehaved(f"An answer is longer than {limit} bytes.")
            yield chunk

    def _refusal(self, response: httpx.Response) -> CloisterError:
        code, message, remedy = f"http-{response.status_code}", "", ""
        try:
            problem = parse(b"".join(self._bounded(response, 64 * 1024)), limit=64 * 1024)
        except Malformed:
            problem = None
        if isinstance(problem, dict):
            code = _short(problem.get("code")) or code
            message = _short(problem.get("detail"))
            remedy = _short(problem.get("remedy"))
        return CoordinatorRefused(
            code,
            message or f"The coordinator at {self._address} answered {response.status_code}.",
            remedy or "Ask the coordinator's administrator.",
            status=response.status_code,
        )

    def _unreachable(self, error: httpx.HTTPError) -> CoordinatorUnreachable:
        reason = str(error).lower()
        if "certificate" in reason or "tls" in reason or "ssl" in reason:
            return CoordinatorUnreachable(
                f"The coordinator at {self._address} did not prove that it is the pinned one, or closed the connection "
                "on this site's certificate.",
                "Check that nothing intercepts TLS on the way; ask the coordinator's administrator whether this site "
                "is revoked.",
            )
        if isinstance(error, httpx.TimeoutException):
            return CoordinatorUnreachable(
                f"The coordinator at {self._address} did not answer in time.",
                "Check that it runs and that this machine's firewall lets outbound connections to it through.",
            )
        return CoordinatorUnreachable(
            f"The coordinator at {self._address} can't be reached ({type(error).__name__}).",
            "Check that it runs, its address and that this machine's firewall lets outbound connections to it through.",
        )

    def _misbehaved(self, message: str) -> CoordinatorMisbehaved:
        return CoordinatorMisbehaved(
            f"{message} (coordinator {self._address})", "Update both sides to the same version; report it if they are."
        )


def _short(value: object) -> str:
    """Text from the other side, fit for a terminal: one line, no control characters, at most 2000 characters."""
    if not isinstance(value, str):
        return ""
    return "".join(character if character.isprintable() else " " for character in value)[:2000].strip()
