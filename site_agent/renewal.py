"""Renewal of the site's certificate at two thirds of its life: `due` decides, `renew` does."""

from __future__ import annotations

from datetime import datetime

from pydantic import ValidationError

from protocol.errors import Malformed
from protocol.identifiers import Frozen
from site_agent.certificates import Issued, check_issued, request_certificate, validity
from site_agent.clock import Clock
from site_agent.coordinator_client import CoordinatorClient
from site_agent.durable_files import write_durably
from site_agent.keystore import KeysUnusable, SiteKeys
from site_agent.settings import SiteSettings


class _Renewed(Frozen):
    certificate: str
    not_after: str


def due(not_after: datetime, not_before: datetime, now: datetime) -> bool:
    """Whether two thirds of the certificate's life are over. Pure. ValueError unless not_before < not_after."""
    if not not_before < not_after:
        raise ValueError("a certificate ends after it begins")
    return now >= not_before + (not_after - not_before) * 2 / 3


def current(keys: SiteKeys) -> Issued:
    """The stored certificate. Raises KeysUnusable when it is missing or damaged."""
    try:
        return validity(keys.certificate_path.read_bytes())
    except (OSError, Malformed):
        raise KeysUnusable(
            f"The certificate {keys.certificate_path} is missing or damaged.",
            "Restore it from a backup, or ask for a new invitation and enrol again.",
        ) from None


def renew_if_due(settings: SiteSettings, keys: SiteKeys, clock: Clock) -> Issued | None:
    """Renew when due; the new certificate, stored for every connection opened from now on, or None.

    Raises the client's errors, VerificationFailed, and KeysUnusable if the disk does not take it; the old certificate
    stays in place then.
    """
    held = current(keys)
    if not due(held.not_after, held.not_before, clock()):
        return None
    with CoordinatorClient(settings, keys) as client:
        answer = client.renew(request_certificate(settings.site, keys.identity))
    try:
        renewed = _Renewed.model_validate(answer)
    except ValidationError:
        raise Malformed("The answer to the renewal is not in the agreed form.", "Update both sides.") from None
    ca = keys.ca_path.read_bytes()
    issued = check_issued(renewed.certificate, ca, settings.site, keys.identity.public, now=clock())
    try:
        write_durably(keys.certificate_path, issued.pem.encode())
    except OSError as error:
        raise KeysUnusable(
            f"The new certificate can't be stored in {keys.folder} ({error.strerror}).",
            "Free space on the disk, and check that the folder is this user's; the old certificate still holds.",
        ) from None
    return issued
