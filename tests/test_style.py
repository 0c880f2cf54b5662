"""Lint, layout and types, held like any other behaviour."""

import subprocess
import sys

import pytest

from tests.first_party import ROOT


@pytest.mark.parametrize(
    "command", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]], ids=["lint", "format", "types"]
)
def test_style(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"`{' '.join(command)}` in {ROOT}:\n{done.stdout}{done.stderr}"
