"""A backbone in 8 and 4 bits: memory, error and time of a step against float32.

    python benchmarks/speed/quantised.py [repeats]

Two backbones: the embedded one, half of whose weights are embeddings, which stay in float32, and a
random Llama of 12 layers of width 768 made on the spot, most of whose weights are linear. Memory
is that of the weights and, in a fresh process each, what the process holds more than before
(resident pages, after loading and one text; float32 weights are mapped pages of their file, of
which those of words that no text has are not resident). Steps are gradients per record of LoRA on
query and value of the last layer and of all, at batch 32 and 32 tokens; the formats take turns,
"repeats" times (default 7). The error is the distance of a text's feature from the one in float32,
as a cosine, on packaged notes.
"""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.table import Table

from lorica.common.display.console import Console

FORMATS = ("none", "int8", "int4")
BATCH, LENGTH = 32, 32


def large(folder: Path) -> Path:
    """A random Llama with the embedded tokenizer."""
    import shutil

    import transformers

    from lorica.common.backbone.files import embedded_folder

    config = transformers.LlamaConfig(
        vocab_size=30_522,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
    )
    torch.manual_seed(0)
    transformers.LlamaModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (embedded_folder() / name).exists():
            shutil.copyfile(embedded_folder() / name, folder / name)
    return folder


def resident_bytes() -> int:
    """Pages of this process that are in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def load(source: str, number: str) -> None:
    """In a process of its own: print bytes of the weights, and resident bytes more than before."""
    from lorica.common.backbone.loading import load_backbone
    from lorica.common.backbone.quantised import QuantisedLinear, weight_bytes
    from lorica.common.plan.subject import BackbonePlan

    QuantisedLinear(torch.eye(4), None, "int8").dequantised()  # libraries are loaded
    import transformers.modeling_utils  # noqa: F401

    gc.collect()
    before = resident_bytes()
    plan = BackbonePlan.model_validate({"source": source, "quantize": number})
    model = load_backbone(plan).model
    ids = torch.arange(1000, 1008)[None]
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    gc.collect()
    print(weight_bytes(model), resident_bytes() - before)


def memory(source: str, number: str) -> tuple[int, int]:
    """What :func:`load` prints."""
    command = [sys.executable, __file__, "load", source, number]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    weights, resident = done.stdout.split()[-2:]
    return int(weights), int(resident)


def steps(source: str, target: list[str], layers: list[int], repeats: int) -> dict[str, float]:
    """Median seconds of a step by format; the formats take turns."""
    from lorica.client.mechanism.per_sample import enable_per_sample_gradients
    from lorica.common.backbone.loading import load_backbone
    from lorica.common.plan import RunPlan
    from lorica.common.tasks.text_classification import TextClassifier

    ids = torch.randint(1000, 30_000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    made = {}
    for number in FORMATS:
        plan = RunPlan().replace(
            backbone={"source": source, "quantize": number},
            task={"labels": ["a", "b"]},
            adapter={"layers": layers, "target_modules": target},
        )
        model = TextClassifier(load_backbone(plan.backbone), plan)
        parameters = model.adapter_parameters
        names = [name for name in parameters if name != "head.center"]
        enable_per_sample_gradients(model, [parameters[name] for name in names])
        with torch.no_grad():
            for name in names:
                parameters[name].add_(0.01)
        made[number] = (model, [parameters[name] for name in names])
    times: dict[str, list[float]] = {number: [] for number in FORMATS}
    for _ in range(repeats + 1):
        for number, (model, trained) in made.items():
            begun = time.perf_counter()
            model.head(model.features_of_ids(ids, mask)).sum().backward()
            times[number].append(time.perf_counter() - begun)
            for parameter in trained:
                parameter.grad_sample = None
                parameter.grad = None
    return {number: statistics.median(found[1:]) for number, found in times.items()}


def cosines(number: str) -> tuple[float, float]:
    """Mean and least cosine of features in a format with those in float32, on packaged notes."""
    from lorica.common.backbone.loading import load_backbone
    from lorica.common.plan import RunPlan
    from lorica.common.tasks.run_data import load_data
    from lorica.common.tasks.text_classification import TextClassifier, collate, encode

    found = []
    for form in ("none", number):
        plan = RunPlan().replace(
            backbone={"quantize": form}, task={"labels": ["a", "b"]}, adapter={"kind": "head"}
        )
        backbone = load_backbone(plan.backbone)
        model = TextClassifier(backbone, plan)
        texts = list(load_data(plan).test.texts[:128])
        with torch.no_grad():
            encoded = encode(backbone, texts, 64)
            found.append(model.pooled_of_ids(*collate(encoded, range(len(texts)))))
    cosine = (found[0] * found[1]).sum(1)
    return float(cosine.mean()), float(cosine.min())


def main(repeats: int) -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as folder:
        llama = large(Path(folder) / "llama")
        for name, source, target in (
            ("all-MiniLM-L6-v2", "embedded", ["query", "value"]),
            ("a Llama of 12 x 768", str(llama), ["q_proj", "v_proj"]),
        ):
            table = Table(
                *("weights", "MB", "of float32", "process, MB", "step, last layer", "step, all"),
                title=f"{name}: one thread, batch {BATCH}, {LENGTH} tokens",
                box=None,
            )
            last = steps(source, target, [-1], repeats)
            whole = steps(source, target, [], repeats)
            first = 0
            for number in FORMATS:
                weights, resident = memory(source, number)
                first = first or weights
                table.add_row(
                    "float32" if number == "none" else number,
                    f"{weights / 1e6:.1f}",
                    f"{weights / first:.0%}",
                    f"{resident / 1e6:.1f}",
                    f"{last[number] / last['none']:.2f}",
                    f"{whole[number] / whole['none']:.2f}",
                )
            console.print(table)
    for number in FORMATS[1:]:
        mean, least = cosines(number)
        console.print(f"{number}: cosine of features with float32's {mean:.4f}, least {least:.4f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["load"]:
        load(sys.argv[2], sys.argv[3])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
