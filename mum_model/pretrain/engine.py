"""DeepSpeed: the process group, the engine, and the full weights out of it, whatever the ZeRO stage."""

import os
import socket
from typing import Any

import deepspeed
import deepspeed.ops
import torch
from deepspeed.utils import safe_get_full_fp32_param
from omegaconf import DictConfig
from torch import Tensor

from mum_model.errors import UserError
from mum_model.model import MuM
from mum_model.pretrain.schedule import parameter_groups


def join_process_group() -> None:
    """Join the processes that torchrun started; a process started alone is a group of one."""
    if "WORLD_SIZE" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in alone.items()})
    if not torch.cuda.is_available():
        # gloo carries the gradients; DeepSpeed would compile an operator of its own for a minute at the first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False)


def leave_process_group() -> None:
    """Wait for the others and leave; DeepSpeed's own ending alone now and then aborts at exit."""
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def resolve_precision(setting: str) -> str:
    """`fp32` or `bf16` for this device.

    Args:
        setting: `fp32`, `bf16`, or `auto`: bf16 on a GPU that has it, else fp32.

    Returns:
        `fp32` or `bf16`.

    Raises:
        UserError: The setting is none of these.
    """
    if setting not in ("auto", "fp32", "bf16"):
        raise UserError(f"pretrain.precision={setting}: expected auto, fp32 or bf16")
    if setting != "auto":
        return setting
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def create_engine(model: MuM, pretrain: DictConfig) -> deepspeed.DeepSpeedEngine:
    """Hand the model to DeepSpeed.

    Args:
        model: With its initial weights, the same on every rank.
        pretrain: Reads `learning_rate`, `betas`, `weight_decay`, `precision` and `zero_stage`.

    Returns:
        The engine, which drives forward, backward and step.

    Raises:
        UserError: A setting has no such value.
    """
    if pretrain.zero_stage not in (0, 1, 2, 3):
        raise UserError(f"pretrain.zero_stage={pretrain.zero_stage}: expected 0, 1, 2 or 3")
    groups = parameter_groups(model.named_parameters(), pretrain.weight_decay)
    # torch's AdamW rather than DeepSpeed's own, which would be compiled at start.
    optimiser = torch.optim.AdamW(groups, lr=pretrain.learning_rate, betas=tuple(pretrain.betas), fused=True)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimiser, config=deepspeed_config(pretrain))
    return engine


def deepspeed_config(pretrain: DictConfig) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Args:
        pretrain: Reads `precision` and `zero_stage`.

    Returns:
        What `deepspeed.initialize` takes.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,  # nominal: the trainer counts frames itself
        "bf16": {"enabled": resolve_precision(pretrain.precision) == "bf16"},
        "zero_optimization": {"stage": pretrain.zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def gradient_norm(engine: deepspeed.DeepSpeedEngine) -> float | None:
    """Norm of the gradient over all ranks; call between backward and step.

    Args:
        engine: After `backward`.

    Returns:
        The norm where the gradients are whole on this rank (stage 0), else None: ZeRO gives it after the step.
    """
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    if engine.zero_optimization() or engine.bfloat16_enabled() or not gradients:
        return None
    return torch.nn.utils.get_total_norm(gradients).item()


def full_weights(engine: deepspeed.DeepSpeedEngine) -> dict[str, Tensor]:
    """The model's weights in fp32, whole, on the CPU; every rank must call it.

    Args:
        engine: At any ZeRO stage and precision.

    Returns:
        The state dict of the model.
    """
    state = dict(engine.module.state_dict())
    for name, parameter in engine.module.named_parameters():
        whole = safe_get_full_fp32_param(parameter)
        state[name] = parameter.detach() if whole is None else whole
    return {name: value.float().cpu().clone() for name, value in state.items()}
