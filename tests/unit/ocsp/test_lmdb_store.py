"""The response store on a real LMDB environment."""

import asyncio
import dataclasses
import itertools
import shutil
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import lmdb
import pytest

from ocsp.entry import pack, unpack
from ocsp.errors import StoreBroken, StoreError, StoreFull
from ocsp.generation import Generation
from ocsp.lmdb_store import MAP_BYTES, LmdbReader, LmdbStore
from ocsp.store import IssuerTag, ResponseKey, Status, StoredResponse, key_prefix
from tests.unit.ocsp.stores import SHA1, SHA256, TAG, fill, key, response, with_store

OLD_GOOD = response(der=b"old", age_s=100)
NEW_GOOD = response(der=b"new")
PENDING = response(Status.REVOCATION_PENDING)
OLD_REVOKED = response(Status.REVOKED, b"revoked", age_s=50)
NEW_REVOKED = response(Status.REVOKED, b"revoked again")


@pytest.mark.parametrize(
    ("writes", "stays"),
    [
        ((OLD_GOOD, NEW_GOOD), NEW_GOOD),
        ((OLD_GOOD, NEW_GOOD, PENDING), PENDING),
        ((OLD_GOOD, NEW_GOOD, PENDING, OLD_REVOKED), OLD_REVOKED),
        ((NEW_GOOD, PENDING, OLD_REVOKED, NEW_REVOKED), NEW_REVOKED),
        ((response(age_s=-86400), PENDING), PENDING),
    ],
    ids=["newer wins", "pending beats good", "revoked beats pending", "newer revoked wins", "status beats time"],
)
def test_order_of_writers_does_not_matter(
    tmp_path: Path, writes: tuple[StoredResponse, ...], stays: StoredResponse
) -> None:
    orders = list(itertools.permutations(writes))

    async def publish(store: LmdbStore) -> None:
        for serial, order in enumerate(orders, 1):
            for one in order:
                await store.publish([(key(serial), one)])
        assert await store.get_many([key(serial) for serial in range(1, len(orders) + 1)]) == [stays] * len(orders)
        await store.publish([(key(1), one) for one in writes])  # within one publication too
        assert await store.get(key(1)) == stays

    with_store(tmp_path / "store", publish)


