"""The linters of pkilint by the names that profiles use. Loading this module takes half a second and 50 MB.

So the authority does not: its worker processes do (`server.linting.worker`), and `certmill profile lint`.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from pkilint import etsi, finding_filter, loader
from pkilint.cabf import serverauth, smime
from pkilint.pkix import certificate, extension, name

from server.linting.exceptions import Exceptions
from server.linting.findings import Finding, Severity

_TYPE_UNKNOWN = Finding(
    severity=Severity.FATAL,
    code="certmill.certificate_type_unknown",
    where="certificate.tbsCertificate.extensions",
    message="no reserved policy of the CA/Browser Forum's S/MIME requirements (§7.1.6.1) says which rules hold",
)
_Check = tuple[Any, Sequence[Any]]


def lint_now(certificate_der: bytes, linter: str, *, profile: str, exceptions: Exceptions) -> list[Finding]:
    """Lint one certificate in this process and return what stops it: no documented exception covers it.

    `profile` is the profile's name. Cost: 3 to 10 ms, after the first of its kind.
    """
    return exceptions.stopping(lint(certificate_der, linter), linter=linter, profile=profile)


def lint(certificate_der: bytes, linter: str) -> list[Finding]:
    """Return every finding of WARNING or worse. The certificate's signature is not verified."""
    try:
        document = loader.load_der_certificate(certificate_der, "certificate")
    except ValueError as error:
        return [
            Finding(severity=Severity.FATAL, code="certmill.unreadable", where="certificate", message=str(error))
        ]
    check = _CHOICES[linter](document)
    if check is None:
        return [_TYPE_UNKNOWN]
    container, filters = check
    results = container.validate(document.root)
    if filters:
        results, _ = finding_filter.filter_results(list(filters), results)
    return [
        Finding(
            severity=Severity(int(found.finding.severity)),
            code=str(found.finding.code),
            where=str(result.node.path),
            message=str(found.message or ""),
        )
        for result in results
        for found in result.finding_descriptions
        if found.finding.severity <= Severity.WARNING
    ]


@cache
def _pkix() -> _Check:
    decoding = certificate.create_decoding_validators(name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS)
    validators = [
        certificate.create_issuer_validator_container([]),
        certificate.create_validity_validator_container(),
        certificate.create_subject_validator_container([]),
        certificate.create_extensions_validator_container([]),
        certificate.create_spki_validator_container([]),
    ]
    return certificate.create_pkix_certificate_validator_container(decoding, validators), ()


@cache
def _cabf_tls(kind: Any) -> _Check:  # noqa: ANN401 - pkilint has no types
    container = certificate.create_pkix_certificate_validator_container(
        serverauth.create_decoding_validators(), serverauth.create_validators(kind)
    )
    return container, serverauth.create_serverauth_finding_filters(kind)


@cache
def _cabf_smime(level: Any, generation: Any) -> _Check:  # noqa: ANN401
    container = certificate.create_pkix_certificate_validator_container(
        smime.create_decoding_validators(), smime.create_subscriber_validators(level, generation)
    )
    return container, ()


@cache
def _etsi(kind: Any) -> _Check:  # noqa: ANN401
    container = certificate.create_pkix_certificate_validator_container(
        etsi.create_decoding_validators(kind), etsi.create_validators(kind)
    )
    return container, etsi.create_etsi_finding_filters(kind)


def _choose_smime(document: Any) -> _Check | None:  # noqa: ANN401
    kind = smime.determine_validation_level_and_generation(document)
    return None if kind is None else _cabf_smime(*kind)


# Which rules hold follows from what the certificate claims: reserved policies, extended key usages, CA or not.
_CHOICES: dict[str, Callable[[Any], _Check | None]] = {
    "pkix": lambda _document: _pkix(),
    "cabf-tls": lambda document: _cabf_tls(serverauth.determine_certificate_type(document)),
    "cabf-smime": _choose_smime,
    "etsi": lambda document: _etsi(etsi.determine_certificate_type(document)),
}
