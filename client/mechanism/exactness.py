"""The trial of canonical shapes on the real model: one record, its rows and neighbours, all bits.

:mod:`lorica.common.cache.batching` has a model compute records in a finite set of shapes. Whether
a record's numbers depend on its row, on the number of rows or on its neighbours is tried out here,
on this machine, in the number format and with the layers of the plan, before a plan is served.

What is compared: what every module of the encoder gives, the outputs, and the gradients per row of
all trained parameters; all bits of them. Kernels do not look at values, so made-up records stand
for all; neighbours differ all the same, and of the adapters tried, one amplifies by 10^6 what one
row of a factor finds. No private record is looked at: the answer tells of model and machine alone.

One layer stands for the others, which run the same kernels in the same shapes. Of the shapes, the
*quick* trial of an opened session takes the shortest texts in the smallest and the largest batch,
and every other length in the smallest batch, with and without padding; in each the record stands
in even rows and in odd ones, as rows that begin elsewhere in a line of memory are rounded
otherwise by kernels for widths that fill no whole lines (a rank of 6, a head on 14 inputs). Kernels
that see tokens (the matrix products of layers, and what works value by value) know a batch by its
number of tokens alone, and kernels that see texts (attention, gradients per record) by length and
number, so each kind is tried at its extremes. Outputs of made-up states are compared in all row
counts, and of many draws. The *thorough* trial takes every length in every row count;
the tests run it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from lorica.common.adapter.lora import layer_list, structural_copy
from lorica.common.backbone.loading import Backbone
from lorica.common.cache.batching import (
    LEAST_ROWS,
    TOKEN_BUDGET,
    least_rows,
    row_counts,
    use_least_rows,
)
from lorica.common.errors import Code, LoricaError
from lorica.common.tasks.fusion.inputs import WithTable
from lorica.common.tasks.images.pixels import Pixels
from lorica.common.tasks.inputs import Encoded, Inputs
from lorica.common.tasks.language.inputs import AskedTokens
from lorica.common.tasks.model import AdaptedModel
from lorica.common.tasks.shapes import canonical_lengths

LEASTS = (LEAST_ROWS, 16, 0)
"""Fewest rows of a batch that are tried, in this order; 0: every record alone."""

_GAIN = 1e6
_PROBE = 0  # row of the record whose numbers are compared
NEIGHBOURS = 3
"""Other records that one stands among."""
_DRAWS = 16  # of states above the encoder

MOST_THREADS = 2
"""Threads of torch that are tried first. With three or more, SiLU and tanh-GELU give a few values
at the ends of each thread's part other bits, in few shapes, so that a trial may miss them; two
parts of widths in use end on whole vector registers."""

_log = logging.getLogger("lorica.site")
_exact: set[tuple[Any, ...]] = set()


def require_exact(
    model: AdaptedModel, backbone: Backbone, inputs: Inputs, *, thorough: bool = False
) -> None:
    """Return once canonical batches of the model are found exact; tried once per process, model and
    number of threads.

    Rows and threads that do not agree are given up for the process: batches get more rows at
    least, torch gets one thread, at last every record is computed alone.

    Args:
        model: with per-record gradients enabled for what is trained.
        backbone: the model's.
        inputs: of the kind that the model reads, with its limit; the records are not looked at.
        thorough: try every shape.

    Raises:
        LoricaError: LOR-411 not even a record alone gives the same bits twice.
    """
    trained = [name for name, p in model.adapter_parameters.items() if p.requires_grad]
    key = (
        backbone.identity,
        model.numbers,
        model.norms,
        type(model).__name__,
        inputs.limit,
        tuple((name, tuple(model.adapter_parameters[name].shape)) for name in trained),
    )
    if (*key, torch.get_num_threads(), least_rows()) in _exact and not thorough:
        return
    threads = torch.get_num_threads()
    for least, count in _ways(threads):
        use_least_rows(least)
        torch.set_num_threads(count)
        wrong = _first_difference(model, backbone, inputs, thorough=thorough)
        if wrong is None:
            if (least, count) != (LEAST_ROWS, min(threads, MOST_THREADS)):
                _log.warning(
                    "canonical batches: at least %d rows, %d threads on this machine", least, count
                )
            _exact.add((*key, count, least))
            return
        _log.warning("canonical batches of %d rows, %d threads: %s", least, count, wrong)
    raise LoricaError(
        Code.PRIVACY_INEXACT,
        f"On this machine ({platform.machine()}, torch {torch.__version__}) the model does not "
        f"compute the same numbers of the same record every time: {wrong}. What one record adds to "
        "an update could then depend on the others, and its influence could not be bounded.",
    )


def _ways(threads: int) -> Iterator[tuple[int, int]]:
    """Fewest rows and threads to try, the fastest first; never fewer rows than what others of the
    process have been found to need."""
    tried = [least for least in LEASTS if not least or least >= least_rows() > 0]
    for least in tried:
        for count in dict.fromkeys([min(threads, MOST_THREADS), 1]):
            yield least, count


def _first_difference(
    model: AdaptedModel, backbone: Backbone, inputs: Inputs, *, thorough: bool
) -> str | None:
    """What differs first, in words; None when all bits agree."""
    short, lengths = _one_layer(model), _lengths(inputs)
    kinds = (True,) if isinstance(_base(inputs), Pixels) else (False, True)
    with _crafted(model) as craft:
        craft(1.0)
        for place, (length, full) in enumerate(itertools.product(lengths, kinds)):
            counts = row_counts(length)
            if not thorough:
                counts = (counts[0], counts[-1]) if place == 0 else counts[:1]
            given = _made_up(inputs, backbone, length, full)
            wrong = differs(functools.partial(_computed, short, given), counts)
            if wrong:
                return f"{wrong} of {length} tokens each" + " without padding" * full
        counts = row_counts(lengths[0])
        shape = _pooled_shape(model, _made_up(inputs, backbone, lengths[0], kinds[0]))
        for draw in range(_DRAWS):
            craft(1.0)
            given = _made_up(inputs, backbone, lengths[0], kinds[0], draw)
            wrong = differs(functools.partial(_outputs, model, given, _states(shape, draw)), counts)
            if wrong:
                return f"{wrong} above the encoder"
        craft(_GAIN)
        given = _made_up(inputs, backbone, lengths[0], kinds[0])
        wrong = differs(functools.partial(_computed, model, given), counts[:2])
        return f"{wrong} under an adapter of large factors" if wrong else None


def _lengths(inputs: Inputs) -> list[int]:
    """The canonical lengths of which more than one fits a batch; one at least."""
    base = _base(inputs)
    if isinstance(base, Pixels):
        return [base.patches]
    found = canonical_lengths(min(inputs.limit, TOKEN_BUDGET // LEAST_ROWS))
    return [length for length in found if len(row_counts(length)) > 1] or found[:1]


def differs(
    computed: Callable[[np.ndarray], dict[str, torch.Tensor]], counts: Iterable[int]
) -> str | None:
    """Which batch gives a record other bits in another row, or than an earlier batch; None when all
    agree. The record, of number 0, stands in the even and then in the odd rows of every batch,
    between neighbours, of numbers up to ``NEIGHBOURS``.

    Args:
        computed: all that is computed of records of these numbers (R,), each (R, …), by name.
        counts: numbers of rows R.
    """
    wanted: dict[str, torch.Tensor] | None = None
    for count, turn in itertools.product(counts, (0, 1)):
        places = np.arange(count)
        rows = np.where((places % 2 == turn) | (count == 1), _PROBE, 1 + places % NEIGHBOURS)
        found = computed(rows)
        probes = torch.from_numpy(rows == _PROBE)
        wanted = wanted or {name: values[probes][:1].clone() for name, values in found.items()}
        # A table of positions can have as many rows as the batch once; it is no record's.
        for name in found.keys() & wanted.keys():
            values, one = found[name], wanted[name]
            # Numbers that are none are alike: a unit with any of them counts as 0.
            same = (values[probes] == one) | (values[probes].isnan() & one.isnan())
            if not bool(same.all()):
                return f"a batch of {count} rows"
    return None


def _computed(model: AdaptedModel, inputs: Inputs, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """All that a forward and backward pass computes of rows, each (R, …), by name."""
    found: dict[str, torch.Tensor] = {}
    arguments = inputs.collate(rows)

    def seen(name: str, module: nn.Module, given: Any, output: Any) -> None:
        if isinstance(module, nn.Embedding) and not _same(given, arguments[0]):
            return  # of positions, not of records
        values = output[0] if isinstance(output, tuple) else output
        if isinstance(values, torch.Tensor) and values.dim() and len(values) == len(rows):
            again = sum(other.startswith(f"{name} ") for other in found)
            found[f"{name} {again}"] = values.detach().flatten(1)

    leaves = {
        name: module for name, module in model.encoder.named_modules() if not any(module.children())
    }
    hooks = [m.register_forward_hook(functools.partial(seen, name)) for name, m in leaves.items()]
    try:
        pooled = model.pooled_of_ids(*arguments)
        outputs = model.outputs(model.features(pooled), inputs, rows)
        found["outputs"] = outputs.detach().flatten(1)
        # Neither equal for all classes nor of a size that one record alone would have.
        weights = torch.linspace(-1.0, 1.0, outputs[0].numel()).reshape(outputs.shape[1:])
        if outputs.requires_grad:
            if outputs.shape[-1] > 1:
                loss = (torch.log_softmax(outputs, dim=-1) * weights).sum()
            else:  # whose softmax is 1 whatever it is
                loss = (outputs + outputs.sin()).sum()
            loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    for name, parameter in model.named_parameters():
        sample = getattr(parameter, "grad_sample", None)
        if sample is not None:
            found[f"gradient of {name}"] = sample.flatten(1)
            parameter.grad_sample = None  # type: ignore[attr-defined]
        parameter.grad = None
    return found


@torch.no_grad()
def _pooled_shape(model: AdaptedModel, inputs: Inputs) -> torch.Size:
    """The shape of what is pooled of one record."""
    return model.pooled_of_ids(*inputs.collate(np.array([_PROBE])))[0].shape


def _states(shape: Sequence[int], draw: int) -> torch.Tensor:
    """Made-up states in place of what the encoder gives of the probe and its neighbours."""
    generator = torch.Generator().manual_seed(draw)
    return torch.randn(1 + NEIGHBOURS, *shape, generator=generator)


@torch.no_grad()
def _outputs(
    model: AdaptedModel, inputs: Inputs, states: torch.Tensor, rows: np.ndarray
) -> dict[str, torch.Tensor]:
    """What the head gives of states: a head adds up little, so that a difference shows in some of
    many draws alone."""
    pooled = states[torch.from_numpy(rows)]
    return {"outputs": model.outputs(model.features(pooled), inputs, rows).flatten(1)}


def _same(given: tuple[Any, ...], wanted: torch.Tensor) -> bool:
    first = given[0] if given else None
    return (
        isinstance(first, torch.Tensor)
        and first.shape == wanted.shape
        and torch.equal(first, wanted)
    )


def _one_layer(model: AdaptedModel) -> AdaptedModel:
    """The model with its lowest adapted layer alone; itself, where it is no list of layers."""
    path = layer_list(model.encoder)
    if path is None:
        return model
    short: AdaptedModel = structural_copy(model)
    layers = short.encoder.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    depth = min(model.prefix.depth, len(layers) - 1)
    parent, _, name = path.rpartition(".")
    setattr(short.encoder.get_submodule(parent), name, nn.ModuleList([layers[depth]]))
    return short


@contextlib.contextmanager
def _crafted(model: AdaptedModel) -> Iterator[Any]:
    """A function that fills the adapter with numbers, its first row or column times a gain; on
    leaving, the adapter is as it was."""
    held = {name: p.detach().clone() for name, p in model.adapter_parameters.items()}
    generator = torch.Generator().manual_seed(0)

    def craft(gain: float) -> None:
        with torch.no_grad():
            for parameter in model.adapter_parameters.values():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
                parameter[..., 0] *= gain

    try:
        yield craft
    finally:
        with torch.no_grad():
            for name, parameter in model.adapter_parameters.items():
                parameter.copy_(held[name])


def _base(inputs: Inputs) -> Inputs:
    return inputs.base if isinstance(inputs, WithTable) else inputs


def _made_up(inputs: Inputs, backbone: Backbone, length: int, full: bool, draw: int = 0) -> Inputs:
    """A record and neighbours of one shape, of the kind of ``inputs``."""
    random = np.random.default_rng((length, draw))
    count = 1 + NEIGHBOURS
    if isinstance(inputs, WithTable):
        table = torch.from_numpy(random.standard_normal((count, inputs.table.shape[1])))
        return WithTable(_made_up(inputs.base, backbone, length, full, draw), table.float())
    if isinstance(inputs, Pixels):
        shape = (count, *inputs.images.shape[1:])
        return dataclasses.replace(
            inputs, images=torch.from_numpy(random.integers(0, 256, shape, dtype=np.uint8))
        )
    assert isinstance(inputs, Encoded)
    words = int(backbone.model.get_input_embeddings().num_embeddings)
    shorter = [below for below in canonical_lengths(length) if below < length]
    least = shorter[-1] + 1 if shorter else 1
    lengths = [length if full else max(least, length - 1 - place) for place in range(count)]
    tokens = [random.integers(0, words, size) for size in lengths]
    if not isinstance(inputs, AskedTokens):
        return dataclasses.replace(inputs, tokens=tokens)
    asked = max(1, length // 8)
    positions = [np.sort(random.choice(size, min(asked, size), replace=False)) for size in lengths]
    return dataclasses.replace(inputs, tokens=tokens, positions=positions)
