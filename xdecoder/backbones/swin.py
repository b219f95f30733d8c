"""Swin as MaskFormer, Mask2Former and OpenSeeD use it: timm's stages plus a norm per output."""

from collections.abc import Sequence

from jaxtyping import Float
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.nn import functional as F

_PATCH_SIZE = 4


class SwinBackbone(nn.Module):
    """Normalised maps of a Swin at strides 4, 8, 16 and 32, of images of any size.

    Images, windows and odd maps are padded right and bottom with zeros; windows and their shift
    stay the same however small the map. drop_path: probability at the last block, growing
    linearly from zero. has_checkpointing: blocks run again in the backward pass instead of
    keeping their activations.
    Source: facebookresearch/Mask2Former, mask2former/modeling/backbone/swin.py; arXiv 2103.14030.
    """

    def __init__(
        self,
        *,
        dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        has_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.out_dims = (dim, 2 * dim, 4 * dim, 8 * dim)
        whole = SwinTransformer(
            embed_dim=dim,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            window_size=window,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path,
            num_classes=0,
            # else windows shrink, and shifts vanish, where the nominal image is small
            always_partition=True,
            strict_img_size=False,
        )
        whole.set_grad_checkpointing(has_checkpointing)
        self.patch_embed = whole.patch_embed
        self.stages = whole.layers
        self.out_norms = nn.ModuleList(nn.LayerNorm(width) for width in self.out_dims)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Maps fine to coarse; sizes are rounded up."""
        height, width = images.shape[2:]
        padded = F.pad(images, (0, -width % _PATCH_SIZE, 0, -height % _PATCH_SIZE))
        x = self.patch_embed(padded)  # [B, H/4, W/4, C]
        maps = []
        for stage, norm in zip(self.stages, self.out_norms, strict=True):
            # the next stage continues from the map before its output norm
            x = stage(x)
            maps.append(norm(x).permute(0, 3, 1, 2).contiguous())  # [B, C, H, W]
        return maps


def swin_t(*, drop_path: float = 0.3, has_checkpointing: bool = False) -> SwinBackbone:
    """Swin-T, window 7. Source: Mask2Former, maskformer2_swin_tiny_bs16_50ep.yaml."""
    return SwinBackbone(
        dim=96,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        window=7,
        drop_path=drop_path,
        has_checkpointing=has_checkpointing,
    )


def swin_s(*, drop_path: float = 0.3, has_checkpointing: bool = False) -> SwinBackbone:
    """Swin-S, window 7. Source: Mask2Former, maskformer2_swin_small_bs16_50ep.yaml."""
    return SwinBackbone(
        dim=96,
        depths=(2, 2, 18, 2),
        num_heads=(3, 6, 12, 24),
        window=7,
        drop_path=drop_path,
        has_checkpointing=has_checkpointing,
    )


def swin_b(*, drop_path: float = 0.3, has_checkpointing: bool = False) -> SwinBackbone:
    """Swin-B, window 12. Source: Mask2Former, maskformer2_swin_base_384_bs16_50ep.yaml."""
    return SwinBackbone(
        dim=128,
        depths=(2, 2, 18, 2),
        num_heads=(4, 8, 16, 32),
        window=12,
        drop_path=drop_path,
        has_checkpointing=has_checkpointing,
    )


def swin_l(*, drop_path: float = 0.3, has_checkpointing: bool = False) -> SwinBackbone:
    """Swin-L, window 12. Source: Mask2Former, maskformer2_swin_large_IN21k_384_bs16_100ep.yaml."""
    return SwinBackbone(
        dim=192,
        depths=(2, 2, 18, 2),
        num_heads=(6, 12, 24, 48),
        window=12,
        drop_path=drop_path,
        has_checkpointing=has_checkpointing,
    )
