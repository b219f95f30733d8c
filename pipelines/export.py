"""`python -m pipelines.export`: a MaskFormer, Mask2Former or OpenSeeD as an ONNX or torch graph."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kernels._select import default_backend
from pipelines.cli import main_of
from pipelines.errors import BackendUnavailable, CheckpointError, ConfigError, ExitCode
from pipelines.predict import names_of
from xdecoder.convert.rules import CheckpointError as NamingError
from xdecoder.mask_former.model import MaskFormer
from xdecoder.openseed.model import OpenSeeD
from xdecoder.openseed.questions import Look, name_vectors
from xdecoder.pretrained import Pretrained, expected, load_pretrained

# Source: the first opset with GridSample as onnxscript writes it
_OPSET = 20


class InferenceGraph(nn.Module):
    """The part of a model that is exported: images to class logits and mask logits."""

    outputs = ("class_logits", "mask_logits")

    def __init__(self, model: MaskFormer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b q k1"], Float[Tensor, "b q h4 w4"]]:
        """Logits of the last prediction, masks at stride 4; post-processing stays outside."""
        output = self.model(images)
        return output.layers[-1].class_logits, output.mask_logits(-1)


class BoxGraph(nn.Module):
    """The same of an OpenSeeD, which also has boxes, for names that become part of the graph."""

    outputs = ("class_logits", "boxes_cxcywh01", "mask_logits")

    def __init__(self, model: OpenSeeD, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("name_vectors", name_vectors(model, names))
        self.name_vectors: Tensor

    def forward(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b q k"], Float[Tensor, "b q 4"], Float[Tensor, "b q h4 w4"]]:
        """The last prediction; boxes are shares of the image with its padding to 32 pixels."""
        pyramid = self.model.encode_images(images)
        looked = Look(pyramid, (images.shape[2], images.shape[3]))
        output = self.model.decode(
            pyramid, self.name_vectors, num_queries=looked.num_queries(self.model)
        )
        last = output.layers[-1]
        return last.class_logits, last.boxes_cxcywh01, output.mask_logits(last)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of an export."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.export",
        description="Write the inference graph of a trained or converted model. "
        "Images are RGB 0..255 of one size; outputs are class logits and mask logits, of an "
        "OpenSeeD boxes as well: centre and size in shares of the padded image.",
    )
    parser.add_argument(
        "model", type=Path, help="a run, a checkpoint, or a folder that pipelines.convert wrote"
    )
    parser.add_argument("out", type=Path, help="a file that ends in .onnx or .pt2")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"))
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument(
        "--vocabulary",
        type=names_of,
        help="what an OpenSeeD looks for: a,b,c, or a file with a name a line; default: the names "
        "of its training",
    )
    return main_of(_export, parser, argv)


def _export(options: argparse.Namespace) -> ExitCode:
    try:
        graph = graph_of(load_pretrained(options.model), options.vocabulary, options.model)
    except NamingError as error:
        raise CheckpointError(str(error)) from error
    images = torch.zeros(options.batch_size, 3, *options.size)
    export(graph, images, options.out)
    print(f"wrote {options.out}")
    return ExitCode.FINISHED


def graph_of(
    model: Pretrained, names: Sequence[str] | None, path: Path
) -> InferenceGraph | BoxGraph:
    """What is exported of a model that was read from a path; names are an OpenSeeD's alone.

    Raises:
        CheckpointError: the model is an X-Decoder, whose questions decide its graph.
        ConfigError: nobody says which names are looked for, or a model with a list of its own is
            given one.
    """
    if not isinstance(model, OpenSeeD):
        closed = expected(model, MaskFormer, path)
        if names:
            raise ConfigError(
                "export: --vocabulary is for an OpenSeeD; a MaskFormer has the classes of its "
                f"training. Leave it out; got {', '.join(names[:5])}."
            )
        return InferenceGraph(closed)
    trained = model.prediction.vocabulary
    wanted = names or (trained.names if trained else ())
    if not wanted:
        raise ConfigError(
            f"export: {path} does not say which names it was trained with, so --vocabulary must; "
            "got none. Give it as a,b,c or as a file."
        )
    return BoxGraph(model, wanted)


@torch.no_grad()
def export(graph: InferenceGraph | BoxGraph, images: Float[Tensor, "b 3 h w"], out: Path) -> None:
    """Write a graph for images of this size.

    Operators are exported by their reference in plain PyTorch, which every runtime knows.

    Raises:
        CheckpointError: another kind of file.
        BackendUnavailable: ONNX is asked for and its packages are missing.
    """
    graph = graph.eval()
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
            output_names=list(graph.outputs),
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(str(out))


if __name__ == "__main__":
    sys.exit(main())
