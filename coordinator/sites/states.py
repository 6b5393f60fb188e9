"""What may happen to a site: pure decisions over facts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from coordinator.errors import Conflict, Forbidden
from coordinator.sites.tables import Site, SiteCertificate
from protocol.errors import Refused
from protocol.signing import VerifyingKey
from protocol.timestamp import moment

_NEW_TOKEN = "Ask the coordinator's administrator for a new invitation of this site."  # noqa: S105 - no secret


class TokenRefused(Refused):
    """A one-time secret that can't be used: unknown, used, expired or for another site."""

    code = "token-refused"


class SiteRevoked(Forbidden):
    """The site, or the certificate that it showed, is revoked."""

    code = "site-revoked"


@dataclass(frozen=True)
class SiteFacts:
    """What the database knows of the site and the certificate that a caller has shown."""

    status: str | None
    identity: str | None
    certificate_site: str | None
    site: str | None
    not_after: str | None
    certificate_revoked: bool
    shown_key: bytes

    @staticmethod
    def of(site: Site | None, certificate: SiteCertificate | None, *, shown_key: bytes) -> SiteFacts:
        return SiteFacts(
            status=site.status if site else None,
            identity=site.identity if site else None,
            certificate_site=certificate.site if certificate else None,
            site=site.name if site else None,
            not_after=certificate.not_after if certificate else None,
            certificate_revoked=certificate is not None and certificate.revoked_at is not None,
            shown_key=shown_key,
        )


def decide_access(facts: SiteFacts, *, now: datetime) -> None:
    """Whether this certificate speaks for its site now. Raises SiteRevoked or Forbidden."""
    if facts.status == "revoked" or facts.certificate_revoked:
        raise SiteRevoked("This site's certificate is revoked.", "Ask the coordinator's administrator why.")
    issued_to_it = facts.certificate_site is not None and facts.certificate_site == facts.site
    if facts.status != "active" or not issued_to_it or facts.identity is None:
        raise Forbidden("This certificate was not issued to an active site.", _NEW_TOKEN)
    if VerifyingKey.from_text(facts.identity).raw != facts.shown_key:
        raise Forbidden("This certificate is over another key than the site's.", _NEW_TOKEN)
    if facts.not_after is None or now >= moment(facts.not_after):
        raise Forbidden("This site's certificate has expired.", _NEW_TOKEN)


def decide_invitation(name: str, status: str | None) -> None:
    """Whether a name with this status (None if new) may be invited. Raises Conflict for an active site."""
    if status == "active":
        raise Conflict(
            f"{name} is enrolled already.", f"Run `cloister-coordinator sites revoke {name}` first to enrol it anew."
        )


def decide_enrolment(
    *, token_site: str | None, used_at: str | None, expires_at: str, site: str, status: str | None,
    csr_key: VerifyingKey, identity: VerifyingKey, key_known: bool, witness_known: bool, now: datetime,
) -> None:  # fmt: skip
    """Whether the holder of a token may enrol as `site` with this key.

    token_site: the site that the token is for, None if unknown. key_known, witness_known: any site, a revoked one
    too, has had that key. Raises TokenRefused, Refused or Conflict saying why not.
    """
    if token_site is None:
        raise TokenRefused(
            "The token is not one that this coordinator gave out, or a newer one replaced it.", _NEW_TOKEN
        )
    if token_site != site:
        raise TokenRefused("The token was given to another site.", "Use the token that was made for this site.")
    if used_at is not None:
        raise TokenRefused("The token has been used already.", _NEW_TOKEN)
    if now >= moment(expires_at):
        raise TokenRefused("The token has expired.", _NEW_TOKEN)
    if status != "invited":
        raise TokenRefused("The site is not waiting to enrol.", _NEW_TOKEN)
    if csr_key != identity:
        raise Refused("The certificate request is over another key than the identity.", "Use one key made on site.")
    if key_known or witness_known:
        raise Conflict("Another enrolment has used this key.", "Make new keys on site: each site has its own.")


def decide_renewal(csr_key: VerifyingKey, identity: str | None) -> None:
    """Whether a renewal is over the site's own key. Raises Refused."""
    if identity is None or csr_key != VerifyingKey.from_text(identity):
        raise Refused(
            "The certificate request is over another key than the enrolled one.",
            "Renew with the site's own key, or enrol anew.",
        )
