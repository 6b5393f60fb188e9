"""Mutual TLS to the coordinator under Flower's fleet client: one pinned CA, no proxies, bounded answers."""

from __future__ import annotations

import ssl
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    FLWR_COMPONENT_NAME_METADATA_KEY,
    FLWR_PACKAGE_NAME_METADATA_KEY,
    FLWR_PACKAGE_VERSION_METADATA_KEY,
)
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
    sign_message,
)
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.version import package_name, package_version
from flwr.supernode.fleet_http_client import FleetHttpClient

from protocol.errors import Malformed

MAX_ANSWER_BYTES = 8 * 1024 * 1024


def generate_node_key() -> bytes:
    """A new P-384 key by which Flower knows this node, as unencrypted PKCS #8 PEM; keep it as a secret."""
    return cast(bytes, private_key_to_bytes(generate_key_pairs()[0]))


class NodeIdentity:
    """Flower's interceptor that signs each request's timestamp with the node key, as a SuperNode does."""

    def __init__(self, node_key_pem: bytes) -> None:
        try:
            self._key = bytes_to_private_key(node_key_pem)
        except (ValueError, TypeError) as error:
            raise Malformed("The node key is not a PEM private key.", "Generate a new one.") from error
        if not isinstance(self._key, ec.EllipticCurvePrivateKey):
            raise Malformed("The node key is not an elliptic-curve key.", "Generate a new one.")
        self.public_key = cast(bytes, public_key_to_bytes(self._key.public_key()))
        # Flower's own interceptors would bring all of FastAPI into the agent, 19 MB of it.
        self._fixed = {
            FLWR_PACKAGE_NAME_METADATA_KEY: package_name,
            FLWR_PACKAGE_VERSION_METADATA_KEY: package_version,
            FLWR_COMPONENT_NAME_METADATA_KEY: "SuperNode",
            FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(self.public_key).decode("ascii"),
        }

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        timestamp = now().isoformat()
        signature = sign_message(self._key, timestamp.encode("ascii"))
        context.request.headers.update(
            self._fixed
            | {
                TIMESTAMP_HEADER: timestamp,
                FLEET_HTTP_SIGNATURE_HEADER: b64encode(signature).decode("ascii"),
            }
        )
        return cast(httpx.Response, call_next(context))


class _BoundedStream(httpx.SyncByteStream):
    def __init__(self, inner: httpx.SyncByteStream, most: int) -> None:
        self._inner = inner
        self._most = most

    def __iter__(self) -> Iterator[bytes]:
        seen = 0
        for chunk in self._inner:
            seen += len(chunk)
            if seen > self._most:
                raise httpx.ReadError(f"the answer is larger than {self._most} bytes")
            yield chunk

    def close(self) -> None:
        self._inner.close()


class BoundedTransport(httpx.HTTPTransport):
    """Refuses answers that are compressed or larger than MAX_ANSWER_BYTES, before they fill the memory."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        if "content-encoding" in response.headers:
            response.close()
            raise httpx.RemoteProtocolError("a compressed answer was not asked for")
        assert isinstance(response.stream, httpx.SyncByteStream)
        response.stream = _BoundedStream(response.stream, MAX_ANSWER_BYTES)
        return response


def tls_context(ca_file: Path, certificate_file: Path, key_file: Path) -> ssl.SSLContext:
    """TLS 1.3 with this site's certificate, trusting the pinned CA and no other. Raises OSError, ssl.SSLError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cafile=ca_file)
    context.load_cert_chain(certificate_file, key_file)
    return context


def fleet_client(address: str, context: ssl.SSLContext, identity: NodeIdentity, timeout: float) -> Any:
    """Flower's FleetHttpClient towards https://host:port, with our HTTP client in place of its own."""
    client = FleetHttpClient(f"https://{address}", interceptors=[identity], verify=context)
    client._client.close()
    client._client = httpx.Client(
        transport=BoundedTransport(verify=context, trust_env=False, limits=httpx.Limits(keepalive_expiry=60.0)),
        trust_env=False,
        timeout=timeout,
        follow_redirects=False,
        headers={"accept-encoding": "identity"},
    )
    return client
