"""DeepSpeed: the process group, the engine, and the whole state out of it and back, whatever the ZeRO stage."""

import atexit
import os
import socket
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import deepspeed
import deepspeed.ops
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
)
from omegaconf import DictConfig
from torch import Tensor, nn

from mum_model.errors import UserError
from mum_model.pretrain.module import LossModule
from mum_model.pretrain.schedule import parameter_groups

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter."""


def join_process_group(timeout_seconds: float) -> None:
    """Join the processes that torchrun started; a process started alone is a group of one.

    The group is left when the process ends, not when a training does: Hydra's multirun has several in one. (With
    DeepSpeed's own ending alone, processes now and then aborted at exit.)

    Args:
        timeout_seconds: How long a collective waits for a process that does not come before it ends the job.
    """
    if torch.distributed.is_initialized():
        return
    if "WORLD_SIZE" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in alone.items()})
    if not torch.cuda.is_available():
        # gloo carries the gradients; DeepSpeed would compile an operator of its own for a minute at the first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False, timeout=timedelta(seconds=timeout_seconds))
    atexit.register(torch.distributed.destroy_process_group)


def create_engine(module: LossModule, pretrain: DictConfig, packs_per_rank: int) -> deepspeed.DeepSpeedEngine:
    """Hand model and loss to DeepSpeed.

    Args:
        module: With its initial weights, the same on every rank.
        pretrain: Reads `learning_rate`, `betas`, `weight_decay`, `clip_norm`, `zero_stage` and `offload_optimiser`.
        packs_per_rank: Packs of a step that each rank sees one after the other.

    Returns:
        The engine, which drives forward, backward and step.

    Raises:
        UserError: A setting has no such value.
    """
    if pretrain.zero_stage not in (0, 1, 2, 3):
        raise UserError(f"pretrain.zero_stage={pretrain.zero_stage}: expected 0, 1, 2 or 3")
    if pretrain.offload_optimiser and pretrain.zero_stage == 0:
        raise UserError("pretrain.offload_optimiser=true needs pretrain.zero_stage of 1, 2 or 3")
    groups = parameter_groups(module.named_parameters(), pretrain.weight_decay)
    # torch's AdamW rather than DeepSpeed's own, which would be compiled at start.
    optimiser = torch.optim.AdamW(groups, lr=pretrain.learning_rate, betas=tuple(pretrain.betas), fused=True)
    config = deepspeed_config(pretrain, packs_per_rank)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimiser, config=config)
    _begin_moments(engine)
    return engine


def deepspeed_config(pretrain: DictConfig, packs_per_rank: int) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Args:
        pretrain: Reads `clip_norm`, `zero_stage` and `offload_optimiser`.
        packs_per_rank: Micro-batches of a step.

    Returns:
        What `deepspeed.initialize` takes.
    """
    zero: dict[str, Any] = {"stage": pretrain.zero_stage}
    if pretrain.offload_optimiser:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,  # a pack
        "gradient_clipping": pretrain.clip_norm or 0.0,
        "gradient_accumulation_steps": packs_per_rank,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def take_step(engine: deepspeed.DeepSpeedEngine) -> Tensor:
    """Update the weights, unless the gradient is not finite: then they, and the optimiser's state, stay as they are.

    At ZeRO stage 0 nothing here waits for the device. The other stages look at the gradient themselves, and skip
    likewise.

    Args:
        engine: After `backward` of the last pack of a step.

    Returns:
        Norm of the gradient over all ranks, a scalar on the device; not finite where the step was skipped.
    """
    if engine.zero_optimization():
        engine.step()
        return torch.as_tensor(engine.get_global_grad_norm(), dtype=torch.float32, device=engine.device)
    norm = torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])
    # torch's fused optimisers skip their update on the device where this is 1; its own GradScaler uses the same door.
    engine.optimizer.found_inf = (~norm.isfinite()).float()
    engine.step()
    return norm


