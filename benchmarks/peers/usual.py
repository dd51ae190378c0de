"""A private LoRA federation written the usual way, to measure against. Not how Lorica does it.

    python benchmarks/peers/usual.py PLAN.toml [LORA_RATE HEAD_RATE]

As published examples of Flower with PEFT and Opacus do it: Flower's simulation engine with Ray and
its FedAvg strategy; in every call a client loads the backbone, builds the PEFT model with a
classification head, pads all its texts to max_length, calls `make_private`, and trains some steps
with Adam; the server averages all parameters that were trained.

Rounds, local steps, batch, ε, δ, clip norm, rank, layers and max_length are the plan's
(training.mode "local", aggregation.method "fedavg", no warm start); so are the learning rates,
unless others are given: with one clip norm for head and LoRA together the plan's are too large.

It is kinder than such examples in four things, so that accuracies can be compared: noise is
calibrated over all steps of the run (they calibrate per call, which composes nothing), texts are
tokenised once per call in one batch, the head starts from the label names on mean-pooled,
normalised features, as Lorica's does, and the server evaluates once, after the last round. The
last line is JSON: accuracy and seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # else other work on the machine goes first
warnings.filterwarnings("ignore")

PLAN = Path(sys.argv[1])
RATES = tuple(map(float, sys.argv[2:4]))
SCALE = 16.0


def read() -> tuple[Any, list[Any], Any]:
    """The plan with labels, the sites' records, the test records."""
    from lorica.common.plan.io import load_plan
    from lorica.common.tasks.run_data import label_sources, load_data, with_labels
    from lorica.simulations.run.partition import partition

    plan = load_plan(PLAN)
    data = load_data(plan)
    plan = with_labels(plan, *label_sources(plan, data))
    parts = partition(data.train, plan.simulation)
    return plan, [data.train.take(rows) for rows in parts.values()], data.test


def build(plan: Any) -> tuple[Any, Any]:
    """A fresh PEFT model with a head, and its tokenizer."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModel, AutoTokenizer

    from lorica.common.adapter.lora import lora_config
    from lorica.common.backbone.files import backbone_folder

    torch.manual_seed(plan.simulation.seed)
    folder = backbone_folder(plan.backbone)
    encoder = AutoModel.from_pretrained(folder, hidden_dropout_prob=0.0)
    config = lora_config(plan.adapter, encoder)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = get_peft_model(encoder, config)
            self.head = torch.nn.Linear(encoder.config.hidden_size, len(plan.task.labels))

        def features(self, ids: Any, mask: Any) -> Any:
            states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = mask[..., None].float()
            pooled = (states * weights).sum(1) / weights.sum(1)
            return torch.nn.functional.normalize(pooled, dim=-1)

        def forward(self, ids: Any, mask: Any) -> Any:
            return self.head(self.features(ids, mask))

    model = Classifier()
    names = [label.replace("_", " ") for label in plan.task.labels]
    with torch.no_grad():
        batch = tokenizer(names, padding=True, return_tensors="pt")
        model.head.weight.copy_(SCALE * model.features(batch.input_ids, batch.attention_mask))
        model.head.bias.zero_()
    return model, tokenizer


def trainable(model: Any) -> list[Any]:
    """What is trained and sent, in a fixed order."""
    return [p for p in model.parameters() if p.requires_grad]


def tensors(tokenizer: Any, plan: Any, records: Any) -> Any:
    """All texts padded to max_length, and their labels."""
    import torch
    from torch.utils.data import TensorDataset

    batch = tokenizer(
        records.texts,
        padding="max_length",
        truncation=True,
        max_length=plan.training.max_length,
        return_tensors="pt",
    )
    labels = torch.tensor([plan.task.labels.index(label) for label in records.labels])
    return TensorDataset(batch.input_ids, batch.attention_mask, labels)


def train(plan: Any, records: Any, arrays: list[Any]) -> list[Any]:
    """One client's call: everything anew."""
    import torch
    from opacus import PrivacyEngine
    from opacus.accountants.utils import get_noise_multiplier
    from torch.utils.data import DataLoader

    model, tokenizer = build(plan)
    for parameter, array in zip(trainable(model), arrays, strict=True):
        parameter.data.copy_(torch.from_numpy(array))
    data = tensors(tokenizer, plan, records)
    batch, steps = plan.training.expected_batch_size, plan.training.local_steps
    sigma = get_noise_multiplier(
        target_epsilon=plan.privacy.epsilon,
        target_delta=plan.privacy.delta,
        sample_rate=batch / len(records),
        steps=plan.rounds.count * steps,
        accountant="rdp",
    )
    head = list(model.head.parameters())
    lora = [p for p in trainable(model) if all(p is not h for h in head)]
    rates = RATES or (plan.training.learning_rate, plan.training.head_learning_rate)
    groups = [{"params": p, "lr": rate} for p, rate in zip((lora, head), rates, strict=True)]
    optimizer = torch.optim.Adam(groups)
    model.train()
    private, optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(data, batch_size=batch),
        noise_multiplier=sigma,
        max_grad_norm=plan.privacy.clip_norm,
    )
    taken = 0
    while taken < steps:
        for ids, mask, labels in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(private(ids, mask), labels).backward()
            optimizer.step()
            taken += 1
            if taken == steps:
                break
    return [p.detach().numpy() for p in trainable(model)]


def accuracy(plan: Any, records: Any, arrays: list[Any]) -> float:
    """On the coordinator's test data."""
    import torch

    model, tokenizer = build(plan)
    for parameter, array in zip(trainable(model), arrays, strict=True):
        parameter.data.copy_(torch.from_numpy(array))
    right = 0
    data = tensors(tokenizer, plan, records)
    with torch.no_grad():
        for start in range(0, len(data), 64):
            ids, mask, labels = data[start : start + 64]
            right += int((model(ids, mask).argmax(1) == labels).sum())
    return right / len(data)


def main() -> None:
    """Run and print."""
    import logging

    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    begun = time.monotonic()
    plan, sites, test = read()
    client, server = ClientApp(), ServerApp()
    found: dict[str, float] = {}

    @client.train()
    def fit(message: Message, context: Context) -> Message:
        own, parts, _ = read()
        records = parts[int(context.node_config["partition-id"])]
        arrays = message.content["arrays"].to_numpy_ndarrays()
        update = ArrayRecord(train(own, records, arrays))
        content = {"arrays": update, "metrics": MetricRecord({"num-examples": len(records)})}
        return Message(RecordDict(content), reply_to=message)

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        model, _ = build(plan)
        start = ArrayRecord([p.detach().numpy() for p in trainable(model)])
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=len(sites))
        result = strategy.start(grid=grid, initial_arrays=start, num_rounds=plan.rounds.count)
        found["accuracy"] = accuracy(plan, test, result.arrays.to_numpy_ndarrays())

    run_simulation(
        server,
        client,
        num_supernodes=len(sites),
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    print(json.dumps({"accuracy": found["accuracy"], "seconds": time.monotonic() - begun}))


if __name__ == "__main__":
    main()
