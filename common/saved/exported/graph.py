"""An adapted model as an ONNX graph, run by onnxruntime; in int8 where that is asked for."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lorica.common.errors import Code, LoricaError
from lorica.common.saved.exported.agreement import Compute, forward
from lorica.common.tasks.base import Task
from lorica.common.tasks.model import AdaptedModel

if TYPE_CHECKING:
    import onnxruntime

OUTPUT = "outputs"
_TOO_LARGE = 1_900_000_000  # bytes: protobuf messages end at 2 GiB
_LOGGERS = ("torch.onnx", "torch.onnx._internal.exporter._registration", "onnxscript", "onnx_ir")


class Graph(nn.Module):
    """What is traced: arguments of a padded batch to the head's outputs."""

    def __init__(self, task: Task, model: AdaptedModel) -> None:
        super().__init__()
        self.model = model
        self._task = task

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        """``given`` as :func:`lorica.common.saved.exported.agreement.arguments` makes them."""
        return forward(self._task, self.model, given)


def input_names(task: Task) -> list[str]:
    """Names of the graph's inputs, in their order."""
    read = ["pixel_values"] if task.traits.images else ["input_ids", "attention_mask"]
    return [*read, "table"] if task.traits.table else read


def write_graph(
    task: Task, model: AdaptedModel, example: Sequence[torch.Tensor], limit: int, file: Path
) -> None:
    """Trace a model and write it; any number of records, texts of any length up to ``limit``.

    Args:
        task: the model's, on a backbone that has the adapter in its weights.
        model: in eval mode.
        example: arguments of two records or more.
        limit: tokens of the longest text.
        file: ``model.onnx``; weights that are too large for it lie beside it.

    Raises:
        LoricaError: LOR-207 a package is missing, LOR-210 torch cannot trace the architecture.
    """
    require_packages()
    records = torch.export.Dim("records")
    tokens = torch.export.Dim("tokens", max=limit)
    shapes: dict[str, dict[int, Any]] = {
        name: {0: records} | ({1: tokens} if name in ("input_ids", "attention_mask") else {})
        for name in input_names(task)
    }
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                Graph(task, model).eval(),
                tuple(example),
                str(file),
                input_names=list(shapes),
                output_names=[OUTPUT],
                dynamic_shapes={"given": tuple(shapes.values())},
                dynamo=True,
                verbose=False,
                external_data=size > _TOO_LARGE,
            )
    except LoricaError:
        raise
    except Exception as error:  # the exporter's own, and whatever a model's code raises
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise LoricaError(
            Code.EXPORT_FORM,
            f"torch cannot make an ONNX graph of {type(model.encoder).__name__}: {reason}",
        ) from error


def quantise_graph(file: Path, out: Path) -> None:
    """Write the graph with the weights of its matrix products in int8, by their columns; what
    they are multiplied with is rounded when it is computed ("dynamic")."""
    require_packages()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        graph = onnx.load(file)
        # Shapes that the exporter noted name symbols that the quantiser does not infer anew.
        del graph.graph.value_info[:]
        quantize_dynamic(graph, out, weight_type=QuantType.QInt8, per_channel=True)


def computing(task: Task, file: Path) -> Compute:
    """What the graph in a file makes of the arguments of a batch, by onnxruntime on the CPU."""
    session = open_graph(file)
    names = input_names(task)

    def compute(given: tuple[torch.Tensor, ...]) -> torch.Tensor:
        fed = {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}
        return torch.from_numpy(session.run([OUTPUT], fed)[0])

    return compute


def open_graph(file: Path) -> onnxruntime.InferenceSession:
    """A session of the graph on the CPU."""
    require_packages()
    import onnxruntime

    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def require_packages() -> None:
    """Return if the extra "onnx" is installed. Raises LOR-207."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise LoricaError(
            Code.PACKAGE_MISSING,
            f"ONNX needs the package {error.name}, which is not installed.",
            mend="pip install 'lorica[onnx]'",
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of exporter and quantiser, which are for those who develop them."""
    import warnings

    loggers = [logging.getLogger(name) for name in (*_LOGGERS, "root")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
