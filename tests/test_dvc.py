"""dvc.yaml: what it declares is true of the code, and a change reruns what depends on it and nothing else."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dvc.repo import Repo
from omegaconf import OmegaConf

from mum_model.config import compose
from tests.conftest import TINY
from tests.first_party import MODULES, ROOT, closure

STAGES = ("prepare", "pretrain", "evaluate", "export")
SAYS_NOTHING_OF_RESULTS = {"mum_model", "mum_model.errors", "mum_model.files", "mum_model.data", "mum_model.config"}


@pytest.fixture(scope="module")
def declared():
    """Stages by name, parsed and validated by DVC."""
    with Repo(str(ROOT)) as repo:
        yield {stage.name: stage for stage in repo.index.stages}


def of_repository(outs):
    return {Path(out.fs_path).relative_to(ROOT).as_posix() for out in outs}


def test_params_are_the_composed_configuration():
    params = OmegaConf.load(ROOT / "params.yaml")
    assert params == compose(), "renew it by `mum prepare --cfg job --resolve > params.yaml`"


def test_graph(declared):
    with Repo(str(ROOT)) as repo:
        edges = {(upstream.name, stage.name) for stage, upstream in repo.index.graph.edges}
    assert declared.keys() == set(STAGES)
    reads_the_dataset = {("prepare", stage) for stage in ("pretrain", "evaluate", "export")}
    assert edges == reads_the_dataset | {("pretrain", "evaluate"), ("pretrain", "export")}


def test_metrics_and_plots_are_among_the_outputs(declared):
    with Repo(str(ROOT)) as repo:
        metrics = {Path(out.fs_path).name for out in repo.index.metrics}
    assert metrics == {"metrics.json"}
    assert {Path(out).name for out in of_repository(o for o in declared["pretrain"].outs if o.plot)} == {
        "pictures",
        "training.csv",
    }


@pytest.mark.parametrize("stage", STAGES)
def test_code_of_a_stage_is_what_it_imports(declared, stage):
    code = {ROOT / path for path in of_repository(declared[stage].deps) if path.startswith("mum_model/")}
    needed = {MODULES[name] for name in closure(f"mum_model.{stage}") - SAYS_NOTHING_OF_RESULTS}
    assert {path for path in needed if not code & {path, *path.parents}} == set(), "add it to the stage's deps"
    assert {path for path in code if not needed & {path, *path.rglob("*.py")}} == set(), (
        "no module that the stage needs"
    )


# From here on with a copy of the project and tiny parameters.


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A git repository with the project's DVC files and code, everything run once."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "mum_model", root / "mum_model", ignore=shutil.ignore_patterns("__pycache__"))
    (root / ".dvc").mkdir()
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "dvc.yaml"):
        shutil.copy(ROOT / name, root / name)
    (root / "params.yaml").write_text(OmegaConf.to_yaml(compose(TINY), resolve=True))
    commit(root, "init", "--quiet")
    assert ran(dvc(root, "repro")) == set(STAGES)
    commit(root, "add", "--all")
    commit(root, "commit", "--quiet", "--message", "run")
    return root


def environment():
    """With `mum` found as a person's shell would find it."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    git = {f"GIT_{who}_{what}": f"{what}@test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return {**os.environ, **git, "PATH": path}


def commit(root, *arguments):
    subprocess.run(["git", *arguments], cwd=root, env=environment(), check=True)


def dvc(root, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def ran(output):
    return set(re.findall(r"Running stage '(\w+)'", output))


def change(root, **values):
    params = OmegaConf.load(root / "params.yaml")
    for name, value in values.items():
        OmegaConf.update(params, name.replace("__", "."), value)
    (root / "params.yaml").write_text(OmegaConf.to_yaml(params))


@pytest.mark.slow
def test_second_repro_runs_nothing(project):
    assert ran(dvc(project, "repro")) == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"machine__workers": 3, "serve__http_port": 9}, set()),
        ({"evaluate__figures": 1}, {"evaluate"}),
        ({"export__latency__runs": 2}, {"export"}),
        ({"pretrain__learning_rate": 1e-4}, {"pretrain", "evaluate", "export"}),
        ({"data__jpeg_quality": 80}, set(STAGES)),
    ],
    ids=["operational", "evaluate", "export", "pretrain", "data"],
)
def test_changed_parameter_reruns_what_depends_on_it(project, changed, expected):
    commit(project, "checkout", "--quiet", "--", ".")
    dvc(project, "checkout")
    change(project, **changed)
    assert ran(dvc(project, "repro")) == expected


@pytest.mark.slow
def test_experiment_composes_the_parameters_anew(project):
    commit(project, "checkout", "--quiet", "--", ".")
    dvc(project, "checkout")
    overrides = [argument for override in TINY for argument in ("--set-param", override)]
    output = dvc(project, "exp", "run", *overrides, "--set-param", "export.latency.runs=3")
    assert ran(output) == {"export"}
    assert OmegaConf.load(project / "params.yaml") == compose([*TINY, "export.latency.runs=3"])
    assert "loss" in dvc(project, "metrics", "show")
    assert "training.csv" in dvc(project, "plots", "show", "--json")


@pytest.mark.slow
def test_a_sweep_waits_in_the_queue_and_runs(project):
    commit(project, "checkout", "--quiet", "--", ".")
    dvc(project, "checkout")
    overrides = [argument for override in TINY for argument in ("--set-param", override)]
    sweep = ["--set-param", "pretrain.learning_rate=1e-3,3e-3", "pretrain"]
    queued = dvc(project, "exp", "run", "--queue", *overrides, *sweep)
    assert len(re.findall(r"Queued experiment '", queued)) == 2, queued
    dvc(project, "exp", "run", "--run-all")
    table = csv.DictReader(dvc(project, "exp", "show", "--csv").splitlines())
    losses = {row["pretrain.learning_rate"]: row["loss"] for row in table}
    assert len({losses["0.001"], losses["0.003"]}) == 2


@pytest.mark.slow
def test_interrupted_training_goes_on(project):
    commit(project, "checkout", "--quiet", "--", ".")
    dvc(project, "checkout")
    change(project, pretrain__steps=400, pretrain__checkpoint_every=20)
    command = [sys.executable, "-m", "dvc", "repro", "pretrain"]
    settings = {"cwd": project, "env": environment(), "start_new_session": True, "preexec_fn": hear_interrupts}
    with subprocess.Popen(command, **settings) as repro:
        wait_for(project / "outputs/run/checkpoints/step-00000040/training.json")
        os.killpg(repro.pid, signal.SIGINT)
    assert repro.returncode != 0
    output = dvc(project, "repro", "pretrain")
    assert re.search(r"resuming at step \d+", output), output
    steps = [int(line.split(",")[0]) for line in (project / "outputs/run/training.csv").read_text().splitlines()[1:]]
    assert steps == list(range(1, 401)), "the records before the interruption are gone"


def hear_interrupts():
    """A shell starts its background jobs deaf to SIGINT, and their children inherit it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(path, seconds=120):
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear in {seconds} s"
        time.sleep(0.05)
