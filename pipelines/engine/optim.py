"""AdamW, the groups that parameters fall into, and the table that shows them.

A group is (part, stage, decayed). The part - backbone, text, rest - and, with layer decay, the
stage of the trunk decide the learning rate; decay is for the weight matrices of linear,
convolution and attention layers alone. Norms, biases and tables (embeddings, queries, scales) are
not pulled towards zero.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor, nn

from pipelines.config import OptimizerConfig
from pipelines.errors import ConfigError

_MATRIX_OWNERS = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.Bilinear)
# what AdamW keeps for every parameter, besides the number of steps
MOMENTS = ("exp_avg", "exp_avg_sq")
# of all parameters, in a state of moments: how often the optimizer stepped
STEP = "step"
# in a bucket of gradients that ranks reduce together, 256 MiB; DeepSpeed's own choice is 2 GB
# whatever the model
BUCKET_VALUES = 2**26
# one float32 sum over four million values was off by 2e-4 on a CPU; a norm of norms is not
_NORM_PIECE = 2**14
_NUMBER = re.compile(r"(?:\w+_|res)?(\d+)")
_PARTS = {"backbone": ("backbone",), "text": ("text", "text_encoder")}


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that share a learning rate and a decay; names are those of the model."""

    name: str
    learning_rate: float
    weight_decay: float
    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]

    @property
    def num_values(self) -> int:
        """How many numbers are trained in this group."""
        return sum(parameter.numel() for parameter in self.parameters)


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> tuple[ParameterGroup, ...]:
    """The trainable parameters of a model, each in exactly one group, in a fixed order.

    Raises:
        ConfigError: nothing is trainable.
    """
    multipliers = {
        "backbone": config.backbone_multiplier,
        "text": config.text_multiplier,
        "rest": 1.0,
    }
    members: dict[tuple[str, int, bool], list[tuple[str, nn.Parameter]]] = {}
    matrices = _matrix_names(model)
    has_stages = config.layer_decay < 1
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = _part_of(name)
            stage = _stage_of(name) if has_stages and part == "backbone" else -1
            members.setdefault((part, stage, name in matrices), []).append((name, parameter))
    if not members:
        raise ConfigError(
            "optimizer: at least one parameter must be trainable; all of them are frozen. "
            "Unfreeze a part of the model."
        )
    last_stage = max(stage for _, stage, _ in members)
    return tuple(
        ParameterGroup(
            name=f"{part}{'' if stage < 0 else f' {stage}'}, "
            f"{'decayed' if is_decayed else 'not decayed'}",
            learning_rate=config.learning_rate
            * multipliers[part]
            * config.layer_decay ** (last_stage - stage if stage >= 0 else 0),
            weight_decay=config.weight_decay if is_decayed else 0.0,
            names=tuple(name for name, _ in named),
            parameters=tuple(parameter for _, parameter in named),
        )
        for (part, stage, is_decayed), named in sorted(members.items())
    )


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Take the parameters of parts of a model out of training.

    Raises:
        ConfigError: the model has no such part.
    """
    for part in parts:
        prefixes = _PARTS.get(part, (part,))
        found = [each for name, each in model.named_parameters() if _first(name) in prefixes]
        if not found:
            raise ConfigError(
                f"optimizer.frozen: {part!r} must be a part of the model; it has "
                f"{', '.join(dict.fromkeys(_first(name) for name, _ in model.named_parameters()))}."
            )
        for parameter in found:
            parameter.requires_grad_(False)


def build_optimizer(
    groups: Sequence[ParameterGroup], config: OptimizerConfig, *, is_fused: bool = True
) -> torch.optim.AdamW:
    """AdamW over the groups; each remembers its learning rate as `base_lr`."""
    return torch.optim.AdamW(
        [
            {
                "params": list(group.parameters),
                "lr": group.learning_rate,
                "base_lr": group.learning_rate,
                "weight_decay": group.weight_decay,
            }
            for group in groups
        ],
        betas=config.betas,
        eps=config.epsilon,
        fused=is_fused,
    )


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Multiply the base learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def named_parameters(groups: Sequence[ParameterGroup]) -> dict[str, nn.Parameter]:
    """The trained parameters by name, in the order of the groups."""
    return {
        name: parameter
        for group in groups
        for name, parameter in zip(group.names, group.parameters, strict=True)
    }


def read_moments(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Moments by `moment/parameter name`, and `step`; nothing before the first step."""
    first = next(iter(parameters.values()))
    if first not in optimizer.state:
        return {}
    step = optimizer.state[first]["step"].reshape(1)
    moments = {
        f"{moment}/{name}": optimizer.state[parameter][moment]
        for name, parameter in parameters.items()
        for moment in MOMENTS
    }
    return {STEP: step, **moments}


