"""Settings of training: the optimiser, how a run is computed, and its reports."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from uda.core.settings import Settings


class OptimSettings(Settings):
    """An optimiser and its schedule."""

    name: Literal["sgd", "adamw"] = "sgd"
    """Optimiser."""
    lr: float = Field(1e-4, gt=0)
    """Learning rate of the new layers: head, classifier and a method's own networks."""
    backbone_lr_scale: float = Field(1.0, ge=0)
    """Learning rate of the backbone as a multiple of `lr`."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD, or the first beta of AdamW."""
    backbone_momentum: float | None = Field(None, ge=0, lt=1)
    """Momentum of the backbone; null: `momentum`. MCD's authors train their generator with 0."""
    nesterov: bool = True
    """Use Nesterov momentum in SGD."""
    weight_decay: float = Field(5e-4, ge=0)
    """Weight decay."""
    schedule: Literal["constant", "cosine", "one_cycle", "inverse"] = "constant"
    """Learning rate over a stage; a self-training round is a stage. `inverse` is DANN's (1 + gamma p)^-power, with p
    the share of the stage's steps that is done."""
    gamma: float = Field(10.0, ge=0)
    """Gamma of `inverse`, as in DANN and SHOT. Other projects write (1 + g * step)^-power; there gamma = g * steps."""
    power: float = Field(0.75, ge=0)
    """Power of `inverse`, as in DANN and SHOT."""
    clip_grad: float | None = Field(None, gt=0)
    """Largest norm of the gradient; null: no clipping."""


class EmaSettings(Settings):
    """The teacher, an exponential moving average (EMA) of the network's weights. The trained network is the student."""

    decay: float | None = Field(None, ge=0, lt=1)
    """After each step, teacher = decay * teacher + (1 - decay) * student; null: there is no teacher. Usual are 0.99 for
    hundreds of steps and 0.999 for thousands. BatchNorm's running statistics are averaged like the weights."""
    warm_up: bool = True
    """Use a smaller decay in the first steps, 1 - 1 / step, so that the teacher forgets its beginning."""
    evaluated: Literal["teacher", "student"] = "teacher"
    """The network that reports describe, that validators judge and whose weights are saved."""

    @model_validator(mode="after")
    def of_a_teacher(self):
        fields = type(self).model_fields
        set_ = [name for name in fields if name != "decay" and getattr(self, name) != fields[name].default]
        if self.decay is None and set_:
            raise ValueError(f"{set_[0]}: there is no teacher; set decay too, for example to 0.99")
        return self

    @property
    def told(self) -> str:
        """The settings in words, for the plan of a run."""
        warm_up = " after a warm-up" if self.warm_up else ""
        return f"moving average of the weights, decay {self.decay:g}{warm_up}; reports describe the {self.evaluated}"


class RuntimeSettings(Settings):
    """How the run is computed. A resumed run may change these settings.

    Results differ by rounding only, with three exceptions: `accumulate`, `sync_batch_norm` and the number of processes
    decide which images share BatchNorm statistics.

    `auto` and null are resolved for the device and the network (uda/training/device.py). The `compute` line of the log
    shows the result.
    `threads`, `allocator`, `tf32` and `cudnn_benchmark` apply to the whole process. The command line sets them. A call
    from Python does not change the process.
    """

    device: str = "auto"
    """`auto` (cuda, then mps, then cpu), or a torch device."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast in training. `auto`: bf16 on GPUs with bf16 units, fp32 on other devices and for small networks. Try
    `bf16` on CPUs with bf16 units (AVX-512 BF16, AMX): some networks become faster, others slower. MLDG and
    Feature-Critic always train in fp32, except that first-order MLDG can use bf16; the log says so."""
    predict_precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast in predict passes. The default is fp32 on every device: the 8 bits of bf16 make equal scores, and lambda
    must separate scores."""
    channels_last: bool | None = None
    """Use the channels_last memory format; null: for convolutional networks on CUDA and CPUs."""
    compile: bool = False
    """Use torch.compile for the network. The start takes a minute or more longer, then steps are faster on most
    devices. MCD, ADR and ENT call the network's parts one by one and gain nothing."""
    fused: bool | None = None
    """Update all parameters in one kernel; null: on CUDA. On CPUs this saves 1 to 2 % and rounds differently."""
    tf32: bool = True
    """CUDA: fp32 convolutions use TF32, with 10 bits of mantissa, in predict passes too. false: all 23 bits, much
    slower. Matrix products (losses, angles, the classifier) always use 23 bits. Transformers are mostly matrix
    products; `predict_precision=fp16` computes those with 10 bits."""
    cudnn_benchmark: bool | None = None
    """cuDNN times its algorithms and uses the fastest, so two runs may differ in their last bits; null: on CUDA."""
    allocator: Literal["auto", "default", "keep"] = "auto"
    """`keep`: glibc's malloc keeps freed memory, in huge pages. `auto`: `keep` on CPUs, unless the environment
    configures malloc."""
    workers: int | None = Field(None, ge=0)
    """Loader processes; null: none for images in memory, else up to 8 and at most the number of cores."""
    pin_memory: bool | None = None
    """Use page-locked batches, which are copied to a GPU in the background; null: on CUDA."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of torch; null: torch's default."""
    accumulate: int = Field(1, ge=1)
    """Number of parts that each process divides its batch into. Their gradients are added up, which needs less memory.
    The result is the same as with that many times the processes: each part has its own BatchNorm statistics."""
    sync_batch_norm: bool = False
    """Compute BatchNorm statistics over the batch of all processes (SyncBatchNorm, CUDA only)."""
    checkpoint_minutes: float = Field(5.0, ge=0)
    """Minutes between checkpoints within an epoch. They are rarer if they would cost more than 1 % of the time."""
    predict_batch_size: int | None = Field(None, ge=1)
    """Images per batch of a predict pass; null: 256 on a GPU, 32 on a CPU, or 128 there for a small network (they fit
    the CPU's caches)."""


class ReportSettings(Settings):
    """The reports of a run for people."""

    gone: ClassVar[dict[str, str]] = {
        "tensorboard": "this key is gone; name loggers instead, report.loggers=[tensorboard], or [] for none"
    }

    loggers: tuple[str, ...] = ("tensorboard",)
    """Where figures go during the run: `tensorboard`, or loggers of your own plugins; []: nowhere."""

    @field_validator("loggers")
    @classmethod
    def each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for place, name in enumerate(names):
            if name in names[:place]:
                raise ValueError(f"'{name}' is named twice")
        return names

    page: bool = True
    """Write report.html after every round and at the end."""
    gallery: int = Field(400, ge=0)
    """Number of images in report.html at most; 0: none."""
    map: Literal["pca", "tsne", "umap", "none"] = "pca"
    """Projection of the features for the map of images in report.html. `umap` needs the package umap-learn."""
    features: bool = False
    """Write features and probabilities of all images to images.parquet too. They need much space."""
