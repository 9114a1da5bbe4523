"""The frames between parent and child."""

import io

import msgspec
import pytest

from pkix.algorithms import KeyAlgorithm
from signer_pool.lane import (
    MAX_FRAME_BYTES,
    Failed,
    FailureKind,
    FrameError,
    Generate,
    Generated,
    Open,
    Pkcs11LaneConfig,
    Ready,
    Relist,
    Reply,
    ReplyReader,
    Request,
    Sign,
    Signed,
    SoftwareLaneConfig,
    encode_frame,
    read_request,
)

REQUESTS: list[Request] = [
    Open(Pkcs11LaneConfig(module_path="/m.so", token_label="t", pin="p", env={"A": "b"})),
    Open(SoftwareLaneConfig(directory="/d", passphrase="p")),
    Sign(7, "key", [b"one", b"two"]),
    Generate("key", KeyAlgorithm.EC_P256),
    Relist(),
]
REPLIES: list[Reply] = [
    Ready({"key": b"spki"}, "token"),
    Signed(7, [b"one", b""], {1: "DeviceError"}, 0.25),
    Generated(b"spki"),
    Failed(FailureKind.PIN, "refused"),
]


def test_requests_survive_the_wire() -> None:
    stream = io.BytesIO(b"".join([encode_frame(request) for request in REQUESTS]))
    assert [read_request(stream) for _ in REQUESTS] == REQUESTS
    assert read_request(stream) is None


@pytest.mark.parametrize("length", [1, 3, 4, 5, 10])
def test_truncated_request_is_the_end(length: int) -> None:
    assert read_request(io.BytesIO(encode_frame(REQUESTS[2])[:length])) is None


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
def test_replies_survive_in_pieces(piece: int) -> None:
    wire = b"".join([encode_frame(reply) for reply in REPLIES])
    reader = ReplyReader()
    replies = [reply for start in range(0, len(wire), piece) for reply in reader.feed(wire[start : start + piece])]
    assert replies == REPLIES


@pytest.mark.parametrize(
    "wire", [b"\0\0\0\1\xc1", (MAX_FRAME_BYTES + 1).to_bytes(4, "big"), encode_frame(Relist())]
)
def test_nonsense_is_no_reply(wire: bytes) -> None:
    with pytest.raises(FrameError):
        ReplyReader().feed(wire)


@pytest.mark.parametrize("wire", [b"\0\0\0\1\xc1", b"\xff\xff\xff\xff", encode_frame(REPLIES[2])])
def test_nonsense_is_no_request(wire: bytes) -> None:
    with pytest.raises(FrameError):
        read_request(io.BytesIO(wire))


def test_secrets_are_never_shown() -> None:
    for config in (
        Pkcs11LaneConfig(module_path="/m.so", token_label="t", pin="hush-hush"),
        SoftwareLaneConfig(directory="/d", passphrase="hush-hush"),
    ):
        shown = f"{config!r} {config} {config.__rich_repr__()} {Open(config)!r} {config.token} {config.env}"
        assert "hush" not in shown
        assert config.token in f"{config.token}"
        assert b"hush-hush" in msgspec.msgpack.encode(config)
