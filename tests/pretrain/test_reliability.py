"""What may happen to a training: kills, preemption, another number of processes, damaged files, bad steps."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
from safetensors import safe_open

from mum_model.pretrain.checkpoints import CheckpointError, Checkpoints, Progress, read_checkpoint
from mum_model.pretrain.telemetry import read_metrics
from tests.conftest import run_mum
from tests.pretrain import kill_test
from tests.pretrain.runs import command, losses, torchrun, torchrun_command, wait_for


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_by_bit(capsys):
    assert kill_test.main(kills=2, seed=1, processes=1, overrides=[]) == 0
    assert "2/2 identical" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [((2, 3), (1, 0)), ((1, 0), (2, 1)), ((4, 2), (2, 3))])
def test_resuming_on_other_processes_and_zero_stages(tiny_dataset, tmp_path, before, after):
    """Half the training on some ranks and ZeRO stage, the rest on others: the losses of an unbroken one.

    The tolerance is that of float32 sums in another order.
    """

    def train(run, processes, stage):
        settings = ["pretrain.frames=16", "pretrain.pack=4", f"pretrain.zero_stage={stage}"]
        return torchrun("pretrain", processes, command(run, tiny_dataset, *settings))

    unbroken = tmp_path.parent / "unbroken-of-four-packs"
    if not unbroken.exists():
        train(unbroken, 1, 0)
    train(tmp_path, *before)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000006")
    assert "resuming at step 3" in train(tmp_path, *after)
    assert losses(tmp_path / "run") == pytest.approx(losses(unbroken / "run"), rel=1e-4)


@pytest.mark.slow
def test_sigterm_finishes_the_step_and_writes_a_checkpoint(tiny_dataset, tmp_path):
    """Preempted at some step, continued by the same command: the losses of an unbroken run, in float64, all digits."""
    processes = 2
    settings = ["pretrain.steps=40", "pretrain.pack=4", "pretrain.checkpoint_every=1000"]
    again = torchrun_command("pretrain", processes, command(tmp_path, tiny_dataset, *settings))
    child = subprocess.Popen(again, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(tmp_path / "run" / "metrics.jsonl")
    while not (tmp_path / "run" / "metrics.jsonl").read_text():
        time.sleep(0.01)
    for rank in ranks_of(child):
        rank.terminate()
    output, _ = child.communicate(timeout=120)
    assert child.returncode != 0
    assert re.search(r"exitcode *: 75", output), output  # as torchrun tells it
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    assert 0 < json.loads((checkpoint / "training.json").read_text())["step"] < 40
    assert not (tmp_path / "run" / "encoder").exists()
    assert "resuming at step" in torchrun("pretrain", processes, again[again.index("pretrain") + 1 :])
    torchrun("pretrain", processes, command(tmp_path / "unbroken", tiny_dataset, *settings))
    assert losses(tmp_path / "run") == losses(tmp_path / "unbroken" / "run")


def ranks_of(launcher):
    return [child for child in psutil.Process(launcher.pid).children() if "mum_model.cli" in child.cmdline()]


@pytest.mark.slow
def test_alone_the_exit_status_of_a_preemption_is_75(tiny_dataset, tmp_path):
    arguments = [sys.executable, "-m", "mum_model.cli", "pretrain"]
    child = subprocess.Popen([*arguments, *command(tmp_path, tiny_dataset, "pretrain.steps=500")])
    wait_for(tmp_path / "run" / "checkpoints")
    child.terminate()
    assert child.wait(timeout=60) == 75


@pytest.mark.slow
def test_a_rank_that_dies_takes_the_job_down(tiny_dataset, tmp_path):
    settings = ["pretrain.steps=2000", "pretrain.pack=4", "pretrain.checkpoint_every=1000"]
    arguments = torchrun_command("pretrain", 2, command(tmp_path, tiny_dataset, *settings))
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(tmp_path / "run" / "metrics.jsonl")
    victim = next(rank for rank in ranks_of(child) if rank.environ()["RANK"] == "1")
    victim.kill()
    output, _ = child.communicate(timeout=60)
    assert child.returncode != 0
    assert re.search(r"rank *: 1 ", output)
    assert "SIGKILL" in output
    assert str(victim.pid) in output


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_passed_over(tiny_run, tiny_dataset, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-00000006" / "state.safetensors"
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes(content)
    output = run_mum("pretrain", *command(tmp_path, tiny_dataset))
    assert f"{newest}: its content is not what was written" in output
    assert "resuming at step 3" in output
    assert losses(tmp_path / "run") == losses(tiny_run)
    assert read_checkpoint(newest.parent)[0].step == 6


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "state.safetensors").unlink(), "missing"),
        (lambda folder: (folder / "training.json").write_text("{}"), "training.json"),
        (lambda folder: (folder / "training.json").unlink(), "training.json"),
        (lambda folder: (folder / "state.safetensors").write_bytes(b""), "wrong hash"),
    ],
)
def test_what_is_no_whole_checkpoint_is_refused(tiny_run, tmp_path, damage, message):
    folder = shutil.copytree(tiny_run / "checkpoints" / "step-00000003", tmp_path / "step-00000003")
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)


def test_which_checkpoints_stay(tmp_path):
    """The newest two, every fifth, and the best on held-out scenes."""
    checkpoints = Checkpoints(tmp_path, "training", keep=2, keep_every=5)
    for step in range(1, 13):
        validation_loss = 0.01 if step == 3 else 1 / step
        checkpoints.save(Progress(step, "training", validation_loss), {}, lambda folder: None)
        checkpoints.wait()
    assert [int(path.name[5:]) for path in sorted(tmp_path.iterdir())] == [3, 5, 10, 11, 12]


def test_checkpoints_of_another_training_make_way(tmp_path):
    """However far it was, and however low its loss: what counts is what this training can go on from."""
    for training, steps, loss in (("before", (8, 9), 0.1), ("now", (1, 2, 3), 0.5)):
        checkpoints = Checkpoints(tmp_path, training, keep=2, keep_every=None)
        for step in steps:
            checkpoints.save(Progress(step, training, loss / step), {}, lambda folder: None)
            checkpoints.wait()
    assert [int(path.name[5:]) for path in sorted(tmp_path.iterdir())] == [2, 3]
    assert checkpoints.newest()[0].step == 3


def test_a_checkpoint_in_an_unfinished_folder_is_none(tiny_run, tmp_path):
    shutil.copytree(tiny_run / "checkpoints" / "step-00000003", tmp_path / ".step-00000009.partial")
    assert Checkpoints(tmp_path, "any", keep=1, keep_every=None).newest() is None


@pytest.mark.slow
def test_a_full_disk_is_named(tiny_dataset, tmp_path):
    """A limit on the size of files stands for the disk: the state does not fit, metrics do."""
    limited = f"""
        import resource, signal, sys
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        sys.argv = ["mum", "pretrain", *{command(tmp_path, tiny_dataset)!r}]
        from mum_model.cli import main
        main()
    """
    done = run_python(limited)
    assert done.returncode == 2, done.stderr
    assert f"{tmp_path / 'run' / 'checkpoints'}: the checkpoint could not be written" in done.stderr
    assert not [path for path in (tmp_path / "run" / "checkpoints").iterdir() if not path.name.startswith(".")]


def run_python(script):
    arguments = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False, env=os.environ)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "part"), [(0, "loss"), (0, "gradient"), (1, "loss"), (3, "loss")])
def test_a_bad_step_is_skipped_counted_and_kept(tiny_dataset, tmp_path, stage, part):
    """A loss or gradient that is not finite at step 2: the weights of the step before go on."""
    faulty = f"""
        import sys, torch
        import mum_model.model
        from mum_model.pretrain.module import LossModule

        real, count = LossModule.forward, 0

        def forward(self, *arguments):
            global count
            loss = real(self, *arguments)
            count += self.training
            if count == 3 and self.training:
                if {part!r} == "loss":
                    return loss * float("nan")
                loss.register_hook(lambda gradient: gradient * float("inf"))
            return loss

        LossModule.forward = forward
        sys.argv = ["mum", "pretrain", *{command(tmp_path, tiny_dataset, f"pretrain.zero_stage={stage}")!r}]
        from mum_model.cli import main
        main()
    """
    done = run_python(faulty)
    assert done.returncode == 0, done.stderr
    assert "step 2 was skipped" in done.stdout
    assert ("pack 0 of rank 0" if part == "loss" else "the gradient alone") in done.stdout
    records = read_metrics(tmp_path / "run")
    assert [record.step for record in records] == [1, 2, 4, 5, 6]
    assert [record.skipped for record in records] == [0, 0, 1, 1, 1]
    kept = tmp_path / "run" / "skipped" / "step-00000002-pack-0.safetensors"
    with safe_open(kept, "pt") as file:
        assert file.get_tensor("images").shape == (8, 3, 48, 48)
        about = file.metadata()
    assert about["rank"] == "0"
    assert all(name in done.stdout for name in about["frames"].split("\n"))


@pytest.mark.slow
def test_too_many_bad_steps_stop_the_training(tiny_dataset, tmp_path):
    settings = ["pretrain.learning_rate=1e30", "pretrain.warmup=0.0", "pretrain.max_skipped=1"]
    output = run_mum("pretrain", *command(tmp_path, tiny_dataset, *settings), status=2)
    assert "More than pretrain.max_skipped=1" in output or "more than pretrain.max_skipped=1" in output
    assert "room-0-" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "encoder").exists()
