"""Any inpainting pipeline of diffusers as a program that fills masks; the one place that knows it.

Needs the extra `edit`. Nothing is downloaded: the pipeline is a folder.
"""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pipelines.errors import BackendUnavailable, CheckpointError
from xdecoder.tasks.editing import Inpaint


def load_inpainting(folder: str | Path, *, num_steps: int = 50, seed: int = 0) -> Inpaint:
    """A program that paints with the pipeline of a folder; the same seed paints the same.

    Raises:
        BackendUnavailable: diffusers is not installed.
        CheckpointError: the folder has no inpainting pipeline.
    """
    try:
        from diffusers import AutoPipelineForInpainting
    except ImportError as error:
        raise BackendUnavailable(
            f"editing needs diffusers and transformers; got {error}. "
            "Install them with `pip install generalized-decoder[edit]`."
        ) from error
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(
            f"editing: {folder} must be the folder of an inpainting pipeline, with "
            "model_index.json; it is not. Save one with diffusers' save_pretrained."
        )
    try:
        pipeline: Any = AutoPipelineForInpainting.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"editing: {folder} must be the folder of an inpainting pipeline; got {error}"
        ) from error
    pipeline.set_progress_bar_config(disable=True)

    def inpaint(image: Image.Image, mask: Image.Image, prompt: str) -> Image.Image:
        painted: Image.Image = pipeline(
            prompt=prompt,
            image=image,
            mask_image=mask.convert("L"),
            width=image.width,
            height=image.height,
            num_inference_steps=num_steps,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        return painted

    return inpaint
