"""A network as a file for other programs: a program of torch.export, or ONNX.

The exported model takes images in 0..1 and normalises them itself, so a user cannot normalise them wrongly. Its outputs
are `features`, `logits` and `probabilities`. The number of images in a batch is free. Of a segmentation network, the
features are on the grid; logits and probabilities are those of the image's pixels.
"""

import copy
import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from uda.core.errors import UserError
from uda.core.registry import Registry
from uda.models.network import Network
from uda.models.segmentation import SegmentationNetwork, upsampled

INPUT = "images"
OUTPUTS = ("features", "logits", "probabilities")

Outputs = dict[str, np.ndarray]
"""The outputs by name, each with one row per image."""


class PortableNetwork(nn.Module):
    """A network on the CPU with its normalisation. The given network stays as it is.

    Args:
        network: the network.
        mean, std: of each channel, for images in 0..1.
    """

    def __init__(self, network: Network | SegmentationNetwork, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.network = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, C, S, S) in 0..1 -> features (B, D), logits and probabilities (B, K), by name.

        A segmentation network: images (B, C, H, W) -> features (B, D, h, w), logits and probabilities (B, K, H, W).
        """
        features, logits = self.network((images - self.mean) / self.std)
        if isinstance(self.network, SegmentationNetwork):
            logits = upsampled(logits, self.network.stride, images.shape[2:])
        return dict(zip(OUTPUTS, (features, logits, logits.softmax(1)), strict=True))


@dataclass(frozen=True)
class Format:
    """A format of files."""

    ending: str
    """Ending of its files."""
    write: Callable[[PortableNetwork, Tensor], bytes]
    """The content of a file, from a network and two example images."""
    open: Callable[[bytes], Callable[[Tensor], Outputs]]
    """The model in a file's content, as a function of images (B, C, S, S) in 0..1."""
    versions: Callable[[], dict[str, str]]
    """Versions of the packages that it needs. Raises UserError if they are not installed."""


FORMATS: Registry[Format] = Registry("format")


def exported(network: PortableNetwork, kind: str, size: int | tuple[int, int]) -> bytes:
    """The content of a file with the network, for images of `size` x `size` pixels, or of height and width.

    Raises:
        UserError: torch cannot export the network, or it is too large for the format.
    """
    images = torch.rand(2, len(network.mean), *((size, size) if isinstance(size, int) else size))
    with warnings.catch_warnings(action="ignore"):
        try:
            return FORMATS[kind].write(network, images)
        except UserError:
            raise
        except Exception as error:  # torch, timm and onnxscript raise many kinds of errors
            reason = (str(error).strip() or "no reason given").split("\n")[0]
            raise UserError(
                f"torch {torch.__version__} cannot export this network as {kind} ({type(error).__name__}: {reason})"
            ) from error


def _program(network: PortableNetwork, images: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    return torch.export.export(network, (images,), dynamic_shapes=({0: batch},), strict=False)


def _write_torch(network: PortableNetwork, images: Tensor) -> bytes:
    content = io.BytesIO()
    torch.export.save(_program(network, images), content)
    return content.getvalue()


def _open_torch(content: bytes) -> Callable[[Tensor], Outputs]:
    model = torch.export.load(io.BytesIO(content)).module()

    def run(images: Tensor) -> Outputs:
        with torch.no_grad():
            return {name: values.numpy() for name, values in model(images).items()}

    return run


FORMATS.register("torch-export")(Format(".pt2", _write_torch, _open_torch, dict))


#: The most bytes of weights in an ONNX file, which must be below 2 GiB as a whole.
_MOST_BYTES = 2**31 - 2**20


def _write_onnx(network: PortableNetwork, images: Tensor) -> bytes:
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if size > _MOST_BYTES:
        raise UserError(f"the weights have {size / 2**30:.1f} GiB, but an ONNX file has at most 2; use torch-export")
    program = _program(network, images)
    replaced = {torch.ops.aten.acos.default: _arccos, torch.ops.aten.arccos.default: _arccos}
    if any(node.target in replaced for node in program.graph.nodes):
        program = program.run_decompositions(replaced)
    names = {"input_names": [INPUT], "output_names": list(OUTPUTS)}
    return torch.onnx.export(program, dynamo=True, verbose=False, **names).model_proto.SerializeToString()


def _arccos(cosines: Tensor) -> Tensor:
    """arccos by the arcsine of half the angle, which is exact near 0 and pi in single precision.

    ONNX Runtime has no arccos in double precision.
    """
    half = torch.sqrt((1 - cosines.abs()) / 2).float()
    angles = 2 * torch.asin(half).to(cosines.dtype)
    return torch.where(cosines < 0, math.pi - angles, angles)


def _open_onnx(content: bytes) -> Callable[[Tensor], Outputs]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: dict(zip(OUTPUTS, session.run(list(OUTPUTS), {INPUT: images.numpy()}), strict=True))


def _onnx_versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("onnx", "onnxscript", "onnxruntime")
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'onnx needs the packages {", ".join(names)} ({error}); pip install "uda-toolkit[export]", or in a '
            'checkout pip install -e ".[export]"'
        ) from None
    return {name: version(name) for name in names}


FORMATS.register("onnx")(Format(".onnx", _write_onnx, _open_onnx, _onnx_versions))
