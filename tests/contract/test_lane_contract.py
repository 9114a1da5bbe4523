"""The lane contract, over software keys and a SoftHSM token: the same for both."""

import asyncio
import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from pkix.algorithms import (
    SIGNATURE_ALGORITHMS,
    KeyAlgorithm,
    SignatureFamily,
    algorithm_for,
    key_algorithm,
    verify_signature,
)
from pkix.errors import SignatureMismatch, UnsupportedKey
from signer_pool.ckr import KEY_HANDLE_INVALID, Action
from signer_pool.errors import KeyExists, KeyMismatch, LaneStartError, PinRejected, SigningFailed, UnknownKey
from signer_pool.lane import Generate, Generated, Lane, Ping, Pong, Ready, Relist, Signed
from signer_pool.lane_config import LaneConfig, Pkcs11LaneConfig, SoftwareLaneConfig
from signer_pool.lane_link import open_lane
from signer_pool.pool import LaneState, Priority, SignerPool, TokenState
from tests.contract.conftest import KEYS
from tests.unit.signer_pool.lanes import SECRETS, MemoryLogger


def with_wrong_secret(config: LaneConfig) -> LaneConfig:
    if isinstance(config, SoftwareLaneConfig):
        return SoftwareLaneConfig(directory=config.directory, passphrase="wrong")
    return Pkcs11LaneConfig(
        module_path=config.module_path, token_label=config.token_label, pin="999999", env=config.env
    )


@pytest.mark.parametrize("algorithm", KEYS)
async def test_signatures_verify(pool: SignerPool, algorithm: KeyAlgorithm) -> None:
    public_key = pool.public_key(algorithm.value)
    assert key_algorithm(public_key) is algorithm
    tbs_list = [f"certificate {number}".encode() * 40 for number in range(20)]
    signatures = await pool.sign_many(algorithm.value, tbs_list, Priority.BULK)
    assert len(signatures) == len(tbs_list)
    for tbs, signature in zip(tbs_list, signatures, strict=True):
        verify_signature(public_key, tbs, signature)


@pytest.mark.parametrize("name", list(SIGNATURE_ALGORITHMS))
async def test_every_signature_algorithm(pool: SignerPool, name: str) -> None:
    """With each of the keys that it goes with: BR 7.1.3.2."""
    row = SIGNATURE_ALGORITHMS[name]
    tbs = b"certificate " * 40
    signed = 0
    for label in (algorithm.value for algorithm in KEYS):
        public_key = pool.public_key(label)
        try:
            algorithm_for(public_key, name)
        except UnsupportedKey:
            with pytest.raises(UnsupportedKey):
                await pool.sign(label, tbs, Priority.BULK, algorithm=name)
            continue
        signature = await pool.sign(label, tbs, Priority.BULK, algorithm=name)
        verify_signature(public_key, tbs, signature, row)
        signed += 1
        if row.family is SignatureFamily.RSA_PSS:
            with pytest.raises(SignatureMismatch):  # it is not simply the key's usual one
                verify_signature(public_key, tbs, signature)
    assert signed


async def test_no_signature_with_an_algorithm_that_nobody_knows(pool: SignerPool) -> None:
    with pytest.raises(UnsupportedKey):
        await pool.sign("rsa-2048", b"tbs", Priority.BULK, algorithm="md5WithRSAEncryption")


async def test_algorithms_do_not_mix_in_a_batch(pool: SignerPool) -> None:
    names = [name for name, row in SIGNATURE_ALGORITHMS.items() if row.rsa_padding is not None]
    public_key = pool.public_key("rsa-2048")
    async with asyncio.TaskGroup() as group:
        tasks = [
            (name, group.create_task(pool.sign("rsa-2048", b"tbs", Priority.BULK, algorithm=name)))
            for name in names * 10
        ]
    for name, task in tasks:
        verify_signature(public_key, b"tbs", task.result(), SIGNATURE_ALGORITHMS[name])


async def test_single_calls_get_their_own_signature(pool: SignerPool) -> None:
    public_key = pool.public_key("ec-p256")
    async with asyncio.TaskGroup() as group:
        tasks = {
            tbs: group.create_task(pool.sign("ec-p256", tbs, priority))
            for priority in Priority
            for tbs in (f"{priority} {number}".encode() for number in range(30))
        }
    for tbs, task in tasks.items():
        verify_signature(public_key, tbs, task.result())


async def test_empty_tbs_is_signed(pool: SignerPool) -> None:
    verify_signature(pool.public_key("ec-p256"), b"", await pool.sign("ec-p256", b"", Priority.BULK))


