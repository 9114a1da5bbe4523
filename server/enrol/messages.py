"""What the REST API says and hears: the wire types, which the OpenAPI document is made from."""

import datetime as dt
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pkix.crl import RevocationReason

Pem = Annotated[str, Meta(max_length=65536, description="PEM (RFC 7468)")]
Serial = Annotated[
    str, Meta(pattern="^[0-9a-f]{2,40}$", description="Serial number, lower-case hex", examples=["5f1c"])
]
Time = Annotated[dt.datetime, Meta(tz=True)]  # described as such: RFC 3339
_Value = Annotated[str, Meta(min_length=1, max_length=1024)]
Status = Literal["good", "revoked", "expired"]


class RequestedNames(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Subject alternative names, by kind."""

    dns: Annotated[list[_Value], Meta(max_length=100, examples=[["www.example.la"]])] = []
    ip: Annotated[list[_Value], Meta(max_length=100, examples=[["192.0.2.7"]])] = []
    email: Annotated[list[_Value], Meta(max_length=100, examples=[["office@example.la"]])] = []
    uri: Annotated[list[_Value], Meta(max_length=100, examples=[["https://example.la/7"]])] = []


class CertificateRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request for one certificate."""

    profile: Annotated[str, Meta(max_length=64, description="Name of a profile", examples=["tls-server"])]
    csr: Annotated[str, Meta(max_length=65536, description="PKCS #10 request (RFC 2986), PEM")]
    validity_days: (
        Annotated[int, Meta(ge=1, le=3660, description="Shortens the profile's validity; days")] | None
    ) = None
    subject: (
        Annotated[
            dict[Annotated[str, Meta(max_length=64)], _Value | Annotated[list[_Value], Meta(max_length=10)]],
            Meta(
                description="Subject attributes by name (C, O, OU, CN, …), where the profile takes them from "
                "here; an attribute that stands in the CSR too must be the same",
                examples=[{"C": "LA", "O": "ກະຊວງການເງິນ", "CN": "e-licence"}],
            ),
        ]
        | None
    ) = None
    names: RequestedNames | None = None


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate and its status."""

    serial: Serial
    status: Status
    profile: Annotated[str, Meta(description="Profile and version", examples=["tls-server@2"])]
    subject: Annotated[str, Meta(description="Subject (RFC 4514)")]
    dns_names: list[str]
    not_before: Time
    not_after: Annotated[dt.datetime, Meta(tz=True, description="Last valid second")]
    certificate: Pem
    chain: Annotated[list[Pem], Meta(description="Issuing CA first; the root is not in it")]
    revoked_at: Time | None = None
    revocation_reason: RevocationReason | None = None


class CertificateList(msgspec.Struct, frozen=True, kw_only=True):
    """One page of certificates, newest first."""

    certificates: list[Certificate]
    next_cursor: Annotated[
        str | None, Meta(description="Pass as `cursor` for the next page; null on the last one")
    ] = None


class RevocationRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a certificate is revoked (RFC 5280 §5.3.1). A revocation is for ever."""

    reason: RevocationReason = RevocationReason.UNSPECIFIED


class RevocationAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A durable revocation."""

    serial: Serial
    revoked_at: Time
    reason: RevocationReason
    ocsp: Annotated[
        Literal["revoked", "pending"],
        Meta(description="pending: no HSM answers; OCSP says tryLater until one does, and never good"),
    ]


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What went wrong and what to do about it (RFC 9457, `application/problem+json`)."""

    type: Annotated[str, Meta(description="Identifies the kind of problem; read on at this URI")]
    title: str
    status: Annotated[int, Meta(description="The HTTP status, repeated")]
    detail: str
    instance: Annotated[str, Meta(description="urn:request: and the request id; quote it when you ask us")]
    remedy: Annotated[str | None, Meta(description="What the caller can do")] = None
    field: Annotated[str | None, Meta(description="The part of the request that is to blame")] = None
    limit: Annotated[int | None, Meta(description="The quota or rate that was reached")] = None
    used: Annotated[int | None, Meta(description="How much of the quota is used")] = None
    resets_at: Annotated[Time | None, Meta(description="When the quota begins anew")] = None
