"""A training run as one frozen value: what is trained, on what, how, and where it is written."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipelines.data.config import DataConfig
from pipelines.errors import ConfigError
from xdecoder.config import ModelConfig
from xdecoder.mask_former.config import MaskFormerConfig, MaskLossConfig
from xdecoder.openseed.config import BoxLossConfig, OpenSeeDConfig
from xdecoder.tasks.config import LossConfig


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW.

    backbone_multiplier, text_multiplier: on the learning rate of that part. layer_decay: a stage of
    the trunk has this times the learning rate of the stage after it. frozen: parts that stay as
    they are.
    clip_norm: the norm of all gradients together is scaled down to this.
    ema_decay: of the average of weights that is evaluated; 0 = no average.
    """

    learning_rate: float = 1e-4
    backbone_multiplier: float = 0.1
    text_multiplier: float = 0.1
    layer_decay: float = 1.0
    frozen: tuple[Literal["backbone", "text", "pixel_decoder", "decoder"], ...] = ()
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    clip_norm: float = 5.0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ConfigError(
                f"optimizer.learning_rate must be positive; got {self.learning_rate}."
            )
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(
                f"optimizer.layer_decay must be in (0, 1]; got {self.layer_decay}. Typical: 0.8."
            )
        if self.clip_norm <= 0:
            raise ConfigError(
                f"optimizer.clip_norm must be positive; got {self.clip_norm}. "
                "A large number, for example 1e9, clips nothing."
            )
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(
                f"optimizer.ema_decay must be in [0, 1); got {self.ema_decay}. "
                "Typical: 0.998 for a thousand steps, 0.9999 for a hundred thousand; 0 = off."
            )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the run, as a factor on the base learning rates.

    warmup_steps: linear from almost 0. final_factor: where cosine ends.
    power: of the share of steps that are left, which is the factor of poly.
    milestones: shares of the run in (0, 1) at which multistep multiplies by decay_factor.
    """

    kind: Literal["cosine", "multistep", "poly", "constant"] = "cosine"
    warmup_steps: int = 0
    final_factor: float = 0.0
    milestones: tuple[float, ...] = (0.88889, 0.96296)
    decay_factor: float = 0.1
    power: float = 0.9

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ConfigError(f"schedule.warmup_steps must be >= 0; got {self.warmup_steps}.")
        if self.power <= 0:
            raise ConfigError(f"schedule.power must be positive; got {self.power}.")
        is_rising = list(self.milestones) == sorted(set(self.milestones))
        if not is_rising or not all(0 < share < 1 for share in self.milestones):
            raise ConfigError(
                "schedule.milestones must be rising shares of the run between 0 and 1; "
                f"got {self.milestones}. Divide steps by the length of the run."
            )


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How a step is computed.

    device: auto = CUDA where there is one. backend: torch, or DeepSpeed's ZeRO of `zero_stage`:
    0 shards nothing, 1 moments, 2 gradients too, 3 weights too.
    offload: what ZeRO keeps in the memory of the host; parameters = moments and weights.
    keep_whole_below: ZeRO-3 leaves parameters with fewer values whole on every rank.
    self_check: before a run under DeepSpeed, compare a few steps of a small model with PyTorch.
    precision: parameters are float32, operations run under autocast; fp16 scales the loss.
    initial_loss_scale: of fp16. loss_scale_window: steps without overflow before it doubles.
    checkpoint_activations: keep only what enters a block, compute the rest again in the backward.
    accumulation: micro-batches of the data stream in one optimizer step.
    num_threads: of PyTorch on the CPU, 0 = leave as it is; part of what exact resume needs.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: Literal["torch", "deepspeed"] = "torch"
    zero_stage: Literal[0, 1, 2, 3] = 1
    offload: Literal["none", "optimizer", "parameters"] = "none"
    keep_whole_below: int = 100_000
    self_check: bool = True
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    initial_loss_scale: float = 65536.0
    loss_scale_window: int = 2000
    checkpoint_activations: bool = False
    accumulation: int = 1
    num_threads: int = 0

    def __post_init__(self) -> None:
        if self.accumulation < 1:
            raise ConfigError(f"parallel.accumulation must be >= 1; got {self.accumulation}.")
        if self.num_threads < 0:
            raise ConfigError(f"parallel.num_threads must be >= 0; got {self.num_threads}.")
        if self.keep_whole_below < 0:
            raise ConfigError(
                f"parallel.keep_whole_below must be >= 0; got {self.keep_whole_below}."
            )
        if self.initial_loss_scale < 1 or self.loss_scale_window < 1:
            raise ConfigError(
                "parallel.initial_loss_scale and parallel.loss_scale_window must be >= 1; "
                f"got {self.initial_loss_scale} and {self.loss_scale_window}."
            )
        lowest_stage = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        is_zero = self.backend == "deepspeed" and self.zero_stage >= lowest_stage
        if self.offload != "none" and not is_zero:
            raise ConfigError(
                f"parallel.offload={self.offload} needs parallel.backend=deepspeed and "
                f"parallel.zero_stage >= {lowest_stage}; got {self.backend} and "
                f"{self.zero_stage}. Raise the stage, or set parallel.offload=none."
            )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a checkpoint is written, and which are kept: those that any of the rules names.

    every_steps: also at the end and at a signal. asynchronous: write while training goes on, from
    a copy in the memory of rank 0. keep_last: newest ones. keep_every_steps: those of its
    multiples, 0 = none. keep_best: a column of metrics.jsonl, empty = none; the checkpoint where
    it is lowest or highest, as best_is says.
    """

    every_steps: int = 1000
    asynchronous: bool = True
    keep_last: int = 2
    keep_every_steps: int = 0
    keep_best: str = ""
    best_is: Literal["lowest", "highest"] = "lowest"

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.keep_last < 1:
            raise ConfigError(
                "checkpoint.every_steps and checkpoint.keep_last must be >= 1; "
                f"got {self.every_steps} and {self.keep_last}."
            )
        if self.keep_every_steps < 0 or self.keep_every_steps % self.every_steps:
            raise ConfigError(
                "checkpoint.keep_every_steps must be a multiple of checkpoint.every_steps="
                f"{self.every_steps}; got {self.keep_every_steps}. 0 keeps none for good."
            )


