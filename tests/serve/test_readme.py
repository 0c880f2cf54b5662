"""What the README says to type is typed here, against a server at another address."""

import re
import shlex
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from pictures import encoded, picture

from tests.first_party import ROOT


@pytest.fixture
def section(server, tmp_path, monkeypatch):
    """Code blocks of the README's part on the endpoint, in a folder with the photos that they name."""
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.jpg", "photos/c.jpg"):
        (tmp_path / name).write_bytes(encoded(picture(48, 64)))
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text().replace("localhost:8080", server.url.removeprefix("http://"))
    endpoint = text[text.index("An endpoint for tensors") : text.index("## Reproduce")]
    return dict(re.findall(r"```(bash|python)\n(.*?)```", endpoint, re.DOTALL))


def test_commands(section):
    commands = [line for line in section["bash"].splitlines() if line != "mum serve &"]
    assert len(commands) == 3
    for command in commands:
        words = shlex.split(command)
        words = [sys.executable, "-m", "mum_model.cli", *words[1:]] if words[0] == "mum" else [*words, "--fail", "-sS"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
    assert pq.read_table("features.parquet").num_rows == 1


def test_python(section):
    names = {}
    exec(section["python"], names)
    rows, columns = names["features"]["grids"][0]
    assert names["features"]["patch_tokens"].shape[:2] == (1, rows * columns)
    assert np.isfinite(names["features"]["cls"]).all()
