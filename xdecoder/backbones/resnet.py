"""ResNet as MaskFormer and Mask2Former use it: torchvision's stages and detectron2's freezing."""

from typing import Literal

from jaxtyping import Float
from timm.models import checkpoint_seq
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import resnet
from torchvision.ops import FrozenBatchNorm2d

_NORMS: dict[str, type[nn.Module]] = {
    "frozen": FrozenBatchNorm2d,
    "batch": nn.BatchNorm2d,
    "sync": nn.SyncBatchNorm,
}
_OUT_DIMS = (256, 512, 1024, 2048)


class ResNetBackbone(nn.Module):
    """Maps of a ResNet of bottlenecks at strides 4, 8, 16 and 32; the stride is in the 3x3.

    norm: `frozen` keeps statistics and affine weights, as buffers. num_frozen_parts: how many of
    stem, res2, res3, res4, res5 get no gradient and keep their statistics (detectron2's
    FREEZE_AT). has_checkpointing: blocks run again in the backward pass instead of keeping their
    activations.
    Source: detectron2/modeling/backbone/resnet.py; arXiv 1512.03385.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, int, int, int],
        norm: Literal["frozen", "batch", "sync"] = "frozen",
        num_frozen_parts: int = 0,
        has_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.has_checkpointing = has_checkpointing
        self.out_dims = _OUT_DIMS
        whole = resnet.ResNet(resnet.Bottleneck, list(depths), norm_layer=_NORMS[norm])
        self.stem = nn.Sequential(whole.conv1, whole.bn1, whole.relu, whole.maxpool)
        self.res2 = whole.layer1
        self.res3 = whole.layer2
        self.res4 = whole.layer3
        self.res5 = whole.layer4
        self._frozen_parts = list(self.children())[:num_frozen_parts]
        for part in self._frozen_parts:
            part.requires_grad_(False)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Maps fine to coarse."""
        x = self.stem(images)  # [B, 64, H/4, W/4]
        maps = []
        for stage in (self.res2, self.res3, self.res4, self.res5):
            is_checkpointed = self.has_checkpointing and self.training
            x = checkpoint_seq(stage, x) if is_checkpointed else stage(x)
            maps.append(x)
        return maps

    def train(self, mode: bool = True) -> "ResNetBackbone":
        """Switch the mode; batch normalisation of frozen parts stays with its statistics."""
        super().train(mode)
        for part in self._frozen_parts:
            for module in part.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def resnet50(
    *,
    norm: Literal["frozen", "batch", "sync"] = "frozen",
    num_frozen_parts: int = 0,
    has_checkpointing: bool = False,
) -> ResNetBackbone:
    """ResNet-50. Source: Mask2Former, Base-COCO-PanopticSegmentation.yaml."""
    return ResNetBackbone(
        depths=(3, 4, 6, 3),
        norm=norm,
        num_frozen_parts=num_frozen_parts,
        has_checkpointing=has_checkpointing,
    )


def resnet101(
    *,
    norm: Literal["frozen", "batch", "sync"] = "frozen",
    num_frozen_parts: int = 0,
    has_checkpointing: bool = False,
) -> ResNetBackbone:
    """ResNet-101. Source: Mask2Former, maskformer2_R101_bs16_50ep.yaml."""
    return ResNetBackbone(
        depths=(3, 4, 23, 3),
        norm=norm,
        num_frozen_parts=num_frozen_parts,
        has_checkpointing=has_checkpointing,
    )
