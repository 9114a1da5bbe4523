"""Certificate profiles: what a certificate of one kind contains and what a request for it may say.

A profile is frozen and versioned; a request is bound to one version from its first check to its signature.
"""

import datetime as dt
from dataclasses import dataclass
from typing import Literal

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SUBJECT_ATTRIBUTES: dict[x509.ObjectIdentifier, str] = {
    NameOID.COUNTRY_NAME: "C",
    NameOID.STATE_OR_PROVINCE_NAME: "ST",
    NameOID.LOCALITY_NAME: "L",
    NameOID.ORGANIZATION_NAME: "O",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
    NameOID.COMMON_NAME: "CN",
    NameOID.SERIAL_NUMBER: "serialNumber",
}
"""The attribute types that a request may put into a subject, with their RFC 4514 names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One version of one kind of certificate.

    `validity` is the longest lifetime, counted inclusively (BR 6.3.2). `internal` profiles are for
    certmill's own certificates; no client may ask for them. `ocsp_nocheck` is id-pkix-ocsp-nocheck
    (RFC 6960 §4.2.2.2.1): such a certificate carries neither AIA nor CRL distribution point.
    """

    name: str
    version: int
    title: str
    validity: dt.timedelta
    key_encipherment_for_rsa: bool
    extended_key_usage: x509.ObjectIdentifier
    subject_alternative_name: bool
    subject_required: bool
    internal: bool = False
    ocsp_nocheck: bool = False
    family: Literal["private", "public"] = "private"
    lint: Literal["every", "shape"] = "shape"
    linter: Literal["none", "pkix", "cabf-tls", "cabf-smime", "etsi"] = "pkix"

    @property
    def identity(self) -> str:
        """Name and version as one text, as it stands in the database and the audit log."""
        return f"{self.name}@{self.version}"


TLS_SERVER = Profile(
    name="tls-server",
    version=1,
    title="TLS server (private trust): DNS names and IP addresses from the CSR, at most 200 days",
    validity=dt.timedelta(days=200),
    key_encipherment_for_rsa=True,
    extended_key_usage=ExtendedKeyUsageOID.SERVER_AUTH,
    subject_alternative_name=True,
    subject_required=False,
)
TLS_CLIENT = Profile(
    name="tls-client",
    version=1,
    title="TLS client or system (private trust): subject from the CSR, at most one year",
    validity=dt.timedelta(days=365),
    key_encipherment_for_rsa=False,
    extended_key_usage=ExtendedKeyUsageOID.CLIENT_AUTH,
    subject_alternative_name=False,
    subject_required=True,
)
OCSP_RESPONDER = Profile(
    name="ocsp-responder",
    version=1,
    title="Delegated OCSP responder (RFC 6960 §4.2.2.2, BR 7.1.2.8)",
    validity=dt.timedelta(days=90),
    key_encipherment_for_rsa=False,
    extended_key_usage=ExtendedKeyUsageOID.OCSP_SIGNING,
    subject_alternative_name=False,
    subject_required=True,
    internal=True,
    ocsp_nocheck=True,
)

BUILT_IN: dict[str, Profile] = {p.name: p for p in (TLS_SERVER, TLS_CLIENT, OCSP_RESPONDER)}
OFFERED: tuple[Profile, ...] = tuple(profile for profile in BUILT_IN.values() if not profile.internal)
"""What a client may ask for."""
