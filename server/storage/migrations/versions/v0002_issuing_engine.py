"""The issuing engine: requests kept, profile versions, linted shapes, batches, limits of clients, authorities."""

import datetime as dt

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
_HAS_PREDECESSOR = "renews IS NOT NULL AND state <> 'abandoned'"


def upgrade() -> None:
    """Add what the issuing engine keeps; a client of before may go on asking for any organisation."""
    with op.batch_alter_table("certificates") as certificates:
        certificates.add_column(sa.Column("csr", sa.LargeBinary()))
        certificates.add_column(sa.Column("asked", sa.JSON(none_as_null=True)))
        certificates.add_column(sa.Column("renews", sa.String(40)))
        certificates.add_column(sa.Column("authority", sa.String(36)))
    op.create_index("ix_certificates_client_created_at", "certificates", ["client", "created_at"])
    op.create_index("ix_certificates_spki_sha256", "certificates", ["spki_sha256"])
    op.create_index(
        "uq_certificates_renews",
        "certificates",
        ["issuer", "renews"],
        unique=True,
        sqlite_where=sa.text(_HAS_PREDECESSOR),
        postgresql_where=sa.text(_HAS_PREDECESSOR),
    )
    op.drop_index("ix_ocsp_responses_refresh_at", "ocsp_responses")
    op.create_index("ix_ocsp_responses_issuer", "ocsp_responses", ["issuer", "refresh_at"])
    with op.batch_alter_table("clients") as clients:
        clients.add_column(sa.Column("organizations", sa.JSON(), nullable=False, server_default='["*"]'))
        clients.add_column(sa.Column("identifiers", sa.JSON(), nullable=False, server_default='["*"]'))
        clients.add_column(sa.Column("yearly_quota", sa.Integer()))
        clients.add_column(sa.Column("rate_per_minute", sa.Integer()))
    with op.batch_alter_table("clients") as clients:
        clients.alter_column("organizations", server_default=None)
        clients.alter_column("identifiers", server_default=None)
    _count_what_was_issued()
    op.create_table(
        "profile_versions",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("toml", sa.Text(), nullable=False),
        sa.Column("activated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name=op.f("pk_profile_versions")),
    )
    op.create_table(
        "linted_shapes",
        sa.Column("profile", sa.String(80), nullable=False),
        sa.Column("shape_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("linter", sa.String(64), nullable=False),
        sa.Column("linted_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("profile", "shape_sha256", "linter", name=op.f("pk_linted_shapes")),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("client", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("profile", sa.String(80), nullable=False),
        sa.Column("dry_run", sa.Boolean(), nullable=False),
        sa.Column("idempotency_key", sa.String(128)),
        sa.Column("request_sha256", sa.LargeBinary(32)),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("issued", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("checked", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger()),
        sa.Column("finished_at", sa.BigInteger()),
        sa.Column("detail", sa.Text()),
        sa.Column("authority", sa.String(36)),
        sa.Column("leased_until", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("client", "idempotency_key", name=op.f("uq_jobs_client")),
    )
    op.create_index("ix_jobs_state", "jobs", ["state"])
    op.create_index("ix_jobs_client", "jobs", ["client", "id"])
    op.create_table(
        "job_rows",
        sa.Column("job", sa.String(32), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reference", sa.String(128)),
        sa.Column("request", sa.LargeBinary(), nullable=False),
        sa.Column("serial", sa.String(40)),
        sa.Column("problem", sa.JSON(none_as_null=True)),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name=op.f("fk_job_rows_job")),
        sa.PrimaryKeyConstraint("job", "number", name=op.f("pk_job_rows")),
    )
    op.create_index("ix_job_rows_state", "job_rows", ["job", "state", "number"])
    op.create_table(
        "authorities",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("store", sa.Text(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_authorities")),
    )


def _count_what_was_issued() -> None:
    """Make the counters of the yearly quotas, with what each client got so far."""
    op.create_table(
        "client_usage",
        sa.Column("client", sa.String(64), nullable=False),
        sa.Column("year", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("issued", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("client", "year", name=op.f("pk_client_usage")),
    )
    connection = op.get_bind()
    kept = "from certificates where state <> 'abandoned'"
    first, last = connection.execute(sa.text(f"select min(created_at), max(created_at) {kept}")).one()
    if first is None:
        return
    count = sa.text(
        "insert into client_usage (client, year, issued) "
        f"select client, :year, count(*) {kept} and created_at >= :start and created_at < :end group by client"
    )
    for year in range(_year(first), _year(last) + 1):
        connection.execute(count, {"year": year, "start": _begin(year), "end": _begin(year + 1)})


def _year(moment: int) -> int:
    return dt.datetime.fromtimestamp(moment, dt.UTC).year


def _begin(year: int) -> int:
    return int(dt.datetime(year, 1, 1, tzinfo=dt.UTC).timestamp())