async def test_no_tbs_no_signature(pool: SignerPool) -> None:
    assert await pool.sign_many("ec-p256", [], Priority.BULK) == []


async def test_megabytes_are_signed(pool: SignerPool) -> None:
    tbs = os.urandom(5 * 2**20)
    verify_signature(pool.public_key("rsa-2048"), tbs, await pool.sign("rsa-2048", tbs, Priority.CRL))


async def test_generated_key_is_seen_by_every_lane(pool: SignerPool) -> None:
    label = "new key " + os.urandom(4).hex()
    public_key = await pool.generate_key(label, KeyAlgorithm.EC_P256)
    assert label in pool.labels()
    assert pool.public_key(label) == public_key
    signatures = await pool.sign_many(label, [b"tbs"] * 300, Priority.BULK)
    for signature in signatures:
        verify_signature(public_key, b"tbs", signature)


async def test_existing_label_is_refused(pool: SignerPool, lane_config: LaneConfig) -> None:
    with pytest.raises(KeyExists):
        await pool.generate_key("ec-p256", KeyAlgorithm.EC_P256)
    lane = await open_lane(lane_config)
    try:
        with pytest.raises(KeyExists):
            await lane.ask(Generate("ec-p256", KeyAlgorithm.EC_P256), deadline_s=10)
    finally:
        await lane.close()


async def test_unknown_key(pool: SignerPool) -> None:
    with pytest.raises(UnknownKey):
        await pool.sign("no such key", b"tbs", Priority.BULK)
    with pytest.raises(UnknownKey):
        pool.public_key("no such key")


async def test_pinned_key(pool: SignerPool) -> None:
    pool.pin_key("ec-p256", pool.public_key("ec-p256"))
    with pytest.raises(KeyMismatch):
        pool.pin_key("ec-p256", pool.public_key("rsa-2048"))
    with pytest.raises(UnknownKey):
        pool.pin_key("no such key", pool.public_key("rsa-2048"))


def send(lane: Lane, key: str, *tbs: bytes) -> asyncio.Future[Signed | None]:
    answer: asyncio.Future[Signed | None] = asyncio.get_running_loop().create_future()
    lane.send(key, "ecdsa-with-SHA256", tbs, answer.set_result, deadline_s=10)
    return answer


async def test_lane_answers_in_order(pool: SignerPool, lane_config: LaneConfig) -> None:
    lane = await open_lane(lane_config)
    try:
        assert "ec-p256" in lane.public_keys
        assert lane.token.startswith(lane_config.token)
        assert lane.facts.manufacturer in {"certmill", "SoftHSM project"}
        assert lane.notes == []
        answer = send(lane, "ec-p256", b"a", b"b")
        assert lane.in_flight == 1
        listed = await lane.ask(Relist(), deadline_s=10)
        assert isinstance(listed, Ready)
        assert answer.done()
        made = await lane.ask(Generate("own " + os.urandom(4).hex(), KeyAlgorithm.EC_P384), deadline_s=10)
        assert isinstance(made, Generated)
        assert await lane.ask(Ping(), deadline_s=10) == Pong()
        assert lane.in_flight == 0
    finally:
        await lane.close()
    signed = answer.result()
    assert signed is not None
    for tbs, signature in zip((b"a", b"b"), signed.signatures, strict=True):
        verify_signature(pool.public_key("ec-p256"), tbs, signature)
    assert signed.service_s > 0
    assert (signed.refusals, signed.healed) == ({}, {})


async def test_key_made_by_another_lane_is_found_by_itself(pool: SignerPool, lane_config: LaneConfig) -> None:
    """Its handle is unknown: that is healed by a new session, which finds it."""
    lane = await open_lane(lane_config)
    try:
        label = "late " + os.urandom(4).hex()
        public_key = await pool.generate_key(label, KeyAlgorithm.EC_P256)
        signed = await send(lane, label, b"tbs")
        assert signed is not None
        verify_signature(public_key, b"tbs", signed.signatures[0])
        assert (signed.refusals, signed.healed) == ({}, {KEY_HANDLE_INVALID: 1})
    finally:
        await lane.close()


async def test_key_that_is_not_there_is_looked_for_a_few_times(lane_config: LaneConfig) -> None:
    lane = await open_lane(lane_config)
    try:
        signed = await send(lane, "no such key", b"c", b"d")
        assert signed is not None
        assert signed.signatures == [b"", b""]
        (refusal,) = signed.refusals.items()
        assert (refusal[0], refusal[1].action, refusal[1].code) == (0, Action.REPLACE, KEY_HANDLE_INVALID)
        assert signed.healed == {KEY_HANDLE_INVALID: 4}
    finally:
        await lane.close()


