"""Signs an evidence report (PAdES baseline B, ISO 32000-2) under a certificate of the coordinator's own authority.

Each report has a key of its own (P-256, which every reader of PDF knows), certified, used once and forgotten: no key
that signs reports lies anywhere. What a machine checks is attached before the signature, so that it is under it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

from asn1crypto import keys as asn1_keys
from asn1crypto import x509 as asn1_x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pyhanko.pdf_utils import embed
from pyhanko.pdf_utils.incremental_writer import IncrementalPdfFileWriter
from pyhanko.sign import fields, signers
from pyhanko_certvalidator.registry import SimpleCertificateStore

from coordinator.appliance import Appliance

FIELD = "Coordinator"


def sign_report(pdf: bytes, appliance: Appliance, files: Mapping[str, bytes]) -> bytes:
    """The PDF with the files attached and one signature over all of it, after which no change is allowed."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = appliance.keys.authority.issue_report_signer(
        f"Evidence report of {appliance.settings.name}", key.public_key(), now=appliance.clock(),
        entropy=appliance.entropy,
    )  # fmt: skip
    signer = signers.SimpleSigner(
        signing_cert=asn1_x509.Certificate.load(certificate.public_bytes(Encoding.DER)),
        signing_key=asn1_keys.PrivateKeyInfo.load(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())),
        # Without the authority's own certificate: whoever checks has it from elsewhere, or trusts nobody.
        cert_registry=SimpleCertificateStore(),  # type: ignore[no-untyped-call]
    )
    writer = IncrementalPdfFileWriter(io.BytesIO(pdf))
    for name, data in sorted(files.items()):
        attached = embed.EmbeddedFileObject.from_file_data(writer, data=data, mime_type="text/plain")
        embed.embed_file(writer, embed.FileSpec(file_spec_string=name, file_name=name, embedded_data=attached))
    metadata = signers.PdfSignatureMetadata(
        field_name=FIELD, md_algorithm="sha256", subfilter=fields.SigSeedSubFilter.PADES, certify=True,
        docmdp_permissions=fields.MDPPerm.NO_CHANGES, reason="Evidence report of the transparency log",
    )  # fmt: skip
    out = io.BytesIO()
    signers.sign_pdf(writer, metadata, signer=signer, output=out)
    return out.getvalue()
