"""The kill test: a training killed at random points and started again gives the losses of an unbroken one, bit by bit.

    python -m tests.pretrain.kill_test --kills 20

Each of the runs is killed by SIGKILL, all its processes at once, at a random moment: in a step, while a checkpoint is
being written, before the first one, after the last. Then the same command is given again. Compared are the losses as
written (float64, all digits) and every byte of the weights at the end.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from tests.conftest import TINY, paths

STEPS = 20
OVERRIDES = [f"pretrain.steps={STEPS}", "pretrain.checkpoint_every=3", "pretrain.log_every=1"]


def command(dataset: Path, run: Path, processes: int, *overrides: str) -> list[str]:
    """A training of a few steps, on its own folder."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--rdzv-backend=c10d"]
        launcher += ["--rdzv-endpoint=localhost:0"]
    stage = ["-m", "mum_model.cli", "pretrain", *TINY, *OVERRIDES, *paths(run.parent)]
    return [*launcher, *stage, f"paths.dataset={dataset}", f"paths.run={run}", *overrides]


def outcome(run: Path) -> tuple[list[tuple[int, float]], bytes]:
    """Losses by step, and the weights."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines], (run / "model" / "model.safetensors").read_bytes()


def kill_at(arguments: list[str], run: Path, steps: int, delay: float) -> bool:
    """Start, wait for so many steps and a moment more, and kill; False when it had ended before."""
    child = subprocess.Popen(
        arguments, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
    )
    while child.poll() is None and steps_done(run) < steps:
        time.sleep(0.002)
    time.sleep(delay)
    ended = child.poll() is not None
    if not ended:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    return not ended


def steps_done(run: Path) -> int:
    """Lines of metrics so far."""
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def main(kills: int, seed: int, processes: int, overrides: list[str]) -> int:
    """Run the test.

    Args:
        kills: Trainings to kill, each once.
        seed: Decides the moments.
        processes: Of each training.
        overrides: Further settings.

    Returns:
        How many did not end as the unbroken one.
    """
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare = [sys.executable, "-m", "mum_model.cli", "prepare", *TINY, *paths(root)]
        subprocess.run(prepare, check=True, capture_output=True)
        dataset = root / "dataset"
        subprocess.run(command(dataset, root / "unbroken", processes, *overrides), check=True, capture_output=True)
        expected = outcome(root / "unbroken")
        assert len(expected[0]) == STEPS
        wrong = 0
        for i in tqdm(range(kills), desc="kill", unit="run"):
            run = root / f"run-{i}"
            steps, delay = moments.randrange(STEPS), moments.random() * 0.1
            again = command(dataset, run, processes, *overrides)
            killed = kill_at(again, run, steps, delay)
            subprocess.run(again, check=True, capture_output=True)
            same = outcome(run) == expected
            wrong += not same
            tqdm.write(
                f"run {i}: {'killed' if killed else 'ended before the kill'} {delay * 1000:.0f} ms after step {steps}: "
                + ("identical" if same else "DIFFERENT")
            )
    print(f"{kills - wrong}/{kills} identical")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="trainings to kill (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments (%(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="of each training (%(default)s)")
    parser.add_argument("overrides", nargs="*", help="further settings, for instance pretrain.zero_stage=3")
    options = parser.parse_args()
    sys.exit(min(main(options.kills, options.seed, options.processes, options.overrides), 1))