@dataclass(frozen=True, kw_only=True)
class PreemptionConfig:
    """How a run leaves when the cluster wants the machine back.

    grace_seconds: from a signal to leaving by force, without saving; 0 = never by force.
    margin_seconds: kept free between the last save and the time limit of the job, for the
    batch script to requeue it.
    """

    grace_seconds: float = 600.0
    margin_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.grace_seconds < 0 or self.margin_seconds < 0:
            raise ConfigError(
                "preemption.grace_seconds and preemption.margin_seconds must be >= 0; "
                f"got {self.grace_seconds:g} and {self.margin_seconds:g}."
            )


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What a run does about steps that go wrong, and about steps that do not come.

    max_skipped, max_skipped_in_a_row: steps with a loss or gradient that is not finite are left
    out on every rank; one more than this ends the run.
    spikes: of the loss, `spike_sigmas` standard deviations above its mean over the last
    `spike_window` steps. log = an event; skip = the step is left out as well; rollback = the run
    also returns to its newest checkpoint and goes on with the data after the spike, at most
    max_rollbacks times over all restarts, one more ends it. Before the first checkpoint it skips.
    stall_factor: a step that takes this many times the median of the last ones, and at least
    stall_min_seconds, is a stall: all stacks are written to logs/. The first step of a start has
    stall_first_seconds. on_stall: log = wait on; stop = leave with exit code 5, for a requeue.
    heartbeat_seconds: between two signs of life of a rank; 0 = neither those nor a watch over
    stalls.
    """

    max_skipped: int = 100
    max_skipped_in_a_row: int = 3
    max_rollbacks: int = 3
    spikes: Literal["off", "log", "skip", "rollback"] = "log"
    spike_sigmas: float = 6.0
    spike_window: int = 100
    stall_factor: float = 10.0
    stall_min_seconds: float = 300.0
    stall_first_seconds: float = 1800.0
    on_stall: Literal["log", "stop"] = "log"
    heartbeat_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.max_skipped < 0 or self.max_skipped_in_a_row < 0:
            raise ConfigError(
                "watch.max_skipped and watch.max_skipped_in_a_row must be >= 0; got "
                f"{self.max_skipped} and {self.max_skipped_in_a_row}. 0 ends the run at once."
            )
        if self.max_rollbacks < 0:
            raise ConfigError(
                f"watch.max_rollbacks must be >= 0; got {self.max_rollbacks}. 0 ends the run at "
                "the first spike under watch.spikes=rollback."
            )
        if self.spike_sigmas <= 0 or self.spike_window < 2:
            raise ConfigError(
                "watch.spike_sigmas must be positive and watch.spike_window >= 2; got "
                f"{self.spike_sigmas:g} and {self.spike_window}. watch.spikes=off looks at none."
            )
        seconds = (self.stall_min_seconds, self.stall_first_seconds)
        if self.stall_factor < 1 or min(seconds) <= 0 or self.heartbeat_seconds < 0:
            raise ConfigError(
                "watch.stall_factor must be >= 1, watch.stall_min_seconds and "
                "watch.stall_first_seconds positive, watch.heartbeat_seconds >= 0; got "
                f"{self.stall_factor:g}, {seconds[0]:g}, {seconds[1]:g} and "
                f"{self.heartbeat_seconds:g}."
            )


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """What is written while the run goes on; metrics.jsonl always is.

    log_every: steps between log lines, the only moments at which losses leave the device.
    panels_every: steps between pictures of predictions, 0 = none.
    task_norms_every: steps between measurements of each task's own gradient norm, 0 = none; such a
    step has one more backward pass for each task.
    wandb: auto = online where a key and the server are there, else offline.
    """

    log_every: int = 10
    panels_every: int = 0
    task_norms_every: int = 0
    wandb: Literal["off", "auto", "offline", "online"] = "off"
    wandb_project: str = "xdecoder"

    def __post_init__(self) -> None:
        if self.log_every < 1 or min(self.panels_every, self.task_norms_every) < 0:
            raise ConfigError(
                "tracking.log_every must be >= 1, tracking.panels_every and "
                f"tracking.task_norms_every >= 0; got {self.log_every}, {self.panels_every} and "
                f"{self.task_norms_every}."
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What `python -m pipelines.evaluate` measures when it is not told: a folder and a split.

    root: COCO-format folder. max_images: of the split, 0 = all.
    """

    root: str = ""
    split: str = "val"
    max_images: int = 0


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank additions instead of weights are trained; rank 0 = off. See `xdecoder/lora.py`.

    alpha: products of the factors are multiplied by alpha / rank. targets: names of linear layers.
    """

    rank: int = 0
    alpha: int = 16
    targets: tuple[str, ...] = (
        "out_proj",
        "linear1",
        "linear2",
        "value_proj",
        "output_proj",
        "qkv",
    )

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0:
            raise ConfigError(
                f"lora.rank must be >= 0 and lora.alpha positive; got {self.rank}, {self.alpha}."
            )


# of each family
_LOSSES_OF: dict[type, type] = {
    ModelConfig: LossConfig,
    MaskFormerConfig: MaskLossConfig,
    OpenSeeDConfig: BoxLossConfig,
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run.

    output_dir: the folder of this run, empty = runs/<name>. steps: optimizer steps.
    deterministic: refuse kernels that add in random order.
    init_from: run or checkpoint folder to take weights from, empty = a fresh model.
    model, losses: of one family; its recipes set both.
    """

    name: str
    steps: int
    output_dir: str = ""
    seed: int = 0
    deterministic: bool = True
    init_from: str = ""
    model: ModelConfig | MaskFormerConfig | OpenSeeDConfig = field(default_factory=ModelConfig)
    losses: LossConfig | MaskLossConfig | BoxLossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    preemption: PreemptionConfig = field(default_factory=PreemptionConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps must be >= 1; got {self.steps}.")
        if self.schedule.warmup_steps >= self.steps:
            raise ConfigError(
                f"schedule.warmup_steps must be below steps={self.steps}; "
                f"got {self.schedule.warmup_steps}. Lower it, or train longer."
            )
        if not self.name or "/" in self.name:
            raise ConfigError(
                f"name must be one folder name; got {self.name!r}. "
                "Use output_dir for the whole path."
            )
        if self.watch.spikes in ("skip", "rollback") and self.parallel.precision == "fp16":
            raise ConfigError(
                f"watch.spikes={self.watch.spikes} needs parallel.precision=bf16 or fp32; got "
                "fp16, whose loss scale would fall at every step that is left out. Set "
                "watch.spikes=log."
            )
        shards_weights = self.parallel.backend == "deepspeed" and self.parallel.zero_stage == 3
        if self.tracking.task_norms_every and shards_weights:
            raise ConfigError(
                "tracking.task_norms_every needs whole weights on every rank; got "
                "parallel.zero_stage=3. Set tracking.task_norms_every=0, or a lower stage."
            )
        self._check_family()

    def _check_family(self) -> None:
        if not isinstance(self.losses, _LOSSES_OF[type(self.model)]):
            raise ConfigError(
                "model and losses must be of one family; got "
                f"{type(self.model).__name__} and {type(self.losses).__name__}. "
                "Start from a recipe of the family."
            )
        reads_captions = isinstance(self.model, ModelConfig)
        if not reads_captions and self.data.image_text.batch_size:
            closed = isinstance(self.model, MaskFormerConfig)
            whose = "a model with a fixed list of classes" if closed else "OpenSeeD"
            raise ConfigError(
                f"data.image_text.batch_size must be 0 for {whose}, "
                f"which reads no captions; got {self.data.image_text.batch_size}."
            )
        if self.data.detection.batch_size and not isinstance(self.model, OpenSeeDConfig):
            raise ConfigError(
                "data.detection.batch_size must be 0 for a model that predicts no boxes; got "
                f"{self.data.detection.batch_size}. Boxes train an OpenSeeD; start from one of "
                "its recipes."
            )

    @property
    def run_folder(self) -> Path:
        """Where everything of this run is written."""
        return Path(self.output_dir or f"runs/{self.name}")
