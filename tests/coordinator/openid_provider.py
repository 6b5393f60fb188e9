"""An OpenID provider for tests: Authlib's own server side, over TLS on loopback, with its own authority and keys.

Whoever comes to its authorization endpoint is `user`: who they are is what a real provider would ask for first.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from authlib.oauth2.rfc6749 import AuthorizationServer, ClientMixin, OAuth2Request
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc6750 import BearerTokenGenerator
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oidc.core import UserInfo
from authlib.oidc.core.grants import OpenIDCode
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc.jwk import ECKey

CLIENT, SECRET = "cloister", "a secret of the client's"


class Client(ClientMixin):
    def __init__(self, redirect: str) -> None:
        self.redirect = redirect

    def get_client_id(self) -> str:
        return CLIENT

    def get_default_redirect_uri(self) -> str:
        return self.redirect

    def get_allowed_scope(self, scope: str) -> str:
        return scope

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return redirect_uri == self.redirect

    def check_client_secret(self, client_secret: str) -> bool:
        return client_secret == SECRET

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == "client_secret_basic"

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type == "authorization_code"


@dataclass
class Code:
    """An authorization code, good once."""

    code: str
    redirect_uri: str
    scope: str
    nonce: str
    user: str
    code_challenge: str
    code_challenge_method: str
    methods: list[str]

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope

    def get_nonce(self) -> str:
        return self.nonce

    def get_auth_time(self) -> None:
        return None

    def get_acr(self) -> None:
        return None

    def get_amr(self) -> list[str]:
        return self.methods


@dataclass
class Provider:
    """What the provider is and says; a test changes `claims` to play one that lies, or a thief's token."""

    issuer: str
    ca: Path
    redirect: str
    user: str = "subject-of-ada"
    methods: list[str] = field(default_factory=lambda: ["pwd", "otp"])
    claims: dict[str, Any] = field(default_factory=dict)
    key: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256", {"kid": "first", "use": "sig"}))
    published: ECKey | None = None
    codes: dict[str, Code] = field(default_factory=dict)
    configuration: dict[str, str] = field(default_factory=dict)

    def server(self) -> AuthorizationServer:
        provider = self

        class Server(AuthorizationServer):
            def query_client(self, client_id: str) -> Client | None:
                return Client(provider.redirect) if client_id == CLIENT else None

            def save_token(self, token: object, request: object) -> None:
                del token, request

            def create_oauth2_request(self, request: OAuth2Request) -> OAuth2Request:
                return request

            def send_signal(self, name: str, *args: object, **kwargs: object) -> None:
                del name, args, kwargs

            def handle_response(self, status: int, body: object, headers: object) -> tuple[int, bytes, object]:
                return status, (json.dumps(body) if isinstance(body, dict) else str(body or "")).encode(), headers

        class Grant(AuthorizationCodeGrant):
            TOKEN_ENDPOINT_AUTH_METHODS = ["client_secret_basic"]  # noqa: RUF012 - how Authlib declares it

            def save_authorization_code(self, code: str, request: OAuth2Request) -> None:
                data = request.payload.data
                provider.codes[code] = Code(
                    code, request.payload.redirect_uri, request.payload.scope, data["nonce"], provider.user,
                    data["code_challenge"], data["code_challenge_method"], provider.methods,
                )  # fmt: skip

            def query_authorization_code(self, code: str, client: Client) -> Code | None:
                del client
                return provider.codes.get(code)

            def delete_authorization_code(self, authorization_code: Code) -> None:
                provider.codes.pop(authorization_code.code)

            def authenticate_user(self, authorization_code: Code) -> str:
                return authorization_code.user

        class OpenID(OpenIDCode):
            def exists_nonce(self, nonce: str, request: OAuth2Request) -> bool:
                del request
                return any(code.nonce == nonce for code in provider.codes.values())

            def resolve_client_private_key(self, client: Client) -> ECKey:
                del client
                return provider.key

            def get_client_algorithm(self, client: Client) -> str:
                del client
                return "ES256"

            def get_client_claims(self, client: Client) -> dict[str, Any]:
                del client
                return {"iss": provider.issuer, **provider.claims}

            def get_encode_header(self, client: Client) -> dict[str, str]:
                del client
                return {"alg": "ES256", "kid": "first"}

            def generate_user_info(self, user: str, scope: str) -> UserInfo:
                del scope
                return UserInfo(sub=provider.claims.get("sub", user))

        server = Server()
        server.register_token_generator("default", BearerTokenGenerator(lambda **_: "an-access-token"))
        server.register_grant(Grant, [OpenID(require_nonce=True), CodeChallenge(required=True)])
        return server

    def documents(self) -> dict[str, dict[str, Any]]:
        return {
            "/.well-known/openid-configuration": {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/keys",
                **self.configuration,
            },
            "/keys": {"keys": [(self.published or self.key).as_dict(private=False)]},
        }


@contextlib.contextmanager
def serving(folder: Path, redirect: str) -> Iterator[Provider]:
    """A provider that answers until the block ends."""
    ca, chain = _certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    http.socket = context.wrap_socket(http.socket, server_side=True)
    provider = Provider(f"https://127.0.0.1:{http.server_port}", ca, redirect)
    http.provider, http.oauth = provider, provider.server()  # type: ignore[attr-defined]
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield provider
    finally:
        http.shutdown()
        thread.join(10)
        http.server_close()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        provider, at = self.server.provider, urlsplit(self.path)  # type: ignore[attr-defined]
        if at.path in provider.documents():
            document = json.dumps(provider.documents()[at.path]).encode()
            self._answer(200, document, [("content-type", "application/json")])
            return
        request = self._request("GET", dict(parse_qsl(at.query)))
        server = self.server.oauth  # type: ignore[attr-defined]
        grant = server.get_authorization_grant(request)
        self._answer(*server.create_authorization_response(request, provider.user, grant))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        request = self._request("POST", dict(parse_qsl(body)))
        self._answer(*self.server.oauth.create_token_response(request))  # type: ignore[attr-defined]

    def _request(self, method: str, fields: dict[str, str]) -> OAuth2Request:
        provider = self.server.provider  # type: ignore[attr-defined]

        class Request(OAuth2Request):
            form = fields if method == "POST" else {}
            args = fields if method == "GET" else {}

        headers = {name.title(): value for name, value in self.headers.items()}
        request = Request(method, provider.issuer + self.path, headers=headers)
        request.payload = BasicOAuth2Payload(fields)
        return request

    def _answer(self, status: int, body: bytes, headers: Any) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _certificate(folder: Path) -> tuple[Path, Path]:
    """An authority's file, and one with the server's certificate and key: self-signed, so the same certificate."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "an identity provider")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(int(time.time())).not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1)).add_extension(address, False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True).add_extension(identifier, False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ca, chain = folder / "provider-ca.pem", folder / "provider.pem"
    ca.write_bytes(pem)
    chain.write_bytes(pem + key.private_bytes(serialization.Encoding.PEM, *form))
    return ca, chain
