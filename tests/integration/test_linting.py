"""A certificate that its linter refuses reaches no key: not signed, not recorded, and the error names the rule."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from pkix.asked import AskedNames
from pkix.errors import ContentRefused, LintError
from server.app import Parts
from server.errors import LintUnavailable
from server.issuance.profile_files import TLS_SERVER, built_in_files
from tests.integration.test_issuance_faults import signatures
from tests.support.authority import MovableClock, Prepared, Table, authority, order, prepare, software_config
from tests.support.ca import make_csr

PUBLIC = next(f.profile for f in built_in_files() if f.profile.name == "tls-server-public-dv")


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepare(software_config(tmp_path))


@pytest.fixture
async def parts(prepared: Prepared) -> AsyncIterator[Parts]:
    async with authority(prepared, MovableClock()) as opened:
        yield opened


async def test_findings_stop_issuing_before_any_intent_and_any_signature(parts: Parts, tmp_path: Path) -> None:
    """Public trust with this installation's URLs on 127.0.0.1: the CA's fault, which no requester can mend."""
    before = signatures(parts)
    table = Table(tmp_path)
    public = replace(order(csr=make_csr(None, names=(x509.DNSName("www.example.la"),))), profile=PUBLIC)
    with pytest.raises(LintError, match=r"ERROR cabf\.internal_domain_name at .*authorityInfoAccess") as refused:
        await parts.issuance.issue(public)
    assert not isinstance(refused.value, ContentRefused)
    assert signatures(parts) == before
    assert await asyncio.to_thread(table.states) == []


@pytest.mark.parametrize(
    ("profile", "subject"),
    [
        ("natural-person", {"givenName": "ສົມສັກ", "surname": "ພົມມະຈັນ", "serialNumber": "IDCLA-0001"}),
        ("company", {"O": "ບໍລິສັດ", "organizationIdentifier": "NTRLA-01-0001"}),
    ],
)
async def test_private_trust_is_issued_with_the_urls_of_a_first_try(
    parts: Parts, profile: str, subject: dict[str, str]
) -> None:
    """`make run` writes http://127.0.0.1 into certificates, and the ETSI linter wants public hosts."""
    text = {"C": "LA", "CN": "ສົມສັກ", **subject}
    asked = AskedNames(subject=tuple(text.items()))
    issued = await parts.issuance.issue(
        replace(order(csr=make_csr(None)), profile=parts.profiles.named(profile), asked=asked)
    )
    assert issued.profile == f"{profile}@1"


async def test_without_a_linter_only_known_shapes_are_signed(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = replace(order("a.example.gov"), profile=parts.profiles.named(TLS_SERVER))
    await parts.issuance.issue(private)
    before = signatures(parts)

    async def down(*_arguments: object, **_options: object) -> None:
        raise LintUnavailable("the linter is down")

    monkeypatch.setattr(parts.issuance._linter._pool, "lint", down)  # type: ignore[attr-defined]
    with pytest.raises(LintUnavailable):
        await parts.issuance.issue(replace(private, csr=make_csr("b.example.com")))
    assert signatures(parts) == before
    await parts.issuance.issue(replace(private, csr=make_csr("b.example.gov")))
    rows = await asyncio.to_thread(Table(tmp_path).rows, "select profile, linter from linted_shapes")
    assert any(str(profile).startswith("tls-server@") for profile, _ in rows)
