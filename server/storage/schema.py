"""Tables. Times are whole seconds since 1970 (UTC); serial numbers are lower-case hex.

The database is the truth: files, CRLs in `public/` and the response store can be rebuilt from it.
"""

import enum

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class State(enum.StrEnum):
    """Life of a certificate's row before any revocation.

    INTENT: durable before the key is asked. ISSUED: signed, verified, may be released.
    ABANDONED: an intent that was closed; whatever was signed under it has never been released.
    """

    INTENT = "intent"
    ISSUED = "issued"
    ABANDONED = "abandoned"


RowId = BigInteger().with_variant(Integer, "sqlite")

issuers = Table(
    "issuers",
    metadata,
    Column("label", String(64), primary_key=True),
    Column("key_label", String(64), nullable=False),
    Column("certificate_der", LargeBinary, nullable=False),
)

certificates = Table(
    "certificates",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    Column("issuer", String(64), nullable=False),
    Column("serial", String(40), nullable=False),
    Column("state", String(16), nullable=False),
    Column("profile", String(80), nullable=False),
    Column("client", String(64), nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("subject", Text, nullable=False),
    Column("dns_names", JSON, nullable=False),
    Column("tbs_sha256", LargeBinary(32), nullable=False),
    Column("spki_sha256", LargeBinary(32), nullable=False),
    Column("not_before", BigInteger, nullable=False),
    Column("not_after", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("der", LargeBinary),
    Column("revoked_at", BigInteger),
    Column("reason", String(32)),
    UniqueConstraint("issuer", "serial"),
    Index("ix_certificates_client", "client", "id"),
    Index("ix_certificates_revoked_at", "issuer", "revoked_at"),
    Index("ix_certificates_state", "state"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("client", String(64), primary_key=True),
    Column("key", String(128), primary_key=True),
    Column("request_sha256", LargeBinary(32), nullable=False),
    Column("issuer", String(64), nullable=False),
    Column("serial", String(40), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

ocsp_responses = Table(
    "ocsp_responses",
    metadata,
    Column("issuer", String(64), primary_key=True),
    Column("serial", String(40), primary_key=True),
    Column("hash_name", String(8), primary_key=True),
    Column("this_update", BigInteger, nullable=False),
    Column("next_update", BigInteger, nullable=False),
    Column("refresh_at", BigInteger, nullable=False),
    Column("not_after", BigInteger, nullable=False),
    Index("ix_ocsp_responses_refresh_at", "refresh_at"),
)

crls = Table(
    "crls",
    metadata,
    Column("issuer", String(64), ForeignKey("issuers.label"), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("this_update", BigInteger, nullable=False),
    Column("next_update", BigInteger, nullable=False),
    Column("entries", Integer, nullable=False),
    Column("der", LargeBinary),
)

clients = Table(
    "clients",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("spki_sha256", LargeBinary(32), nullable=False, unique=True),
    Column("profiles", JSON, nullable=False),
    Column("names", JSON, nullable=False),
    Column("disabled", Boolean, nullable=False, default=False),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    Column("at", BigInteger, nullable=False),
    Column("actor", String(64), nullable=False),
    Column("action", String(48), nullable=False),
    Column("object", String(80), nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("detail", JSON, nullable=False),
)
