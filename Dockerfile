# An image with the trainer and its operators compiled. Never built yet: there was no Docker where it
# was written, so check that the base image has this tag, or name another with --build-arg BASE=...
#
#   docker build --tag xdecoder .
#   docker run --rm --gpus all --volume "$PWD/runs:/opt/xdecoder/runs" xdecoder \
#       python -m pipelines.pretrain --recipe scenes
#
# `devel` has nvcc, which compiles the CUDA operators; the image without a GPU still has the C++ ones.
ARG BASE=pytorch/pytorch:2.11.0-cuda12.8-cudnn9-devel
FROM ${BASE}

# g++ and ninja for the operators, a JRE for METEOR and the caption tokenizer, nothing else
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ ninja-build default-jre-headless git \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/xdecoder
COPY . .

# architectures of the CUDA operators: A100, H100, B200
ARG ARCHITECTURES="80;90;100"
ENV XDEC_CUDA_ARCHS=${ARCHITECTURES}
RUN pip install --no-cache-dir "setuptools>=77" wheel ninja \
    && pip install --no-cache-dir --no-build-isolation --editable ".[train,evaluate,demo]"

# the extension of DeepSpeed's CPU optimizer takes minutes to compile: once, and not on every rank
ENV TORCH_EXTENSIONS_DIR=/opt/torch_extensions
RUN python -c "from deepspeed.ops.op_builder import CPUAdamBuilder; CPUAdamBuilder().load()"

# nothing is fetched at run time
ENV HF_HUB_OFFLINE=1 WANDB_MODE=offline PYTHONUNBUFFERED=1
CMD ["python", "-m", "pipelines.pretrain", "--help"]
