"""Small forward and backward calls of every form and dtype, to run under compute-sanitizer."""

import argparse

import torch

import kernels

LEVELS = ((5, 7), (3, 4), (1, 1))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def run_all(device: str) -> None:
    """Call each backend of `device` once per form, dtype and mode; results are not looked at."""
    backends = ("cuda", "triton") if device == "cuda" else ("cpu",)
    for backend in backends:
        for dtype in DTYPES:
            for deterministic in (False, True):
                if deterministic and backend == "triton":
                    continue
                torch.use_deterministic_algorithms(deterministic)
                for form in (0, 2, 4):
                    _run(backend, dtype, form, device)
    torch.use_deterministic_algorithms(False)


def _run(backend: str, dtype: torch.dtype, form: int, device: str) -> None:
    samples = (2, 37, 3, len(LEVELS), 4)
    num_pixels = sum(height * width for height, width in LEVELS)
    value = torch.randn(2, num_pixels, 3, 40, device=device).to(dtype).requires_grad_()
    # from half an image outside to half an image outside
    places = (torch.rand(*samples, 2, device=device) * 2 - 0.5).requires_grad_()
    weights = torch.rand(samples, device=device).requires_grad_()
    if form == 0:
        output = kernels.multi_scale_deformable_attention(
            value, LEVELS, places, weights, backend=backend
        )
    else:
        reference = torch.rand(2, 37, len(LEVELS), form, device=device).requires_grad_()
        output = kernels.fused_deformable_attention(
            value, LEVELS, reference, places, weights, backend=backend
        )
    output.float().sum().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    run_all(parser.parse_args().device)
    print("every call returned")


if __name__ == "__main__":
    main()
