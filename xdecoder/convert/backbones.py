"""Names of published Swin and ResNet backbones; those of X-Decoder stand with X-Decoder.

Every name of ours comes from exactly one of theirs.
Source: the state dicts of facebookresearch/Mask2Former, IDEA-Research/OpenSeeD and torchvision.
"""

from xdecoder.convert.rules import Rule

_SWIN_BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."

SWIN = (
    Rule(r"patch_embed\.proj\.(\w+)", r"embeddings.0.conv.\1"),
    Rule(r"patch_embed\.norm\.(\w+)", r"embeddings.0.norm.\1"),
    *(
        rule
        for i in range(3)
        for rule in (
            Rule(rf"layers\.{i}\.downsample\.norm\.(\w+)", rf"embeddings.{i + 1}.norm.\1"),
            Rule(
                rf"layers\.{i}\.downsample\.reduction\.weight",
                f"embeddings.{i + 1}.projection.weight",
            ),
        )
    ),
    Rule(_SWIN_BLOCK + r"(norm[12]\.\w+)", r"stages.\1.blocks.\2.\3"),
    Rule(_SWIN_BLOCK + r"attn\.qkv\.(\w+)", r"stages.\1.blocks.\2.attention.qkv.\3"),
    Rule(
        _SWIN_BLOCK + r"attn\.proj\.(\w+)",
        r"stages.\1.blocks.\2.attention.output_projection.\3",
    ),
    Rule(
        _SWIN_BLOCK + r"attn\.relative_position_bias_table",
        r"stages.\1.blocks.\2.attention.offset_bias",
    ),
    Rule(
        _SWIN_BLOCK + r"attn\.relative_position_index",
        "derived: offsets between the places of a window",
        "drop",
    ),
    Rule(_SWIN_BLOCK + r"mlp\.fc1\.(\w+)", r"stages.\1.blocks.\2.mlp.0.\3"),
    Rule(_SWIN_BLOCK + r"mlp\.fc2\.(\w+)", r"stages.\1.blocks.\2.mlp.2.\3"),
    Rule(r"norm(\d)\.(\w+)", r"norms.\1.\2"),
)

RESNET = (
    Rule(r"stem\.conv1\.weight", "stem.0.weight"),
    Rule(r"stem\.conv1\.norm\.(\w+)", r"stem.1.\1"),
    Rule(r"(res\d\.\d+\.conv\d)\.weight", r"\1.weight"),
    Rule(r"(res\d\.\d+)\.conv(\d)\.norm\.(\w+)", r"\1.bn\2.\3"),
    Rule(r"(res\d\.\d+)\.shortcut\.weight", r"\1.downsample.0.weight"),
    Rule(r"(res\d\.\d+)\.shortcut\.norm\.(\w+)", r"\1.downsample.1.\2"),
)

TORCHVISION_RESNET = (
    Rule(r"conv1\.weight", "stem.0.weight"),
    Rule(r"bn1\.(\w+)", r"stem.1.\1"),
    Rule(r"layer1\.(.+)", r"res2.\1"),
    Rule(r"layer2\.(.+)", r"res3.\1"),
    Rule(r"layer3\.(.+)", r"res4.\1"),
    Rule(r"layer4\.(.+)", r"res5.\1"),
    Rule(r"fc\.(?:weight|bias)", "unused: the classifier of ImageNet", "drop"),
)