async def test_key_that_was_shown_cannot_be_generated_twice_at_once(
    pool: SignerPool, lane_config: LaneConfig
) -> None:
    label = "raced " + os.urandom(4).hex()
    first, second = await open_lane(lane_config), await open_lane(lane_config)
    try:
        await first.ask(Generate(label, KeyAlgorithm.EC_P256), deadline_s=10)
        with pytest.raises((KeyExists, SigningFailed)):
            await second.ask(Generate(label, KeyAlgorithm.EC_P256), deadline_s=10)
    finally:
        await first.close()
        await second.close()


async def test_wrong_pin_is_tried_once(
    lane_config: LaneConfig, logger: MemoryLogger, capfd: pytest.CaptureFixture[str], pool: SignerPool
) -> None:
    attempts = 0

    async def counting_opener(config: LaneConfig) -> Lane:
        nonlocal attempts
        attempts += 1
        return await open_lane(config)

    wrong = with_wrong_secret(lane_config)
    refused = SignerPool(
        lanes=[wrong] * 3,
        registry=CollectorRegistry(),
        logger=logger,
        lane_opener=counting_opener,
    )
    with pytest.raises(PinRejected) as caught:
        async with refused:
            pytest.fail("a pool without a lane was opened")
    assert attempts == 1
    assert "\n" not in str(caught.value)
    health = refused.health()
    assert health.lanes[0].state is LaneState.FAILED
    assert health.alive == 0
    assert health.lanes[0].last_error == str(caught.value)
    (token,) = health.tokens
    assert (token.name, token.state, token.reason) == (wrong.token_name, TokenState.FAILED, str(caught.value))
    assert health.reasons()[0] == f"token {token.name} is failed: {caught.value}"
    assert "999999" not in str(logger.lines) + str(caught.value) + "".join(capfd.readouterr())


async def test_secret_is_nowhere_to_be_seen(
    pool: SignerPool, logger: MemoryLogger, lane_config: LaneConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    await pool.sign("ec-p256", b"tbs", Priority.BULK)
    seen = [repr(logger.lines), repr(lane_config), str(lane_config), repr(pool.health())]
    seen += [repr(lane_config.__rich_repr__())]
    lanes = [lane for lane in pool.health().lanes if lane.pid]
    assert lanes
    for lane in lanes:
        assert lane.pid != os.getpid()
        proc = Path("/proc") / str(lane.pid)
        command = proc.joinpath("cmdline").read_bytes().decode()
        assert "signer_pool.lane_process" in command
        seen += [command, proc.joinpath("environ").read_bytes().decode()]
    seen += capfd.readouterr()
    for secret in SECRETS:
        assert not [text for text in seen if secret in text]


async def test_pace_is_measured_on_demand(pool: SignerPool, lane_config: LaneConfig) -> None:
    assert not any(one.signs_per_s for one in pool.capacities())
    keys = [algorithm.value for algorithm in KEYS]
    await pool.calibrate(keys, signs=2)
    measured = [capacity for capacity in pool.capacities() if capacity.signs_per_s]
    assert {capacity.key for capacity in measured} == set(keys)
    assert all(capacity.token == lane_config.token_name for capacity in measured)
    assert all(1 < capacity.signs_per_s < 1e6 for capacity in measured)


async def test_missing_token_is_one_clear_line(lane_config: LaneConfig, logger: MemoryLogger) -> None:
    if isinstance(lane_config, SoftwareLaneConfig):
        missing: LaneConfig = SoftwareLaneConfig(directory="/nonexistent", passphrase="x")
        named = "/nonexistent"
    else:
        missing = Pkcs11LaneConfig(
            module_path=lane_config.module_path, token_label="absent", pin="1", env=lane_config.env
        )
        named = "absent"
    pool = SignerPool(lanes=[missing], registry=CollectorRegistry(), logger=logger)
    with pytest.raises(LaneStartError, match=named) as caught:
        await pool.__aenter__()
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, PinRejected)


async def test_missing_module_is_one_clear_line(logger: MemoryLogger) -> None:
    config = Pkcs11LaneConfig(module_path="/nonexistent/module.so", token_label="token-1", pin="1")
    with pytest.raises(LaneStartError, match=r"token-1.*/nonexistent/module\.so.*check") as caught:
        async with SignerPool(lanes=[config], registry=CollectorRegistry(), logger=logger):
            pytest.fail("a pool without a lane was opened")
    assert "\n" not in str(caught.value)
