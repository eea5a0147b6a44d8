"""Settings of training: the optimiser, how a run is computed, what it leaves."""

from typing import Literal

from pydantic import Field

from uda.core.settings import Settings


class OptimSettings(Settings):
    """One optimiser and its schedule."""

    name: Literal["sgd", "adamw"] = "sgd"
    """Optimiser."""
    lr: float = Field(1e-4, gt=0)
    """Learning rate of the new layers (head and classifier), and of all when the backbone's scale is 1."""
    backbone_lr_scale: float = Field(1.0, ge=0)
    """Learning rate of the backbone as a multiple of `lr`."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD's momentum, AdamW's first beta."""
    backbone_momentum: float | None = Field(None, ge=0, lt=1)
    """The backbone's; null: `momentum`, as for all others. MCD's authors train their generator without any."""
    nesterov: bool = True
    """SGD with Nesterov's momentum."""
    weight_decay: float = Field(5e-4, ge=0)
    """Weight decay."""
    schedule: Literal["constant", "cosine", "one_cycle", "inverse"] = "constant"
    """Learning rate over the stage (a self-training round is a stage of its own). With p, the share of the stage's
    steps that is done, `inverse` is (1 + gamma p)^-power, DANN's."""
    gamma: float = Field(10.0, ge=0)
    """`inverse`: DANN's and SHOT's gamma. Projects that write (1 + g * step)^-power mean gamma = g * steps."""
    power: float = Field(0.75, ge=0)
    """`inverse`: DANN's and SHOT's power."""
    clip_grad: float | None = Field(None, gt=0)
    """Largest gradient norm; null: no clipping."""


class RuntimeSettings(Settings):
    """How the run is computed, which a resume may change.

    Results differ by rounding alone, but for `accumulate`, `sync_batch_norm` and the number of processes, which decide
    which images share BatchNorm statistics.

    `auto` and null are decided by device and network (uda/training/device.py). The log's `compute` line says what was
    chosen.
    `threads`, `allocator`, `tf32` and `cudnn_benchmark` belong to the whole process: the command line sets them, and a
    call from Python leaves the process as it is.
    """

    device: str = "auto"
    """`auto` (cuda, then mps, then cpu), or a torch device."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast in training. `auto`: bf16 on GPUs that compute in it, fp32 elsewhere and for small networks. On CPUs
    that compute in bf16 (AVX-512 BF16, AMX) `bf16` is worth a try: some networks gain, others lose. MLDG and
    Feature-Critic train in fp32 whatever it says, but for first-order MLDG in bf16; the log says so."""
    predict_precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast of predict passes. fp32 on every device: bf16's 8 bits make ties, and lambda cuts between scores."""
    channels_last: bool | None = None
    """Memory format of images and weights; null: for convolutional networks on CUDA and CPUs."""
    compile: bool = False
    """torch.compile of the network: a minute or more at the start, then faster steps on most devices. MCD, ADR and ENT
    pass its parts one by one and gain nothing."""
    fused: bool | None = None
    """The optimiser's update in one kernel; null: on CUDA (on CPUs it rounds otherwise, for a percent or two)."""
    tf32: bool = True
    """CUDA: convolutions in fp32 take 10 bits of mantissa, in predict passes too; false: all 23, at a fraction of the
    speed. Matrix products always take all 23: losses, angles, the classifier. Most of a transformer is matrix products;
    `predict_precision=fp16` takes 10 bits for them."""
    cudnn_benchmark: bool | None = None
    """cuDNN times its algorithms and takes the fastest, so two runs may differ in their last bits; null: on CUDA."""
    allocator: Literal["auto", "default", "keep"] = "auto"
    """`keep`: glibc's malloc keeps what is freed, in huge pages; `auto`: on CPUs, unless the environment tunes it."""
    workers: int | None = Field(None, ge=0)
    """Loader processes; null: none for images in memory, else up to 8 and at most the cores."""
    pin_memory: bool | None = None
    """Page-locked batches, which copy to a GPU in the background; null: on CUDA."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of torch; null: torch's own choice."""
    accumulate: int = Field(1, ge=1)
    """Parts that a process deals its batch out to and adds up the gradients of: less memory, and what so many
    processes would compute (BatchNorm sees each part by itself)."""
    sync_batch_norm: bool = False
    """BatchNorm's statistics over the batch of all processes (SyncBatchNorm; CUDA)."""
    checkpoint_minutes: float = Field(5.0, ge=0)
    """Minutes between the checkpoints within an epoch; never so often that they cost more than 1 % of the time."""
    predict_batch_size: int | None = Field(None, ge=1)
    """Images in a batch of the predict pass; null: 256, on a CPU 32, for a small network 128 (what fits its caches)."""


class ReportSettings(Settings):
    """What a run leaves for people."""

    tensorboard: bool = True
    """Write TensorBoard event files."""
    page: bool = True
    """Write report.html at the end."""
    gallery: int = Field(24, ge=0)
    """Images in each gallery of report.html."""
