"""`python -m pipelines.export`: a MaskFormer or Mask2Former as an ONNX or torch graph."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kernels._select import default_backend
from pipelines.cli import main_of
from pipelines.errors import BackendUnavailable, CheckpointError, ExitCode
from xdecoder.convert.rules import CheckpointError as NamingError
from xdecoder.mask_former.model import MaskFormer

# Source: the first opset with GridSample as onnxscript writes it
_OPSET = 20


class InferenceGraph(nn.Module):
    """The part of a model that is exported: images to class logits and mask logits."""

    def __init__(self, model: MaskFormer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b q k1"], Float[Tensor, "b q h4 w4"]]:
        """Logits of the last prediction, masks at stride 4; post-processing stays outside."""
        output = self.model(images)
        return output.layers[-1].class_logits, output.mask_logits(-1)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of an export."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.export",
        description="Write the inference graph of a trained or converted model. "
        "Images are RGB 0..255 of one size; outputs are class logits and mask logits.",
    )
    parser.add_argument(
        "model", type=Path, help="a run, a checkpoint, or a folder that pipelines.convert wrote"
    )
    parser.add_argument("out", type=Path, help="a file that ends in .onnx or .pt2")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"))
    parser.add_argument("--batch-size", type=int, default=1)
    return main_of(_export, parser, argv)


def _export(options: argparse.Namespace) -> ExitCode:
    try:
        model = MaskFormer.from_pretrained(options.model)
    except NamingError as error:
        raise CheckpointError(str(error)) from error
    images = torch.zeros(options.batch_size, 3, *options.size)
    export(model, images, options.out)
    print(f"wrote {options.out}")
    return ExitCode.FINISHED


@torch.no_grad()
def export(model: MaskFormer, images: Float[Tensor, "b 3 h w"], out: Path) -> None:
    """Write the graph of a model in evaluation mode for images of this size.

    Operators are exported by their reference in plain PyTorch, which every runtime knows.

    Raises:
        CheckpointError: another kind of file.
        BackendUnavailable: ONNX is asked for and its packages are missing.
    """
    graph = InferenceGraph(model).eval()
    with default_backend("reference"):
        if out.suffix == ".pt2":
            torch.export.save(torch.export.export(graph, (images,), strict=False), out)
            return
        if out.suffix != ".onnx":
            raise CheckpointError(f"export: a file must end in .onnx or .pt2; got {out}.")
        try:
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise BackendUnavailable(
                "export: ONNX needs the packages onnx and onnxscript; they are not installed. "
                "Install them, or write a .pt2 file."
            ) from error
        program = torch.onnx.export(
            graph,
            (images,),
            input_names=["images"],
            output_names=["class_logits", "mask_logits"],
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(str(out))


if __name__ == "__main__":
    sys.exit(main())
