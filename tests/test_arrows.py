"""The arrows between the rooms: pipelines -> components -> stages -> {data, model}, never back and never sideways."""

import pytest

from tests.first_party import MODULES, closure, imports

FOUNDATION = ("mum_model.config", "mum_model.errors", "mum_model.files")
STAGES = ("mum_model.prepare", "mum_model.pretrain", "mum_model.evaluate", "mum_model.export", "mum_model.serve")
MAY_IMPORT = {
    "pipelines": ("components", "mum_model.config", "mum_model.errors"),
    "components": (*STAGES[:4], *FOUNDATION),
    **dict.fromkeys(STAGES, ("mum_model.data", "mum_model.model", "mum_model.inference", *FOUNDATION)),
    "mum_model.data": FOUNDATION,
    "mum_model.model": FOUNDATION,
    "mum_model.cli": FOUNDATION,
    "mum_model.summary": ("mum_model.evaluate",),  # the headings of its numbers
    "mum_model.inference": ("mum_model.errors",),
    "mum_model.config": ("mum_model.errors",),
    "mum_model.files": ("mum_model.errors",),
    "mum_model.errors": (),
    "mum_model": (),
}
"""A room (a package or module) and the rooms that its modules may import beside each other."""

ORCHESTRATORS = {"kfp", "kfp_server_api", "kubeflow", "model_registry", "dvc", "dvc_data", "dvc_objects", "kubernetes"}
LEARNING = {"torch", "torchvision", "timm", "deepspeed"}


def within(name, rooms):
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def room_of(module):
    return max((room for room in MAY_IMPORT if within(module, [room])), key=len)


def packages(names):
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_what_its_room_may(module):
    room = room_of(module)
    others = {name for name in imports(module) & MODULES.keys() if room_of(name) != room}
    assert [name for name in others if not within(name, MAY_IMPORT[room])] == []


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module) == "components"])
def test_components_call_stages_and_not_their_parts(module):
    assert [name for name in imports(module) if within(name, STAGES) and name not in STAGES] == []


@pytest.mark.parametrize("module", MODULES)
def test_orchestrators_and_learning_stay_apart(module):
    forbidden = ORCHESTRATORS if within(module, ["mum_model"]) else LEARNING
    assert packages(imports(module)) & forbidden == set()


@pytest.mark.parametrize(
    "module", [module for module in MODULES if within(module, ["mum_model.serve", "mum_model.cli"])]
)
def test_serving_needs_no_torch(module):
    needed = {name for own in closure(module) for name in imports(own)}
    assert packages(needed) & LEARNING == set()
