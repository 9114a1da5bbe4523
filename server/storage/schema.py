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
    text,
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


HAS_PREDECESSOR = "renews IS NOT NULL AND state <> 'abandoned'"
"""The rows of the index on `renews`; a query that means to use it repeats these words."""

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
    # The request itself, DER and JSON: `certmill profile replay` and renewals read it.
    Column("csr", LargeBinary),
    Column("asked", JSON(none_as_null=True)),
    Column("renews", String(40)),  # the serial number of the certificate that this one follows
    Column("authority", String(36)),  # whose intent it is: `authorities.id`
    UniqueConstraint("issuer", "serial"),
    Index("ix_certificates_client", "client", "id"),
    Index("ix_certificates_client_created_at", "client", "created_at"),
    Index("ix_certificates_spki_sha256", "spki_sha256"),
    Index("ix_certificates_revoked_at", "issuer", "revoked_at"),
    Index("ix_certificates_state", "state"),
    Index(
        "uq_certificates_renews",  # a certificate has one successor
        "issuer",
        "renews",
        unique=True,
        sqlite_where=text(HAS_PREDECESSOR),
        postgresql_where=text(HAS_PREDECESSOR),
    ),
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
    Index("ix_ocsp_responses_issuer", "issuer", "refresh_at"),
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
    # Values of O, and of organizationIdentifier, serialNumber and UID, that it may ask for; auth/permissions.py.
    Column("organizations", JSON, nullable=False, default=list),
    Column("identifiers", JSON, nullable=False, default=list),
    Column("yearly_quota", Integer),  # certificates in a calendar year (UTC); null: no limit
    Column("rate_per_minute", Integer),  # requests for certificates; null: no limit
)

client_usage = Table(
    "client_usage",
    metadata,
    Column("client", String(64), primary_key=True),
    Column("year", Integer, primary_key=True, autoincrement=False),  # calendar year (UTC) of the intents
    Column("issued", Integer, nullable=False),  # intents of that year that were not abandoned
)

profile_versions = Table(
    "profile_versions",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("sha256", LargeBinary(32), nullable=False),  # of `toml`: a version never changes its content
    Column("toml", Text, nullable=False),
    Column("activated_at", BigInteger, nullable=False),
)

linted_shapes = Table(
    "linted_shapes",
    metadata,
    Column("profile", String(80), primary_key=True),  # name@version
    Column("shape_sha256", LargeBinary(32), primary_key=True),
    Column("linter", String(64), primary_key=True),  # name and version of linter
    Column("linted_at", BigInteger, nullable=False),
)


class JobState(enum.StrEnum):
    """Life of a batch. RECEIVING: its rows arrive. The last three are ends."""

    RECEIVING = "receiving"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


class RowState(enum.StrEnum):
    """Life of a row of a batch; it leaves PENDING in the transaction of what happened to it."""

    PENDING = "pending"
    ISSUED = "issued"
    FAILED = "failed"
    CHECKED = "checked"  # the end of a row in a dry run


jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("client", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("profile", String(80), nullable=False),  # name@version: frozen when the batch arrived
    Column("dry_run", Boolean, nullable=False),
    Column("idempotency_key", String(128)),
    Column("request_sha256", LargeBinary(32)),  # of parameters and body; null while RECEIVING
    Column("request_id", String(64), nullable=False),
    Column("rows", Integer, nullable=False),
    # How far it is, written now and then: `job_rows` is the truth, and is counted when a batch starts and ends.
    Column("issued", Integer, nullable=False, default=0),
    Column("failed", Integer, nullable=False, default=0),
    Column("checked", Integer, nullable=False, default=0),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Column("detail", Text),  # why it failed
    Column("authority", String(36)),  # who works on it, until `leased_until`
    Column("leased_until", BigInteger),
    UniqueConstraint("client", "idempotency_key"),
    Index("ix_jobs_state", "state"),
    Index("ix_jobs_client", "client", "id"),
)

job_rows = Table(
    "job_rows",
    metadata,
    Column("job", String(32), ForeignKey("jobs.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),  # from 1, as in the input
    Column("state", String(16), nullable=False),
    Column("reference", String(128)),  # the client's own, given back with the result
    Column("request", LargeBinary, nullable=False),  # JSON of the row's request
    Column("serial", String(40)),
    Column("problem", JSON(none_as_null=True)),  # why it failed
    Index("ix_job_rows_state", "job", "state", "number"),
)

authorities = Table(
    "authorities",
    metadata,
    Column("id", String(36), primary_key=True),  # of the home, drawn once
    Column("host", String(255), nullable=False),
    Column("store", Text, nullable=False),  # the directory of its response store, which all share
    Column("seen_at", BigInteger, nullable=False),
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
