# An image with the trainer and its operators compiled.
#
#   docker build --tag xdecoder .
#   docker run --rm --gpus all --volume "$PWD/runs:/opt/xdecoder/runs" xdecoder \
#       python -m pipelines.pretrain --recipe scenes
#
# Podman and Buildah take the same words. --build-arg BASE=... names another base image: it needs
# Python and torch of the versions in pyproject.toml. `devel` has nvcc, which compiles the CUDA
# operators; from a base without it the C++ operators are all there is.
ARG BASE=pytorch/pytorch:2.11.0-cuda12.8-cudnn9-devel
FROM ${BASE}

# g++ and ninja for the operators, a JRE for METEOR and the caption tokenizer, nothing else
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ ninja-build default-jre-headless \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/xdecoder
COPY pyproject.toml setup.py README.md LICENSE ./
COPY csrc csrc
COPY kernels kernels
COPY xdecoder xdecoder
COPY pipelines pipelines
COPY slurm slurm

# architectures of the CUDA operators: A100, H100, B200
ARG ARCHITECTURES="80;90;100"
# a base may leave its Python to the distribution, which pip then refuses to add to
RUN export PIP_BREAK_SYSTEM_PACKAGES=1 XDEC_CUDA_ARCHS="${ARCHITECTURES}" \
    && pip install --no-cache-dir "setuptools>=77" wheel "ninja>=1.11" \
    && pip install --no-cache-dir --no-build-isolation --editable ".[train,evaluate,demo]" \
    && rm -rf build \
    && python -m kernels

# nothing is fetched at run time
ENV HF_HUB_OFFLINE=1 WANDB_MODE=offline PYTHONUNBUFFERED=1
CMD ["python", "-m", "pipelines.pretrain", "--help"]
