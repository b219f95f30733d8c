"""Names of published Swin and ResNet backbones; those of X-Decoder stand with X-Decoder.

Every name of ours comes from exactly one of theirs.
Source: the state dicts of facebookresearch/Mask2Former, IDEA-Research/OpenSeeD and torchvision.
"""

from xdecoder.convert.rules import Rule

# patch merging ends a stage there and begins the next one here
SWIN = (
    Rule(r"(patch_embed\.(?:proj|norm)\.\w+)", r"\1"),
    Rule(
        r"layers\.\d+\.blocks\.\d+\.attn\.relative_position_index",
        "derived: the window size",
        "drop",
    ),
    Rule(r"layers\.(\d+)\.(blocks\.\d+\.(?:norm[12]|attn|mlp)\..+)", r"stages.\1.\2"),
    Rule(r"layers\.0\.(downsample\..+)", r"stages.1.\1"),
    Rule(r"layers\.1\.(downsample\..+)", r"stages.2.\1"),
    Rule(r"layers\.2\.(downsample\..+)", r"stages.3.\1"),
    Rule(r"norm(\d)\.(\w+)", r"out_norms.\1.\2"),
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
