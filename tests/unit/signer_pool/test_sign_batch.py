"""What a lane heals by itself, and what it leaves to the pool: over a session that the test plays."""

from collections import deque
from collections.abc import Callable

import pytest

from signer_pool.ckr import Action, classify
from signer_pool.errors import LaneStartError, PinRejected, TokenRefused
from signer_pool.lane import Refusal, Sign, Signed
from signer_pool.sign_batch import HEALINGS_PER_BATCH, sign_batch

RETRY, REOPEN, REPLACE, TOKEN_DOWN, CALLER, NEVER = 0x006, 0x0B3, 0x005, 0x030, 0x020, 0x0A4
SIGNED = b"signed "


def refused(answer: int | Exception) -> Exception:
    if isinstance(answer, Exception):
        return answer
    row = classify(answer)
    return TokenRefused(f"test: {row.name}", row)


class PlayedSession:
    """Answers its signatures one after the other with an error or, for None and in the end, with success."""

    token = "played"

    def __init__(
        self,
        *answers: int | Exception | None,
        reopening: Exception | None = None,
        signer: int | Exception | None = None,
    ) -> None:
        self.answers = deque(answers)
        self.calls: list[str] = []
        self._reopening = reopening
        self._signer = signer

    def signer(self, name: str, algorithm: str) -> Callable[[bytes], bytes]:
        self.calls.append(f"signer {name} {algorithm}")
        if self._signer is not None:
            answer, self._signer = self._signer, None
            raise refused(answer)
        return self._sign

    def _sign(self, tbs: bytes) -> bytes:
        self.calls.append(tbs.decode())
        answer = self.answers.popleft() if self.answers else None
        if answer is not None:
            raise refused(answer)
        return SIGNED + tbs

    def reopen(self) -> None:
        self.calls.append("reopen")
        if self._reopening is not None:
            raise self._reopening


def run(session: PlayedSession, tbs: str = "abc") -> Signed:
    return sign_batch(session, Sign(7, "key", "ed25519", [letter.encode() for letter in tbs]))


def text(signed: Signed) -> list[str]:
    """Return what was signed, a dash where there is no signature."""
    return [signature.removeprefix(SIGNED).decode() or "-" for signature in signed.signatures]


def test_all_is_well() -> None:
    session = PlayedSession()
    signed = run(session)
    assert text(signed) == ["a", "b", "c"]
    assert (signed.batch_id, signed.refusals, signed.healed) == (7, {}, {})
    assert 0 < signed.service_s < 1
    assert session.calls == ["signer key ed25519", "a", "b", "c"]
    assert not signed.spoils_lane


def test_what_failed_by_chance_is_tried_again_here() -> None:
    session = PlayedSession(None, RETRY, RETRY)
    signed = run(session)
    assert text(signed) == ["a", "b", "c"]
    assert (signed.refusals, signed.healed) == ({}, {RETRY: 2})
    assert [call for call in session.calls if len(call) == 1] == ["a", "b", "b", "b", "c"]
    assert "reopen" not in session.calls


def test_session_that_is_gone_is_opened_again_and_the_key_found_anew() -> None:
    session = PlayedSession(None, REOPEN)
    signed = run(session)
    assert text(signed) == ["a", "b", "c"]
    assert (signed.refusals, signed.healed) == ({}, {REOPEN: 1})
    assert session.calls == ["signer key ed25519", "a", "b", "reopen", "signer key ed25519", "b", "c"]


def test_key_that_is_not_found_is_looked_for_in_a_new_session() -> None:
    session = PlayedSession(signer=0x060)
    signed = run(session, "a")
    assert text(signed) == ["a"]
    assert signed.healed == {0x060: 1}
    assert session.calls == ["signer key ed25519", "reopen", "signer key ed25519", "a"]


@pytest.mark.parametrize("code", [RETRY, REOPEN])
def test_healing_is_bounded_for_a_whole_batch(code: int) -> None:
    session = PlayedSession(None, *[code, None] * 2, *[code] * 99)
    signed = run(session, "abcdef")
    assert text(signed) == ["a", "b", "c", "-", "-", "-"]
    assert signed.healed == {code: HEALINGS_PER_BATCH}
    name = classify(code).name
    assert signed.refusals == {3: Refusal(Action.REPLACE, code, f"test: {name}, 5 times in one batch")}
    assert session.calls.count("reopen") == (HEALINGS_PER_BATCH if code == REOPEN else 0)
    assert signed.spoils_lane


def test_healing_of_different_kinds_shares_the_bound() -> None:
    signed = run(PlayedSession(RETRY, REOPEN, RETRY, REOPEN, RETRY))
    assert signed.healed == {RETRY: 2, REOPEN: 2}
    assert signed.refusals[0].action is Action.REPLACE


