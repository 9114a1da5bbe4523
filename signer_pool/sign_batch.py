"""A lane's work: sign one TBS after the other, and heal by itself what can be healed in this process.

What the token refuses is classified by its CKR (signer_pool/ckr.py). `retry` and `reopen` are dealt with here, a
few times for each batch; a TBS that nobody can sign is refused alone; anything else ends the batch, and the pool
decides about lane and token. Whatever else is raised below is the module's doing, or a bug: it costs the lane, and
the signatures made before it are kept.
"""

import time
from collections import Counter

from signer_pool.ckr import Action, Ckr, classify, classify_signing
from signer_pool.errors import LaneStartError, PinRejected, TokenRefused
from signer_pool.lane import Refusal, Sign, Signed, SigningSession

HEALINGS_PER_BATCH = 4
_HEALED_HERE = {Action.RETRY, Action.REOPEN}


def sign_batch(session: SigningSession, request: Sign) -> Signed:
    """Sign every TBS; those after a refusal that spoils the lane are not tried. Raises nothing."""
    started = time.perf_counter()
    signatures: list[bytes] = []
    refusals: dict[int, Refusal] = {}
    healer = _Healer(session)
    sign = None
    while len(signatures) < len(request.tbs):
        try:
            if sign is None:
                sign = session.signer(request.key, request.algorithm)
            signatures.append(sign(request.tbs[len(signatures)]))
            continue
        except TokenRefused as error:
            refusal = healer.heal(error)
        except Exception as error:
            refusal = _unexpected(session, error)
        if refusal is None:
            sign = None
            continue
        refusals[len(signatures)] = refusal
        missing = 1 if refusal.action is Action.CALLER else len(request.tbs) - len(signatures)
        signatures += [b""] * missing
    return Signed(request.batch_id, signatures, refusals, time.perf_counter() - started, dict(healer.healed))


def _unexpected(session: SigningSession, error: Exception) -> Refusal:
    """Name an error by its class alone: its message may hold what the module was given."""
    return Refusal(Action.REPLACE, 0, f"{session.token}: {type(error).__name__} while it signed")


class _Healer:
    """Counts what it heals, so that a token which is past healing costs a batch little time."""

    def __init__(self, session: SigningSession) -> None:
        self._session = session
        self.healed: Counter[int] = Counter()

    def heal(self, error: TokenRefused) -> Refusal | None:
        """Make the session fit for another try and return None, or say what is to be done instead."""
        ckr = classify_signing(error.ckr)
        if ckr.action not in _HEALED_HERE:
            return Refusal(ckr.action, ckr.code, str(error))
        if self.healed.total() >= HEALINGS_PER_BATCH:
            return Refusal(Action.REPLACE, ckr.code, f"{error}, {HEALINGS_PER_BATCH + 1} times in one batch")
        self.healed[ckr.code] += 1
        if ckr.action is Action.REOPEN:
            return self._reopen(ckr)
        return None

    def _reopen(self, ckr: Ckr) -> Refusal | None:
        try:
            self._session.reopen()
        except PinRejected as error:
            return Refusal(Action.NEVER, error.code, str(error))
        except LaneStartError as error:
            # A token that was pulled out answers "no such session" first, and is found missing only here.
            gone = error.code and classify(error.code).action is Action.TOKEN_DOWN
            action = Action.TOKEN_DOWN if gone else Action.REPLACE
            return Refusal(action, error.code or ckr.code, f"{ckr.name}, then: {error}")
        except Exception as error:
            return _unexpected(self._session, error)
        return None
