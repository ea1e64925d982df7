"""Optimizer states that a fused step may trust.

A fused step goes through weight, gradient and states in the order of memory, and does not ask whether that order is
the same for all. The momentum that it makes in a step which a gradient scaler then skips is memory that nobody has
written. So here states are made before the first step, and lie in memory as their parameters do, wherever they come
from.

    optimizer = guarded(torch.optim.SGD(groups, lr=0.01, momentum=0.9, fused=True))
    load_optimizer_state(optimizer, checkpoint.optimizers["reid"], source="runs/teacher, optimizer reid")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from reid_eval.reading import reading
from reid_models.checkpoints import CheckpointError

AnyOptimizer = TypeVar("AnyOptimizer", bound=torch.optim.Optimizer)

_NUMBERS = ("step", "mu_product")
"""Entries of a state that are one number, whatever the parameter's shape."""


def guarded(optimizer: AnyOptimizer) -> AnyOptimizer:
    """The same optimizer, which before each step sees to its states: made, and in their parameters' memory layout.

    Also when the network was moved, or states were put in by other means than `load_optimizer_state`.

    Raises:
        ValueError: a fused SGD with dampening, whose first momentum is not what zeros would become.
    """
    for group in optimizer.param_groups:
        if isinstance(optimizer, torch.optim.SGD) and group["fused"] and group["dampening"] != 0:
            raise ValueError("a fused SGD is guarded without dampening only; give fused=False")
    optimizer.register_step_pre_hook(_see_to_states)
    return optimizer


def _see_to_states(optimizer: torch.optim.Optimizer, *step: Any) -> None:
    for group in optimizer.param_groups:
        needs_momentum = isinstance(optimizer, torch.optim.SGD) and group["fused"] and group["momentum"] != 0
        for parameter in group["params"]:
            if needs_momentum and parameter.grad is not None:
                state = optimizer.state[parameter]
                if state.get("momentum_buffer") is None:
                    # The first momentum is the gradient, which is what one step makes of zeros.
                    state["momentum_buffer"] = torch.zeros_like(parameter)
            for kind, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and kind not in _NUMBERS and not _lies_as(parameter, value):
                    optimizer.state[parameter][kind] = _laid_as(parameter, value)


def _lies_as(parameter: Tensor, value: Tensor) -> bool:
    return value.stride() == parameter.stride() and value.device == parameter.device and value.dtype == parameter.dtype


def _laid_as(parameter: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(parameter, requires_grad=False).copy_(value)


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any], *, source: str, may_begin: bool = False
) -> None:
    """Put the states of a state dict in: all of them, or none. Rates, decays and the like stay the optimizer's own.

    A parameter that has no state never had a gradient, as a head that no loss looks at: one that gets a gradient in the
    next step all the same is refused by that step, unless it `may_begin` now.

    Raises:
        CheckpointError: they do not fit (see `checked_states`); `source` is named.
    """
    states = checked_states(optimizer, state, source=source)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    fused = [bool(group.get("fused")) for group in optimizer.param_groups for _ in group["params"]]
    optimizer.state.clear()
    for parameter, found, in_place in zip(parameters, states, fused, strict=True):
        if found:
            optimizer.state[parameter] = {
                kind: _number(value, parameter, in_place) if kind in _NUMBERS else _laid_as(parameter, value)
                for kind, value in found.items()
            }
    if any(states) and not may_begin:
        _refuse_late_beginners(optimizer, source)


def _number(value: Any, parameter: Tensor, fused: bool) -> Tensor:
    """A count or a product as the optimizer keeps it: a fused one beside the parameter, others on the CPU."""
    if fused:
        return torch.full((), float(value), dtype=torch.float32, device=parameter.device)
    return value.detach().cpu().reshape(()).clone() if isinstance(value, Tensor) else torch.tensor(float(value))


