"""The only SQL about sites."""

from __future__ import annotations

from sqlalchemy import delete, func, or_, update
from sqlmodel import Session, col, select

from coordinator.database import one_row
from coordinator.sites.tables import Site, SiteCertificate, SiteDataset, SiteInvitation, SiteStatement


class SiteRepository:
    """Reads and writes in the caller's session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, name: str) -> Site | None:
        return self._session.get(Site, name)

    def all(self) -> list[Site]:
        return list(self._session.exec(select(Site).order_by(col(Site.name))))

    def active(self) -> list[Site]:
        query = select(Site).where(Site.status == "active").order_by(col(Site.name))
        return list(self._session.exec(query))

    def save(self, site: Site) -> None:
        self._session.add(site)
        self._session.flush()

    def set_node(self, name: str, node_id: int | None) -> None:
        """Remember the site's Flower node."""
        text = None if node_id is None else str(node_id)
        self._session.exec(update(Site).where(col(Site.name) == name).values(node_id=text))

    def with_node(self, node_id: int) -> Site | None:
        return self._session.exec(select(Site).where(Site.node_id == str(node_id))).one_or_none()

    def invite(self, site: str, secret_hash: str, expires_at: str) -> None:
        """Keep a one-time secret; any earlier one of the site is worth nothing from now on."""
        self._session.exec(delete(SiteInvitation).where(col(SiteInvitation.site) == site))
        self._session.add(SiteInvitation(secret_hash=secret_hash, site=site, expires_at=expires_at))
        self._session.flush()

    def invitation(self, secret_hash: str) -> SiteInvitation | None:
        return self._session.get(SiteInvitation, secret_hash)

    def use_invitation(self, secret_hash: str, now: str) -> bool:
        """Mark it used; False when somebody else was first."""
        return one_row(
            self._session.exec(
                update(SiteInvitation)
                .where(col(SiteInvitation.secret_hash) == secret_hash, col(SiteInvitation.used_at).is_(None))
                .values(used_at=now)
                .execution_options(synchronize_session=False)
            )
        )

    def drop_invitations(self, site: str) -> None:
        self._session.exec(delete(SiteInvitation).where(col(SiteInvitation.site) == site))

    def key_known(self, identity: str) -> bool:
        """Whether a certificate was ever issued over this key."""
        query = select(func.count()).select_from(SiteCertificate).where(SiteCertificate.identity == identity)
        return int(self._session.exec(query).one()) > 0

    def witness_known(self, witness: str, identity: str) -> bool:
        """Whether any site has this witness key, or had the identity."""
        query = (
            select(func.count())
            .select_from(Site)
            .where(or_(col(Site.witness) == witness, col(Site.identity) == identity))
        )
        return int(self._session.exec(query).one()) > 0

    def certificate(self, serial: str) -> SiteCertificate | None:
        return self._session.get(SiteCertificate, serial)

    def add_certificate(self, certificate: SiteCertificate) -> None:
        self._session.add(certificate)
        self._session.flush()

    def revoke_certificates(self, site: str, now: str) -> None:
        self._session.exec(
            update(SiteCertificate)
            .where(col(SiteCertificate.site) == site, col(SiteCertificate.revoked_at).is_(None))
            .values(revoked_at=now)
        )

    def statement(self, site: str, identity: str) -> SiteStatement | None:
        """The newest statement of a site under this key."""
        query = select(SiteStatement).where(SiteStatement.site == site, SiteStatement.identity == identity)
        return self._session.exec(query.order_by(col(SiteStatement.made_at).desc()).limit(1)).first()

    def add_statement(self, statement: SiteStatement) -> None:
        self._session.add(statement)
        self._session.flush()

    def dataset(self, site: str, name: str) -> SiteDataset | None:
        return self._session.get(SiteDataset, (site, name))

    def datasets(self, schema_digest: str | None = None) -> list[SiteDataset]:
        """The data sets of active sites, all or those of one schema."""
        query = (
            select(SiteDataset)
            .join(Site, col(Site.name) == col(SiteDataset.site))
            .where(Site.status == "active")
            .order_by(col(SiteDataset.site), col(SiteDataset.name))
        )
        if schema_digest is not None:
            query = query.where(SiteDataset.schema_digest == schema_digest)
        return list(self._session.exec(query))

    def put_dataset(self, dataset: SiteDataset) -> None:
        self._session.merge(dataset)
        self._session.flush()