def trained_parameters(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that the optimiser has, by their name in the model."""
    yield from ((name, p) for name, p in engine.module.model.named_parameters() if p.requires_grad)


def full_weights(engine: deepspeed.DeepSpeedEngine) -> dict[str, Tensor]:
    """The weights and buffers of the model, whole, on the CPU; every rank must call it.

    Args:
        engine: At any ZeRO stage.

    Returns:
        The state dict of the objective's model.
    """
    model = engine.module.model
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    # ZeRO 3 leaves a part of each on every rank; those that are trained have a way of their own to be whole.
    with deepspeed.zero.GatheredParameters(frozen, enabled=engine.zero_optimization_stage() == 3):
        state = {name: value.cpu() for name, value in model.state_dict().items()}
    for name, parameter in trained_parameters(engine):
        whole = safe_get_full_fp32_param(parameter)
        state[name] = parameter.detach() if whole is None else whole
    return {name: value.cpu().clone() for name, value in state.items()}


def full_state(engine: deepspeed.DeepSpeedEngine) -> dict[str, Tensor]:
    """Weights and optimiser state, whole, on the CPU, whatever the ZeRO stage and the number of ranks.

    Every rank must call it.

    Args:
        engine: At any ZeRO stage.

    Returns:
        `weights/NAME`, `exp_avg/NAME`, `exp_avg_sq/NAME`, and `optimiser_steps`.
    """
    state = {f"weights/{name}": value for name, value in full_weights(engine).items()}
    for name, parameter in trained_parameters(engine):
        for key in MOMENTS:
            whole = safe_get_full_optimizer_state(parameter, key)
            state[f"{key}/{name}"] = (engine.optimizer.state[parameter][key] if whole is None else whole).cpu().clone()
    steps = next(_torch_optimiser(engine).state[owned]["step"] for owned in _owned_tensors(engine))
    return state | {"optimiser_steps": steps.detach().cpu().clone()}


def restore_optimiser(engine: deepspeed.DeepSpeedEngine, state: Mapping[str, Tensor]) -> None:
    """Give a fresh engine the optimiser state of `full_state`; its weights were loaded into the model before.

    Args:
        engine: Changed in place; its ZeRO stage and number of ranks need not be those of the state.
        state: What `full_state` gave.
    """
    optimiser = _torch_optimiser(engine)
    for owned in _owned_tensors(engine):
        optimiser.state[owned]["step"].copy_(state["optimiser_steps"])
    for name, parameter in trained_parameters(engine):
        for key in MOMENTS:
            value = state[f"{key}/{name}"].to(engine.device)
            if engine.zero_optimization():
                safe_set_full_optimizer_state(parameter, value, key)
            else:
                optimiser.state[parameter][key].copy_(value)


def _begin_moments(engine: deepspeed.DeepSpeedEngine) -> None:
    """Give AdamW the zeros that it would make at its first step.

    DeepSpeed's stages 1 and 2 look for them once, after the first step of the first group of parameters, and would
    never find those of the second.
    """
    optimiser = _torch_optimiser(engine)
    for owned in _owned_tensors(engine):
        moments = {key: torch.zeros_like(owned) for key in MOMENTS}
        optimiser.state[owned] = {"step": torch.zeros((), dtype=torch.float32, device=owned.device), **moments}
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _torch_optimiser(engine: deepspeed.DeepSpeedEngine) -> torch.optim.Optimizer:
    return engine.optimizer.optimizer if engine.zero_optimization() else engine.optimizer


def _owned_tensors(engine: deepspeed.DeepSpeedEngine) -> Iterator[nn.Parameter | Tensor]:
    """What this rank's optimiser updates: parameters, or flat partitions of them."""
    if engine.zero_optimization_stage() == 0:
        yield from (parameter for _, parameter in trained_parameters(engine))
    elif engine.zero_optimization_stage() == 3:
        yield from engine.optimizer.fp32_partitioned_groups_flat
    else:
        yield from engine.optimizer.single_partition_of_fp32_groups