def test_reader_sees_what_was_written_and_issuers(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    fill(directory, [(key(1), NEW_GOOD), (key(1 << 158), OLD_REVOKED)])
    reader = LmdbReader(directory)
    assert reader.key_prefixes() == {
        b"".join(SHA1): key_prefix(TAG, "sha1"),
        b"".join(SHA256): key_prefix(TAG, "sha256"),
    }
    entry = reader.read(key(1))
    assert entry == pack(NEW_GOOD)
    assert unpack(entry) == NEW_GOOD
    assert unpack(reader.read(key(1 << 158)) or b"") == OLD_REVOKED
    assert reader.read(key(2)) is None
    assert not reader.replaced()
    reader.close()


def test_answers_alone_name_no_issuer(tmp_path: Path) -> None:
    fill(tmp_path, [(key(1), NEW_GOOD)], issuer=False)
    reader = LmdbReader(tmp_path)
    assert reader.key_prefixes() == {}
    reader.close()
    (empty := tmp_path / "empty").mkdir()
    fill(empty, [], issuer=False)
    reader = LmdbReader(empty)
    assert reader.key_prefixes() == {}
    reader.close()


def test_removed_answers_are_gone(tmp_path: Path) -> None:
    async def remove(store: LmdbStore) -> None:
        await store.publish([(key(1), NEW_GOOD), (key(2), NEW_GOOD)])
        await store.remove_many([key(1), key(3)])
        assert await store.get_many([key(1), key(2)]) == [None, NEW_GOOD]

    with_store(tmp_path, remove)


def test_every_write_moves_the_generation(tmp_path: Path) -> None:
    async def write(store: LmdbStore) -> None:
        generation = Generation(tmp_path / "generation", writable=False)
        seen = [generation.value()]
        await store.publish([(key(1), NEW_GOOD)])
        seen.append(generation.value())
        await store.put_issuer(TAG, sha1=SHA1, sha256=SHA256)
        seen.append(generation.value())
        await store.remove_many([key(1)])
        seen.append(generation.value())
        await store.get(key(1))
        assert generation.value() == seen[-1]
        assert len(set(seen)) == len(seen)
        generation.close()

    with_store(tmp_path, write)
    before = Generation(tmp_path / "generation", writable=False)
    value = before.value()
    with_store(tmp_path, _nothing)
    assert before.value() != value  # a writer that starts may have lost a bump when it died
    before.close()


@pytest.mark.parametrize("before", [b"\x00" * 8, b"\xff" * 8])
def test_an_issuer_of_the_same_name_and_key_takes_the_place_of_the_one_before(
    tmp_path: Path, before: bytes
) -> None:
    """A CA certificate that was made anew for the same key: its answers are served, and not that there are none."""

    async def register(store: LmdbStore) -> None:
        await store.put_issuer(IssuerTag(before), sha1=SHA1, sha256=SHA256)
        await store.put_issuer(IssuerTag(b"other-ca"), sha1=(b"o" * 20, b"k" * 20), sha256=(b"O" * 32, b"K" * 32))
        await store.publish([(key(1), NEW_GOOD)])
        await store.put_issuer(TAG, sha1=SHA1, sha256=SHA256)

    with_store(tmp_path, register)
    reader = LmdbReader(tmp_path)
    prefixes = reader.key_prefixes()
    reader.close()
    assert prefixes[b"".join(SHA1)] == key_prefix(TAG, "sha1")
    assert prefixes[b"".join(SHA256)] == key_prefix(TAG, "sha256")
    assert len(prefixes) == 4


async def _nothing(_store: LmdbStore) -> None:
    return None


def test_full_store_says_which_setting_and_loses_nothing(tmp_path: Path) -> None:
    async def overfill(store: LmdbStore) -> None:
        await store.publish([(key(1), NEW_GOOD)])
        large = [(key(serial), response(der=b"x" * 5000)) for serial in range(2, 200)]
        with pytest.raises(StoreFull, match=r"ocsp\.store_max_gib"):
            await store.publish(large)
        assert await store.get(key(1)) == NEW_GOOD
        assert await store.get(key(2)) is None

    with_store(tmp_path, overfill, max_bytes=2**17)


def test_store_that_cannot_be_opened_is_the_operators(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(StoreError, match="file"):
        with_store(tmp_path / "file", _nothing)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="damaged"):
        with_store(tmp_path / "damaged", _nothing)


async def test_cancelled_publication_is_whole_all_the_same(tmp_path: Path) -> None:
    async with LmdbStore(tmp_path, max_bytes=2**24) as store:
        task = asyncio.ensure_future(store.publish([(key(1), NEW_GOOD)]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await store.get(key(1)) in (None, NEW_GOOD)


def test_no_store_no_reader(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no response store"):
        LmdbReader(tmp_path)
    (tmp_path / "generation").write_bytes(b"")
    with pytest.raises(StoreError, match="no response store"):
        LmdbReader(tmp_path)
    (tmp_path / "generation").write_bytes(bytes(8))
    with pytest.raises(StoreError, match="response store"):
        LmdbReader(tmp_path)


def test_reader_notices_that_its_store_was_replaced(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    fill(directory, [(key(1), NEW_GOOD)])
    reader = LmdbReader(directory)
    directory.rename(tmp_path / "aside")
    assert reader.replaced()
    fill(directory, [])
    assert reader.replaced()
    shutil.rmtree(tmp_path / "aside")
    assert unpack(reader.read(key(1)) or b"") == NEW_GOOD  # still mapped: wrong answers are not the danger here
    reader.close()


def test_reader_of_a_damaged_store_has_a_typed_error(tmp_path: Path) -> None:
    fill(tmp_path, [(key(1), NEW_GOOD)])
    reader = LmdbReader(tmp_path)
    reader._env.close()
    with pytest.raises(StoreError):
        reader.read(key(1))
    with pytest.raises(StoreError):
        reader.key_prefixes()
    reader.close()


@pytest.mark.parametrize("map_bytes", [MAP_BYTES, 2**20])
async def test_reader_follows_a_store_that_outgrows_its_map(tmp_path: Path, map_bytes: int) -> None:
    async with LmdbStore(tmp_path, max_bytes=2**26) as store:
        await store.publish([(ResponseKey(b"first"), response())])
        code = READ_WHILE_GROWING.format(directory=str(tmp_path), map_bytes=map_bytes)
        reader = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdin=PIPE, stdout=PIPE)
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert await reader.stdout.readline() == b"open\n"
        large = dataclasses.replace(response(), der=bytes(4096))
        for block in range(8):
            await store.publish([(ResponseKey(b"%d/%d" % (block, n)), large) for n in range(512)])
            reader.stdin.write(b"%d\n" % block)
            assert await reader.stdout.readline() == b"512\n"
        reader.stdin.close()
        assert await reader.wait() == 0


# In a process of its own, as workers are: LMDB tells a map that is too small only between processes.
READ_WHILE_GROWING = """
import sys
from pathlib import Path
from ocsp.lmdb_store import LmdbReader
reader = LmdbReader(Path({directory!r}), max_bytes={map_bytes})
print("open", flush=True)
for line in sys.stdin:
    print(sum(reader.read(b"%d/%d" % (int(line), n)) is not None for n in range(512)), flush=True)
"""


async def test_authorities_that_share_a_store_lose_no_bump_and_no_merge(tmp_path: Path) -> None:
    """Each in a process of its own. The first opens with a map that is too small for what the others write."""
    await asyncio.to_thread(fill, tmp_path, [(key(1), NEW_REVOKED)])
    generation = Generation(tmp_path / "generation", writable=False)
    before = generation.value()
    small, *others = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITE.format(directory=str(tmp_path), number=number, max_bytes=2**size),
            stdin=PIPE, stdout=PIPE,
        )
        for number, size in enumerate((21, 26, 26))
    ]  # fmt: skip
    for writer in (small, *others):
        assert writer.stdout is not None
        assert await writer.stdout.readline() == b"open\n"
    results = await asyncio.gather(*(writer.communicate(b"go\n") for writer in others))
    assert [out for out, _ in results] == [b""] * 2
    assert (await small.communicate(b"go\n"))[0] == b""
    assert [writer.returncode for writer in (small, *others)] == [0, 0, 0]
    assert generation.value() - before == 3 * (1 + 300), "one for opening, one for each publication"
    generation.close()
    await asyncio.to_thread(_look_at_what_three_have_written, tmp_path)


def _look_at_what_three_have_written(tmp_path: Path) -> None:
    reader = LmdbReader(tmp_path)
    assert unpack(reader.read(key(1)) or b"") == NEW_REVOKED, "neither's good has come back"
    prefix = key_prefix(TAG, "sha1")
    assert sorted(reader.serials(prefix)) == [1, *range(1000, 1300), *range(2000, 2300), *range(3000, 3300)]
    assert list(reader.serials(b"\xff")) == []
    assert list(reader.serials(prefix[:1] + b"\0")) == []
    reader.close()


WRITE = """
import asyncio, sys
from pathlib import Path
from ocsp.lmdb_store import LmdbStore
from tests.unit.ocsp.stores import key, response

async def write():
    async with LmdbStore(Path({directory!r}), max_bytes={max_bytes}) as store:
        print("open", flush=True)
        sys.stdin.readline()
        for n in range(300):
            own = key(1000 * ({number} + 1) + n)
            await store.publish([(own, response(der=bytes(4096))), (key(1), response(der=b"good"))])
            assert await store.get(own) is not None

asyncio.run(write())
"""


def test_a_reader_does_not_move_the_generation(tmp_path: Path) -> None:
    with_store(tmp_path, _nothing)
    generation = Generation(tmp_path / "generation", writable=False)
    with pytest.raises(ValueError, match="reader"):
        generation.bump()
    generation.close()


@pytest.mark.parametrize(("ahead_s", "stays"), [(3600, True), (3601, False)])
def test_an_answer_of_a_clock_that_was_wrong_gives_way(tmp_path: Path, ahead_s: int, stays: bool) -> None:
    future = response(der=b"future", age_s=-ahead_s)

    async def publish(store: LmdbStore) -> None:
        await store.publish([(key(1), future)])
        await store.publish([(key(1), NEW_GOOD)])
        assert await store.get(key(1)) == (future if stays else NEW_GOOD)

    with_store(tmp_path / "store", publish)


def test_a_store_that_has_stopped_for_good_says_so_until_a_write_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_arguments: object) -> None:
        raise lmdb.PanicError("mdb_txn_begin", -30795)

    async def publish(store: LmdbStore) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(store, "_publish", stopped)
            with pytest.raises(StoreBroken):
                await store.publish([(key(1), NEW_GOOD)])
        assert store.trouble is not None
        await store.publish([(key(1), NEW_GOOD)])
        assert store.trouble is None

    with_store(tmp_path / "store", publish)
