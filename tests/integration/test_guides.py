"""The commands that docs/api.md prints do what it says, one after the other, as somebody would copy them."""

import re
import shutil
import subprocess
import zipfile
from pathlib import Path

from cryptography import x509

from tests.support.certmill import RunningCertmill

GUIDE = Path(__file__).parents[2] / "docs/api.md"


def test_the_api_guide_can_be_followed(running: RunningCertmill, tmp_path: Path) -> None:
    assert shutil.which("jq"), "jq is missing: deploy/bootstrap guide"
    (tmp_path / "var").symlink_to(running.home)
    commands = "\n".join(re.findall(r"^```sh\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE))
    script = commands.replace("127.0.0.1:8443", f"127.0.0.1:{running.api_port}")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "/docs#" not in done.stdout, "a problem"
    old, new = (x509.load_pem_x509_certificate((tmp_path / f"{name}.pem").read_bytes()) for name in ("www", "new"))
    assert (old.subject, old.serial_number != new.serial_number) == (new.subject, True)
    assert done.stdout.count('"state":"checked"') == 3
    assert len(zipfile.ZipFile(tmp_path / "results.zip").namelist()) == 4