def test_bound_is_new_for_each_batch() -> None:
    session = PlayedSession(*[RETRY] * 4, None, *[RETRY] * 4)
    for _ in range(2):
        signed = run(session, "a")
        assert (text(signed), signed.refusals, signed.healed) == (["a"], {}, {RETRY: 4})


@pytest.mark.parametrize(
    ("code", "action"), [(REPLACE, Action.REPLACE), (TOKEN_DOWN, Action.TOKEN_DOWN), (NEVER, Action.NEVER)]
)
def test_what_spoils_the_lane_ends_the_batch_and_the_rest_is_not_tried(code: int, action: Action) -> None:
    session = PlayedSession(None, code)
    signed = run(session, "abcd")
    assert text(signed) == ["a", "-", "-", "-"]
    assert signed.refusals == {1: Refusal(action, code, f"test: {classify(code).name}")}
    assert [call for call in session.calls if len(call) == 1] == ["a", "b"]
    assert signed.spoils_lane


def test_what_nobody_can_sign_is_refused_alone() -> None:
    session = PlayedSession(None, CALLER, None, CALLER)
    signed = run(session, "abcd")
    assert text(signed) == ["a", "-", "c", "-"]
    refusal = Refusal(Action.CALLER, CALLER, "test: CKR_DATA_INVALID")
    assert signed.refusals == {1: refusal, 3: refusal}
    assert session.calls.count("signer key ed25519") == 1
    assert not signed.spoils_lane


def test_blame_that_no_signature_deserves_falls_on_the_module() -> None:
    """Of the values that are the caller's fault elsewhere: a template cannot be wrong where there is none."""
    signed = run(PlayedSession(0x0D0))
    assert signed.refusals[0].action is Action.REPLACE
    assert text(signed) == ["-", "-", "-"]


def test_no_key_for_the_whole_batch() -> None:
    signed = run(PlayedSession(signer=TOKEN_DOWN))
    assert text(signed) == ["-", "-", "-"]
    assert signed.refusals[0].action is Action.TOKEN_DOWN


@pytest.mark.parametrize(
    ("error", "action", "code", "message"),
    [
        (PinRejected("no", 0x0A4), Action.NEVER, 0x0A4, "no"),
        (LaneStartError("gone", 0x0E0), Action.TOKEN_DOWN, 0x0E0, "CKR_SESSION_HANDLE_INVALID, then: gone"),
        (LaneStartError("odd", 0x005), Action.REPLACE, 0x005, "CKR_SESSION_HANDLE_INVALID, then: odd"),
        (LaneStartError("9 times"), Action.REPLACE, REOPEN, "CKR_SESSION_HANDLE_INVALID, then: 9 times"),
        # Logged out: only a new process may give the PIN.
        (LaneStartError("no", 0x101), Action.REPLACE, 0x101, "CKR_SESSION_HANDLE_INVALID, then: no"),
        (ValueError("secret"), Action.REPLACE, 0, "played: ValueError while it signed"),
    ],
)
def test_session_that_cannot_be_opened_again(error: Exception, action: Action, code: int, message: str) -> None:
    session = PlayedSession(None, REOPEN, reopening=error)
    signed = run(session)
    assert text(signed) == ["a", "-", "-"]
    assert signed.refusals == {1: Refusal(action, code, message)}
    assert signed.healed == {REOPEN: 1}
    assert session.calls.count("reopen") == 1


@pytest.mark.parametrize("error", [ValueError("secret"), MemoryError(), KeyError("secret"), OSError(5, "secret")])
def test_what_nobody_expects_costs_the_lane_and_is_told_by_its_class(error: Exception) -> None:
    session = PlayedSession(None, RETRY, error)
    signed = run(session, "abcd")
    assert text(signed) == ["a", "-", "-", "-"]
    assert signed.refusals == {1: Refusal(Action.REPLACE, 0, f"played: {type(error).__name__} while it signed")}
    assert signed.healed == {RETRY: 1}
    assert signed.spoils_lane
    assert 0 < signed.service_s < 1
    signed = run(PlayedSession(signer=error))
    assert text(signed) == ["-", "-", "-"]
    assert set(signed.refusals) == {0}


def test_what_a_batch_tells_of_itself_is_sane() -> None:
    for answers in ([], [RETRY], [REOPEN] * 99, [CALLER, RETRY] * 9, [TOKEN_DOWN], [OSError()]):
        signed = run(PlayedSession(*answers), "abcdef")
        assert 0 < signed.service_s < 1
        assert all(count > 0 for count in signed.healed.values())
        assert sum(signed.healed.values()) <= HEALINGS_PER_BATCH
    empty = run(PlayedSession(), "")
    assert (empty.signatures, empty.refusals, empty.healed) == ([], {}, {})
    assert 0 <= empty.service_s < 1
