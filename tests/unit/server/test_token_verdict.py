"""What is said of tokens that were looked at."""

from server.cli.token_inspection import Inspection
from server.cli.token_report import CheckName
from server.cli.token_source import ProblemKind, TokenSource
from server.cli.token_verdict import judge
from signer_pool.lane import TokenFacts
from signer_pool.lane_config import Pkcs11LaneConfig


def inspection(name: str, *, slot_id: int, env: dict[str, str] | None = None) -> Inspection:
    lane = Pkcs11LaneConfig(module_path="/m.so", token_label="ca", pin="1", name=name, env=env or {})
    source = TokenSource(name=name, uri="pkcs11:token=ca", module="/m.so", label="ca", lanes=1, lane=lane)
    return Inspection(source=source, describes_itself="token 'ca', serial 7", facts=TokenFacts(slot_id=slot_id))


def test_token_that_goes_by_two_names_is_no_second_token() -> None:
    elsewhere = inspection("d", slot_id=1, env={"SOFTHSM2_CONF": "/elsewhere"})
    tokens = [inspection("a", slot_id=1), inspection("b", slot_id=1), inspection("c", slot_id=2), elsewhere]
    failed = [check for check in judge(tokens, {}, {}) if not check.ok]
    assert [(check.token, check.check, check.problem) for check in failed] == [
        ("a", CheckName.TOKENS, ProblemKind.TOKEN),
        ("b", CheckName.TOKENS, ProblemKind.TOKEN),
    ]
    assert failed[0].text.startswith("is the same token as b:")
