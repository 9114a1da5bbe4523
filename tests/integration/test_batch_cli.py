"""`certmill batch …` against a whole certmill: handed in over a bad line, followed, fetched."""

import csv
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from server.config import CLIENT_VARIABLES
from tests.support.ca import make_csr
from tests.support.certmill import RunningCertmill
from tests.support.rough_api import rough_api

Run = Callable[..., "subprocess.CompletedProcess[str]"]
GOOD = [f"a{number}.batch.example" for number in range(5)]


@pytest.fixture
def run(running: RunningCertmill) -> Run:
    def run(
        *arguments: str | Path, url: str = f"https://127.0.0.1:{running.api_port}"
    ) -> "subprocess.CompletedProcess[str]":
        demo = running.home / "clients/demo"
        where = url, str(demo / "cert.pem"), str(demo / "key.pem"), str(running.home / "ca/root.pem")
        return subprocess.run(
            [sys.executable, "-m", "server", "batch", *arguments],
            env={**os.environ, **dict(zip(CLIENT_VARIABLES, where, strict=True))},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Five rows that are right and one that is not, as Excel writes them."""
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file, delimiter=";")
        table.writerow(["reference", "csr"])
        table.writerows([name, make_csr(name).decode()] for name in GOOD)
        table.writerow(["ຜິດ", "no request"])
    return path


def test_one_batch_whatever_gets_lost(run: Run, running: RunningCertmill, rows: Path, tmp_path: Path) -> None:
    with rough_api(running, "busy", "lost") as api:
        handed_in = run("submit", rows, "--profile", "tls-server", "--json", url=api.url)
        assert handed_in.returncode == 0, handed_in.stderr
        assert len(api.keys) == 1
    batch = json.loads(handed_in.stdout)["id"]
    watched = run("watch", batch)
    assert watched.returncode == 1  # a row failed
    assert "is done: 6 rows; 5 issued, 1 failed" in watched.stdout
    listed = json.loads(run("list", "--json").stdout)["batches"]
    assert [one["id"] for one in listed].count(batch) == 1
    assert len([one for one in listed if one["rows"] == 6]) == 1

    fetched = run("fetch", batch, "--format", "csv", "-o", tmp_path / "results.csv")
    assert fetched.returncode == 0, fetched.stderr
    results = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text("utf-8-sig"))))
    assert [one["reference"] for one in results] == [*GOOD, "ຜິດ"]
    assert [one["state"] for one in results] == ["issued"] * 5 + ["failed"]
    assert run("fetch", batch, "-o", tmp_path / "results.zip").returncode == 0
    assert zipfile.ZipFile(tmp_path / "results.zip").testzip() is None


def test_a_dry_run_issues_nothing(run: Run, running: RunningCertmill, rows: Path) -> None:
    before = len(running.api("GET", f"/v1/certificates?dns_name={GOOD[0]}").json["certificates"])
    done = run("submit", rows, "--profile", "tls-server", "--dry-run", "--watch", "--json")
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["state"], last["checked"], last["failed"], last["issued"]) == ("done", 5, 1, 0)
    assert len(running.api("GET", f"/v1/certificates?dns_name={GOOD[0]}").json["certificates"]) == before


def test_refusals_of_batches_are_told(run: Run, rows: Path) -> None:
    refused = run("submit", rows, "--profile", "no-such")
    assert refused.returncode == 1
    assert "no-such" in refused.stderr
    assert run("watch", "0" * 32).returncode == 1
    assert [path.name for path in rows.parent.iterdir()] == ["rows.csv"]
