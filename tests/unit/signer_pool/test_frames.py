"""The frames between parent and child."""

import io

import msgspec
import pytest

from pkix.algorithms import KeyAlgorithm
from signer_pool.ckr import Action
from signer_pool.lane import (
    MAX_FRAME_BYTES,
    Failed,
    FailureKind,
    FrameError,
    Generate,
    Generated,
    Open,
    Ping,
    Pong,
    Ready,
    Refusal,
    Relist,
    Reply,
    ReplyReader,
    Request,
    Sign,
    Signed,
    TokenFacts,
    encode_frame,
    read_request,
)
from signer_pool.lane_config import KeyMatch, Pkcs11LaneConfig, SoftwareLaneConfig

REQUESTS: list[Request] = [
    Open(
        Pkcs11LaneConfig(
            module_path="/m.so",
            token_label="t",
            pin="p",
            env={"A": "b"},
            name="hsm-1",
            serial="0001",
            manufacturer="m",
            model="o",
            slot_id=7,
            keys={"root": KeyMatch(id=b"\1"), "ocsp": KeyMatch(label="o", id=b"\2")},
        )
    ),
    Open(Pkcs11LaneConfig(module_path="/m.so", token_label="t", pin="p")),
    Open(SoftwareLaneConfig(directory="/d", passphrase="p", name="spare")),
    Sign(7, "key", "ecdsa-with-SHA256", [b"one", b"two"]),
    Generate("key", KeyAlgorithm.ED25519),
    Relist(),
    Ping(),
]
REPLIES: list[Reply] = [
    Ready({"key": b"spki"}, "token"),
    Ready({}, "token", TokenFacts(label="t", slot_id=3, mechanisms=("ed25519",)), ["key 'x' is twice there"]),
    Signed(7, [b"one", b""], {1: Refusal(Action.TOKEN_DOWN, 0x30, "CKR_DEVICE_ERROR")}, 0.25, {0xB3: 2}),
    Generated(b"spki"),
    Pong(),
    Failed(FailureKind.PIN, "refused", 0xA0),
]


def test_requests_survive_the_wire() -> None:
    stream = io.BytesIO(b"".join([encode_frame(request) for request in REQUESTS]))
    assert [read_request(stream) for _ in REQUESTS] == REQUESTS
    assert read_request(stream) is None


@pytest.mark.parametrize("length", [1, 3, 4, 5, 10])
def test_truncated_request_is_the_end(length: int) -> None:
    assert read_request(io.BytesIO(encode_frame(REQUESTS[3])[:length])) is None


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


@pytest.mark.parametrize("wire", [b"\0\0\0\1\xc1", b"\xff\xff\xff\xff", encode_frame(Generated(b"spki"))])
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


def test_tokens_go_by_their_name_else_by_their_label() -> None:
    assert Pkcs11LaneConfig(module_path="/m.so", token_label="label", pin="p").token_name == "label"
    assert Pkcs11LaneConfig(module_path="/m.so", token_label="label", pin="p", name="hsm-1").token_name == "hsm-1"
    assert SoftwareLaneConfig(directory="/d", passphrase="p").token_name == "software"
    assert SoftwareLaneConfig(directory="/d", passphrase="p", name="spare").token_name == "spare"
