"""The numbered steps at which a crash leaves something of its own, for whoever watches them be passed.

In production nobody does. A test hands in a watcher that ends the process at one of them, and then looks at what
the next start makes of it (loadtests/crash_harness.py; docs/architecture.md, "What a crash leaves").
"""

import enum
from collections.abc import Callable


class Step(enum.StrEnum):
    """One for each moment between two effects; `before-commit` stands inside the transaction."""

    INTENTS_BEFORE_COMMIT = "issue.4.before-commit"
    INTENTS_DURABLE = "issue.4.intents-durable"
    CERTIFICATES_SIGNED = "issue.5.certificates-signed"
    RESPONSES_SIGNED = "issue.5.responses-signed"
    ASSEMBLED = "issue.6.assembled"
    ISSUED_BEFORE_COMMIT = "issue.7.before-commit"
    ISSUED_DURABLE = "issue.7.issued-durable"
    PUBLISHED = "issue.8.published"
    ANSWERING = "issue.9.answering"
    ABANDON_BEFORE_COMMIT = "abandon.1.before-commit"
    ABANDONED = "abandon.2.closed"
    REVOKE_BEFORE_COMMIT = "revoke.1.before-commit"
    REVOKED_DURABLE = "revoke.1.durable"
    CRL_REQUESTED = "revoke.2.crl-requested"
    GOOD_WITHDRAWN = "revoke.3.good-withdrawn"
    REVOKED_PUBLISHED = "revoke.4.published"
    BATCH_ROWS_DURABLE = "batch.1.rows-durable"
    BATCH_RECEIVED = "batch.2.received"
    BATCH_CLAIMED = "batch.3.claimed"
    BATCH_FAILURES_DURABLE = "batch.4.failures-durable"
    BATCH_FINISHED = "batch.5.finished"
    ANSWERS_SIGNED = "answer.1.signed"
    ANSWERS_PUBLISHED = "answer.2.published"
    ANSWERS_BEFORE_COMMIT = "answer.3.before-commit"
    ANSWERS_SCHEDULED = "answer.3.scheduled"
    CRL_NUMBER_BEFORE_COMMIT = "crl.1.before-commit"
    CRL_NUMBER_DURABLE = "crl.1.number-durable"
    CRL_SIGNED = "crl.2.signed"
    CRL_BEFORE_COMMIT = "crl.3.before-commit"
    CRL_RECORDED = "crl.3.recorded"
    CRL_WRITTEN = "crl.4.file-written"
    RECOVERY_BEFORE_COMMIT = "recover.1.before-commit"
    INTENTS_CLOSED = "recover.1.intents-closed"
    BATCHES_RECOVERED = "recover.1.batches"
    ANSWERS_COMPARED = "recover.2.answers-compared"
    CRLS_THERE = "recover.3.crls-there"
    ISSUER_REGISTERED = "recover.4.issuer-registered"
    OWN_CERTIFICATES = "recover.5.own-certificates"


Milestones = Callable[[Step], None]
"""Told of each step as it is passed, in the loop's thread; it must not block, and what it raises is a bug."""


def unwatched(_step: Step) -> None:
    """Watch nothing: what production does."""