def _refuse_late_beginners(optimizer: torch.optim.Optimizer, source: str) -> None:
    lacking = [
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if any(_kinds(optimizer, group)) and parameter not in optimizer.state
    ]

    def look(*step: Any) -> None:
        handle.remove()
        beginners = [parameter for parameter in lacking if parameter.grad is not None]
        if beginners:
            raise CheckpointError(
                f"{source}: no state for {len(beginners)} parameters that are trained (the first of shape "
                f"{tuple(beginners[0].shape)}); it is cut or damaged; go on from another checkpoint"
            )

    handle = optimizer.register_step_pre_hook(look)


def checked_states(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any], *, source: str, names: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Of a state dict what each parameter of an optimizer needs, in their order; {} for those that have no state.

    Entries that this optimizer has no use for are left out. `names` tell parameters in errors.

    Raises:
        CheckpointError: other groups, an entry missing, of another shape, no numbers or not finite; one line.
    """
    if not isinstance(state, Mapping) or not {"state", "param_groups"} <= state.keys():
        raise CheckpointError(f"{source}: holds no states of an optimizer; go on from another checkpoint")
    with reading(source, CheckpointError, "the states of an optimizer", remedy="go on from another checkpoint"):
        positions = [list(group["params"]) for group in state["param_groups"]]
        stored = dict(state["state"])
    sizes = [len(group) for group in positions]
    expected = [len(group["params"]) for group in optimizer.param_groups]
    if sizes != expected:
        raise CheckpointError(
            f"{source}: groups of {sizes} parameters, these settings have {expected}; it is of other networks"
        )
    states: list[dict[str, Any]] = []
    for group, places in zip(optimizer.param_groups, positions, strict=True):
        for parameter, place in zip(group["params"], places, strict=True):
            name = names[len(states)] if names else f"parameter {len(states)}"
            with reading(source, CheckpointError, "the states of an optimizer", remedy="go on from another checkpoint"):
                found = stored.get(place) or {}
                present = {kind: found[kind] for kind in _kinds(optimizer, group) if found.get(kind) is not None}
                if missing := [kind for kind in _kinds(optimizer, group) if present and kind not in present]:
                    raise CheckpointError(f"{source}: has no {missing[0]} of {name}; it is cut or of another optimizer")
                for kind, value in present.items():
                    _refuse_misfit(kind, value, parameter, f"{source}: {kind} of {name}")
                states.append(present)
    return states


def _refuse_misfit(kind: str, value: Any, parameter: Tensor, what: str) -> None:
    shape = tuple(value.shape) if isinstance(value, Tensor) else ()
    if kind in _NUMBERS:
        if isinstance(value, Tensor) and value.numel() != 1:
            raise CheckpointError(f"{what} is {shape}, expected one number")
        value = torch.tensor(float(value))
    elif not isinstance(value, Tensor) or value.layout != torch.strided or not value.is_floating_point():
        raise CheckpointError(f"{what} is {type(value).__name__}, expected a tensor of numbers")
    elif shape != tuple(parameter.shape):
        raise CheckpointError(f"{what} is {shape}, not {tuple(parameter.shape)}; it is of other networks")
    if not value.isfinite().all():
        raise CheckpointError(f"{what} holds NaN or infinity")


def _kinds(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> tuple[str, ...]:
    """What the state of a parameter holds after its first step."""
    match optimizer:
        case torch.optim.NAdam():
            return ("step", "mu_product", "exp_avg", "exp_avg_sq")
        case torch.optim.Adam() | torch.optim.AdamW():
            return ("step", "exp_avg", "exp_avg_sq") + (("max_exp_avg_sq",) if group["amsgrad"] else ())
        case torch.optim.RMSprop():
            return ("step", "square_avg") + (("momentum_buffer",) if group["momentum"] > 0 else ())
        case torch.optim.SGD():
            return ("momentum_buffer",) if group["momentum"] != 0 else ()
    raise TypeError(f"the states of {type(optimizer).__name__} are not known here")