def write_moments(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    moments: Mapping[str, Tensor],
    step: int,
) -> None:
    """Put copies of moments into an optimizer, or none; `step` counts where they have no `step`."""
    optimizer.state.clear()
    if not moments:
        return
    num_steps = float(moments[STEP]) if STEP in moments else float(step)
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {
            "step": torch.tensor(num_steps, device=parameter.device),
            **{
                moment: moments[f"{moment}/{name}"].to(parameter.device, copy=True)
                for moment in MOMENTS
            },
        }


def group_table(groups: Sequence[ParameterGroup], model: nn.Module) -> Table:
    """Parameter counts, learning rate and decay of each optimizer group, and what is frozen."""
    table = Table(title="parameters")
    table.add_column("group")
    for name in ("tensors", "values", "learning rate", "decay"):
        table.add_column(name, justify="right")
    for group in groups:
        table.add_row(
            group.name,
            str(len(group.names)),
            f"{group.num_values:,}",
            f"{group.learning_rate:.2e}",
            f"{group.weight_decay:g}",
        )
    frozen = [value for value in model.parameters() if not value.requires_grad]
    table.add_row("frozen", str(len(frozen)), f"{sum(v.numel() for v in frozen):,}", "-", "-")
    return table


class FlatGradients:
    """One buffer that holds the gradients of all parameters, which are views of it.

    One all-reduce averages it in an order that never changes, one norm clips it, one fill clears
    it. A parameter that no loss reached has a zero gradient, not none: AdamW still decays it, as
    it does under ZeRO, so that the backends agree.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        total = sum(parameter.numel() for parameter in parameters)
        self.buffer = torch.zeros(total, device=parameters[0].device)
        self._pieces = self.buffer.split(_NORM_PIECE)
        offset = 0
        for parameter in parameters:
            view = self.buffer[offset : offset + parameter.numel()]
            parameter.grad = view.view_as(parameter)
            offset += parameter.numel()

    def clip(self, max_norm: float) -> Tensor:
        """The norm of all gradients before they were scaled down to at most `max_norm`."""
        norm = _norm(self._pieces)
        self.buffer.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm


def clip_gradients(gradients: Sequence[Tensor], max_norm: float) -> Tensor:
    """The norm of separate gradients before they were scaled down as `FlatGradients.clip` does."""
    norm = _norm([piece for value in gradients for piece in value.flatten().split(_NORM_PIECE)])
    torch._foreach_mul_(list(gradients), (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def norm_of(values: Tensor) -> Tensor:
    """The norm of a flat tensor, summed as `FlatGradients.clip` sums it."""
    return _norm(values.split(_NORM_PIECE))


def _norm(pieces: Sequence[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(list(pieces))).norm()


def _part_of(name: str) -> str:
    first = _first(name)
    return next((part for part, prefixes in _PARTS.items() if first in prefixes), "rest")


def _first(name: str) -> str:
    return name.split(".", 1)[0]


def _stage_of(name: str) -> int:
    """The stage of a trunk's parameter: the first number among `stages.2`, `layers_2`, `res2`."""
    for piece in name.split("."):
        found = _NUMBER.fullmatch(piece)
        if found:
            return int(found.group(1))
    return 0


def _matrix_names(model: nn.Module) -> set[str]:
    """Names of the weights that are multiplied with features, one name for tied ones."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, _MATRIX_OWNERS)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim > 1
    }
