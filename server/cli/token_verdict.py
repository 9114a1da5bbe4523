"""What was found in the tokens, as reports: how they compare, and what is wrong with them. Pure."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from cryptography.hazmat.primitives.serialization import load_der_public_key

from pkix.algorithms import SIGNATURE_ALGORITHMS, key_algorithm
from server.cli.token_inspection import Inspection
from server.cli.token_report import Check, CheckName, KeyRow, TokenRow
from server.cli.token_source import Problem, ProblemKind
from server.keys.hierarchy import OCSP
from signer_pool.lane_config import SoftwareLaneConfig


def inventory(inspections: Sequence[Inspection], wanted: Mapping[str, str]) -> list[TokenRow]:
    """Describe every token and its keys, those that certmill needs first."""
    return [_row(one, _others(one, inspections), wanted) for one in inspections]


def judge(
    inspections: Sequence[Inspection], wanted: Mapping[str, str], certified: Mapping[str, bytes]
) -> list[Check]:
    """Return every check, token after token.

    `wanted`: the keys that certmill needs, name to URI; `certified`: SHA-256 of the
    SubjectPublicKeyInfo of those that have certificates, as the database has them.
    """
    checks: list[Check] = []
    for one in inspections:
        name = one.source.name
        if one.problem is not None:
            checks.append(_check(name, None, CheckName.OPEN, one.problem, ""))
            continue
        checks.append(_check(name, None, CheckName.OPEN, None, f"opens: {one.describes_itself}"))
        twins = [other.source.name for other in _others(one, inspections) if _place(other) == _place(one)]
        if twins:
            text = f"is the same token as {', '.join(twins)}: named twice it does not make two; remove one of them"
            checks.append(_check(name, None, CheckName.TOKENS, Problem(kind=ProblemKind.TOKEN, text=text), ""))
        for key, uri in wanted.items():
            checks += _judge_key(one, _others(one, inspections), key, uri, certified.get(key))
    return checks


def _judge_key(
    one: Inspection, others: Sequence[Inspection], key: str, uri: str, certified: bytes | None
) -> Iterable[Check]:
    name, spki_der = one.source.name, one.public_keys.get(key)
    if spki_der is None:
        having = [other.source.name for other in others if key in other.public_keys]
        problem = _why_missing(one, key, uri, having, is_certified=certified is not None)
        yield _check(name, key, CheckName.SIGN, problem, "")
        return
    probe = one.probes[key]
    told = f"signs with {probe.algorithm} ({probe.service_s * 1000:.1f} ms), and the signature verifies"
    yield _check(name, key, CheckName.SIGN, probe.problem, told)
    having = [other.source.name for other in others if key in other.public_keys]
    if having:
        different = [other.source.name for other in others if other.public_keys.get(key, spki_der) != spki_der]
        text = (
            f"is another key than on {', '.join(different)}: the same key must be on all tokens; copy it with the "
            "vendor's tool, and remove the wrong one"
        )
        differs = Problem(kind=ProblemKind.MISMATCH, text=text) if different else None
        yield _check(name, key, CheckName.TOKENS, differs, f"is the same key as on {', '.join(having)}")
    if certified is not None:
        holder = "the OCSP responder's certificate" if key == OCSP else f"the {key} CA certificate"
        text = (
            f"is not the key of {holder} in the database: connect the token that this certmill "
            "was initialised with, or correct [[tokens]] and [keys]"
        )
        right = certified == hashlib.sha256(spki_der).digest()
        wrong = None if right else Problem(kind=ProblemKind.MISMATCH, text=text)
        yield _check(name, key, CheckName.CERTIFICATE, wrong, f"is the key of {holder}")


def _why_missing(one: Inspection, key: str, uri: str, having: Sequence[str], *, is_certified: bool) -> Problem:
    for note in one.notes:  # what the session found unusable, and why
        if f"key {key!r} needs" in note:
            return Problem(kind=ProblemKind.MECHANISM, text=note)
        if f"are called {key!r};" in note:
            return Problem(kind=ProblemKind.KEY, text=note)
    if having:
        remedy = f"copy it from {having[0]} with the vendor's backup or cloning tool"
    elif is_certified:
        remedy = (
            "the database needs it: connect the token that this certmill was initialised with, or correct "
            "[[tokens]] and [keys]"
        )
    else:
        remedy = "make it with the vendor's tool, or let `certmill init` make it; or correct [keys]"
    text = f"missing: no private key {uri} with its public key beside it; {remedy}"
    return Problem(kind=ProblemKind.KEY, text=text)


def _check(token: str, key: str | None, check: CheckName, problem: Problem | None, ok_text: str) -> Check:
    return Check(
        token=token,
        key=key,
        check=check,
        ok=problem is None,
        problem=None if problem is None else problem.kind,
        text=ok_text if problem is None else problem.text,
    )


def _others(one: Inspection, inspections: Sequence[Inspection]) -> list[Inspection]:
    """Return the other tokens that could be opened."""
    return [other for other in inspections if other is not one and other.problem is None]


def _place(one: Inspection) -> tuple[object, ...]:
    """Return what tells one physical token from another."""
    lane = one.source.lane
    env = None if isinstance(lane, Problem) else lane.env
    return one.describes_itself, one.facts.slot_id, env


def _row(one: Inspection, others: Sequence[Inspection], wanted: Mapping[str, str]) -> TokenRow:
    source, facts = one.source, one.facts
    is_software = isinstance(source.lane, SoftwareLaneConfig)
    names = [name for name in wanted if name in one.public_keys]
    names += sorted(one.public_keys.keys() - wanted.keys())
    return TokenRow(
        name=source.name,
        uri=source.uri,
        module=source.module,
        lanes=source.lanes,
        problem=one.problem,
        slot=None if is_software or one.problem is not None else facts.slot_id,
        label=facts.label or source.label,
        manufacturer=facts.manufacturer,
        model=facts.model,
        serial=facts.serial,
        hardware=facts.hardware,
        firmware=facts.firmware,
        algorithms=list(SIGNATURE_ALGORITHMS) if is_software and one.problem is None else list(facts.mechanisms),
        keys=[_key_row(one, others, name, needed=name in wanted) for name in names],
        missing_keys=[name for name in wanted if name not in one.public_keys] if one.problem is None else [],
        notes=list(one.notes),
    )


def _key_row(one: Inspection, others: Sequence[Inspection], name: str, *, needed: bool) -> KeyRow:
    spki_der = one.public_keys[name]
    return KeyRow(
        name=name,
        kind=key_algorithm(load_der_public_key(spki_der)).value,
        spki_sha256=hashlib.sha256(spki_der).hexdigest(),
        needed=needed,
        same_on=[other.source.name for other in others if other.public_keys.get(name) == spki_der],
        lacking_on=[other.source.name for other in others if name not in other.public_keys],
        differs_on=[other.source.name for other in others if other.public_keys.get(name, spki_der) != spki_der],
    )
