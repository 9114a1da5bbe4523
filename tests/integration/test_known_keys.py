"""Keys that the database knows: a token that shows others is not used, whichever token opens first."""

from pathlib import Path

import pytest

from server.home import Home
from server.keys.certified import replace_responder
from signer_pool.errors import PoolUnavailable
from signer_pool.pool import SignerPool
from tests.support.authority import MovableClock, Prepared, Table, authority, prepare, software_config
from tests.support.ca import make_csr
from tests.support.certmill import certmill
from tests.support.token_site import KEYS, Key, Site, run


def responders(home: Path) -> int:
    """Count the responder certificates."""
    query = "select count(*) from certificates where profile like 'ocsp-responder@%' and state = 'issued'"
    ((count,),) = Table(home).rows(query)
    assert isinstance(count, int)
    return count


@pytest.mark.parametrize("key", ["ocsp", "issuing"])
def test_a_token_with_a_wrong_key_is_not_used_though_it_opens_first(site: Site, key: str) -> None:
    site.alter("a", Key().row(key), destroy=(key,))
    tokens = f"{site.uri('a')} {site.uri('b')}"
    with certmill(site.home, CERTMILL_TOKENS=tokens, **site.softhsm) as server:
        assert all(
            "of token a is down" in reason and f"key {key!r} is not the one" in reason
            for reason in server.reasons()
        )
        assert server.issue(make_csr("a.example.gov")).status == 201
        ready = [line for line in server.log.read_text().splitlines() if "lane is ready" in line]
        assert ready
        assert not [line for line in ready if '"token": "a"' in line]
        assert server.stop() == 0
    assert responders(site.home) == 1


def test_a_responders_key_replaced_in_every_token_is_one_line_that_says_what_to_do(site: Site) -> None:
    other = Key().row("ocsp")
    for token in "ab":
        site.alter(token, other, destroy=("ocsp",))
    said = run(site.environ(), "init", expect=78).stderr.splitlines()[-1]
    assert said.startswith(
        "certmill: no token has the keys of this home's certificates: key 'ocsp' is not the one"
    )
    assert "if it is 'ocsp' and was replaced on purpose, remove it from every token" in said
    assert responders(site.home) == 1
    for token in "ab":
        site.alter(token, destroy=("ocsp",))
    for _ in range(2):
        run(site.environ(), "init")
        assert responders(site.home) == 2
    assert not Home(site.home).replaced_responder.exists()


def test_a_responders_key_made_before_a_crash_gets_its_certificate(site: Site) -> None:
    replace_responder(Home(site.home), issuer="issuing")
    made = Key().row("ocsp")
    for token in "ab":
        site.alter(token, made, destroy=("ocsp",))
    run(site.environ(), "init")
    assert responders(site.home) == 2
    for token in "ab":
        site.alter(token, Key().row("ocsp"), destroy=("ocsp",))
    run(site.environ(), "init", expect=78)


@pytest.mark.parametrize("key", KEYS)
def test_the_wrong_token_alone_is_refused(site: Site, key: str) -> None:
    site.alter("a", Key().row(key), destroy=(key,))
    said = run(site.environ(TOKENS=site.uri("a")), "init", expect=78).stderr.splitlines()[-1]
    assert f"key {key!r} is not the one" in said


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepare(software_config(tmp_path))


async def test_a_crash_after_the_responders_key_was_made_anew_is_survived(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = MovableClock()
    async with authority(prepared, clock):
        pass
    (tmp_path / "software-keys/ocsp.pem").unlink()
    generate = SignerPool.generate_key

    async def crash(*arguments: object) -> None:
        await generate(*arguments)  # type: ignore[arg-type]
        raise PoolUnavailable("crash")

    with monkeypatch.context() as patch:
        patch.setattr(SignerPool, "generate_key", crash)
        with pytest.raises(PoolUnavailable, match="crash"):
            async with authority(prepared, clock):
                pass
    assert (tmp_path / "run/replaced-responder").exists()
    async with authority(prepared, clock):
        assert responders(tmp_path) == 2
    assert not (tmp_path / "run/replaced-responder").exists()
