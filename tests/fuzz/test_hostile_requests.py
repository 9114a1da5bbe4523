"""Whatever is sent for a certificate or a batch: a 4xx, no defect in the log, memory flat."""

from pathlib import Path

from loadtests.fuzz_input import fuzz

CASES = 1500


def test_hostile_requests_are_the_callers_fault(tmp_path: Path) -> None:
    findings = fuzz(tmp_path / "home", CASES, seed=CASES, quiet=True)
    assert not findings.wrong
    assert sum(findings.answers.values()) == CASES
    assert {status for _, status in findings.answers} >= {201, 400, 422}, "every depth is reached"
