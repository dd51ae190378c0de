"""LoRA and a head under per-record clipping and noise, in plain PyTorch: what a page of code does.

    python benchmarks/reference/train.py sst2 --epsilon inf
    python benchmarks/reference/train.py ncbi --epsilon 8 --rate 3e-3

One trusted holder of all records. Poisson batches, per-record clipping (LoRA's factors and the
head apart), Gaussian noise calibrated with dp-accounting's PLD, per-weight Adam in which the noise
is known. Scores are those of a validation part of train (or dev) unless ``--test`` is given.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from minilm import WIDTH, MiniLM, batches, padded, pooled, tokenizer
from torch.nn import functional

ABOVE = Path(__file__).resolve().parents[3:]
DATA = next((p / "shared/data" for p in ABOVE if (p / "shared/data").exists()), Path("data"))
SCALE = 16.0  # of the label-name start
IGNORED = -100


def rows_of(folder: str) -> Callable[[str], list[dict[str, str]]]:
    """Reads the parts of a data set in CSV."""

    def read(part: str) -> list[dict[str, str]]:
        with (DATA / folder / f"{part}.csv").open(encoding="utf-8") as file:
            return list(csv.DictReader(file))

    return read


class Texts:
    """Texts with one label each; a head on the centred unit mean of token states."""

    name = "accuracy"

    def __init__(self, folder: str, column: str, validation: bool) -> None:
        read = rows_of(folder)
        train, test = read("train"), read("test")
        if validation:
            if (DATA / folder / "dev.csv").exists():
                test = read("dev")
            else:
                random.Random(0).shuffle(train)
                test, train = train[:1000], train[1000:]
        self.labels = sorted({row[column] for row in train})
        tok = tokenizer()
        encode = lambda rows: [  # noqa
            tok(row["text"], truncation=True, max_length=128)["input_ids"] for row in rows
        ]
        self.train, self.test = encode(train), encode(test)
        self.y = [self.labels.index(row[column]) for row in train]
        self.y_test = [self.labels.index(row[column]) for row in test]
        self.names = [tok(label.replace("_", " "))["input_ids"] for label in self.labels]

    def start(self, model: MiniLM) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            names = pooled(model.states(*padded(self.names)).float(), padded(self.names)[1])
            self.center = names.mean(0)
            weight = SCALE * functional.normalize(names - self.center, dim=-1)
        return {"head.w": weight, "head.b": torch.zeros(len(weight))}

    def features(self, model: MiniLM, tokens: list[list[int]]) -> torch.Tensor:
        ids, mask = padded(tokens)
        return functional.normalize(
            pooled(model.states(ids, mask).float(), mask) - self.center, dim=-1
        )

    def loss(
        self, model: MiniLM, head: dict[str, torch.Tensor], rows: list[int]
    ) -> tuple[Any, dict[str, torch.Tensor]]:
        """Summed loss, and the head's gradients per record."""
        f = self.features(model, [self.train[r] for r in rows])
        logits = f @ head["head.w"].T + head["head.b"]
        y = torch.tensor([self.y[r] for r in rows])
        with torch.no_grad():
            res = logits.softmax(1)
            res[torch.arange(len(rows)), y] -= 1
            grads = {"head.w": res[:, :, None] * f[:, None, :], "head.b": 0.1 * res}
        return functional.cross_entropy(logits, y, reduction="sum"), grads

    def score(self, model: MiniLM, head: dict[str, torch.Tensor]) -> tuple[float, float]:
        right, loss = 0, 0.0
        lengths = [len(t) for t in self.test]
        with torch.no_grad():
            for b in batches(lengths, list(range(len(lengths))), 1024):
                logits = (
                    self.features(model, [self.test[r] for r in b]) @ head["head.w"].T
                    + head["head.b"]
                )
                y = torch.tensor([self.y_test[r] for r in b])
                right += int((logits.argmax(1) == y).sum())
                loss += float(functional.cross_entropy(logits, y, reduction="sum"))
        return right / len(lengths), loss / len(lengths)


class Entities:
    """BIO tags on word pieces; a linear head on unit token states; scored by seqeval's rule, a
    word's first piece deciding for all of it."""

    name = "entity F1"

    def __init__(self, validation: bool) -> None:
        tok = tokenizer()

        def read(part: str) -> tuple[list[list[int]], list[list[int]]]:
            tokens, tags = [], []
            path = DATA / "ncbi_disease" / f"{part}.jsonl"
            for line in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                text, spans, place, inside = " ".join(row["tokens"]), [], 0, False
                for word, tag in zip(row["tokens"], row["tags"], strict=True):
                    if tag[0] == "B":
                        spans.append([place, place + len(word)])
                    elif tag[0] == "I":
                        spans[-1][1] = place + len(word)
                    place += len(word) + 1
                found = tok(text, truncation=True, max_length=128, return_offsets_mapping=True)
                offsets = found["offset_mapping"]
                own = [0 if b > a else IGNORED for a, b in offsets]
                for start, end in spans:
                    inside = False
                    for i, (a, b) in enumerate(offsets):
                        if b > a and a < end and b > start and own[i] == 0:
                            own[i], inside = (2 if inside else 1), True
                pieces = tok.convert_ids_to_tokens(found["input_ids"])
                self.goes_on[len(found["input_ids"]), *found["input_ids"]] = [
                    piece.startswith("##") for piece in pieces
                ]
                tokens.append(found["input_ids"])
                tags.append(own)
            return tokens, tags

        self.goes_on: dict[tuple[int, ...], list[bool]] = {}
        self.train, self.y = read("train")
        self.test, self.y_test = read("dev" if validation else "test")

    scale = 1.0

    def start(self, model: MiniLM) -> dict[str, torch.Tensor]:
        g = torch.Generator().manual_seed(0)
        w = torch.randn(3, WIDTH, generator=g)
        return {"head.w": functional.normalize(w, dim=1), "head.b": torch.zeros(3)}

    def features(self, model: MiniLM, tokens: list[list[int]]) -> torch.Tensor:
        return self.scale * functional.normalize(model.states(*padded(tokens)).float(), dim=-1)

    def loss(
        self, model: MiniLM, head: dict[str, torch.Tensor], rows: list[int]
    ) -> tuple[Any, dict[str, torch.Tensor]]:
        f = self.features(model, [self.train[r] for r in rows])
        width = f.shape[1]
        y = torch.tensor([self.y[r] + [IGNORED] * (width - len(self.y[r])) for r in rows])
        real = y != IGNORED
        count = real.sum(1).clamp(min=1)
        logits = f @ head["head.w"].T + head["head.b"]
        with torch.no_grad():
            res = logits.softmax(2)
            res -= functional.one_hot(y.clamp(min=0), 3)
            res = res * (real / count[:, None])[..., None]
            grads = {"head.w": res.transpose(1, 2) @ f, "head.b": 0.1 * res.sum(1)}
        each = functional.cross_entropy(
            logits.transpose(1, 2), y, reduction="none", ignore_index=IGNORED
        )
        return (each.sum(1) / count).sum(), grads

    @staticmethod
    def spans(tags: list[int]) -> set[tuple[int, int]]:
        found, begun = set(), None
        for i, t in enumerate([*tags, 0]):
            if t == IGNORED:
                continue
            if begun is not None and t != 2:
                found.add((begun, i))
                begun = None
            if t == 1 or (t == 2 and begun is None):
                begun = i
        return found

    def score(self, model: MiniLM, head: dict[str, torch.Tensor]) -> tuple[float, float]:
        hit = said = true = 0
        lengths = [len(t) for t in self.test]
        with torch.no_grad():
            for b in batches(lengths, list(range(len(lengths))), 1024):
                best = (
                    self.features(model, [self.test[r] for r in b]) @ head["head.w"].T
                    + head["head.b"]
                ).argmax(2)
                for place, r in enumerate(b):
                    own = [
                        t if y != IGNORED else IGNORED
                        for t, y in zip(best[place].tolist(), self.y_test[r], strict=False)
                    ]
                    ids = self.test[r]
                    for i, goes_on in enumerate(self.goes_on[len(ids), *ids]):
                        if goes_on:
                            own[i] = 2 if own[i - 1] else 0
                    s, t = self.spans(own), self.spans(self.y_test[r])
                    hit, said, true = hit + len(s & t), said + len(s), true + len(t)
        return 2 * hit / max(1, said + true), 0.0


@cache
def sigma_of(
    epsilon: float, delta: float, q: float, steps: int, head_sigma: float, head_steps: int
) -> float:
    """σ of ``steps`` Poisson-subsampled Gaussian steps beside ``head_steps`` of all records."""
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant

    def spent(sigma: float) -> float:
        one = dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(sigma))
        accountant = PLDAccountant()
        accountant.compose(dp_event.SelfComposedDpEvent(one, steps))
        if head_steps:
            accountant.compose(
                dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(head_sigma), head_steps)
            )
        return float(accountant.get_epsilon(delta))

    low, high = 0.3, 200.0
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(middle) <= epsilon else (middle, high)
    return high


class Adam:
    """Per-weight Adam with bias correction; v has the noise's known variance taken out of it, and
    is at least ``floor`` times that variance."""

    def __init__(self, b1: float, b2: float, floor: float, tensor: bool = False) -> None:
        self.b1, self.b2, self.floor, self.t = b1, b2, floor, 0
        self.m: dict[str, torch.Tensor] = {}
        self.v: dict[str, torch.Tensor] = {}
        self.tensor = tensor

    def along(self, grads: dict[str, torch.Tensor], noise: float) -> dict[str, torch.Tensor]:
        self.t += 1
        found = {}
        for name, g in grads.items():
            square = g.square().mean() if self.tensor else g.square()
            self.m[name] = self.b1 * self.m.get(name, 0.0) + (1 - self.b1) * g
            self.v[name] = self.b2 * self.v.get(name, 0.0) + (1 - self.b2) * square
            m = self.m[name] / (1 - self.b1**self.t)
            v = self.v[name] / (1 - self.b2**self.t)
            if noise:
                v = torch.maximum(v - noise**2, torch.tensor(self.floor * noise**2))
            found[name] = m / (v.sqrt() + 1e-12)
        return found


def clip_sum(grads: dict[str, torch.Tensor], bound: float) -> dict[str, torch.Tensor]:
    """Every record's gradient clipped to ``bound`` over all tensors, and summed."""
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in grads.values()]).norm(dim=0)
    factors = (bound / (norms + 1e-12)).clamp(max=1.0)
    return {n: torch.einsum("n,n...->...", factors, g) for n, g in grads.items()}, norms


def main() -> None:
    """Train and print."""
    p = argparse.ArgumentParser()
    p.add_argument("data", choices=["sst2", "ncbi", "banking77", "medical"])
    p.add_argument("--epsilon", type=float, default=math.inf)
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--q", type=float, default=0.1)
    p.add_argument("--proxy", type=int, default=0, help="draw so few records, scale noise to them")
    p.add_argument("--rate", type=float, default=1e-3)
    p.add_argument("--rate-b", type=float, default=1.0, help="LoRA+: factor of B's rate")
    p.add_argument("--head-rate", type=float, default=0.05)
    p.add_argument("--clip", type=float, default=0.3)
    p.add_argument("--head-clip", type=float, default=0.3)
    p.add_argument(
        "--head-steps", type=int, default=0, help="of all records on frozen features, before"
    )
    p.add_argument("--head-share", type=float, default=0.1, help="share of 1/σ² those get")
    p.add_argument("--first-rate", type=float, default=1.0)
    p.add_argument("--projections", default="qkvo")
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--rank", type=int, default=8)
    p.add_argument("--scale", type=float, default=2.0)
    p.add_argument("--b1", type=float, default=0.9)
    p.add_argument("--b2", type=float, default=0.99)
    p.add_argument("--floor", type=float, default=1.0)
    p.add_argument("--tensor", action="store_true", help="one second moment a tensor")
    p.add_argument("--only-b", action="store_true")
    p.add_argument("--warm", type=int, default=5)
    p.add_argument("--final", type=float, default=0.1)
    p.add_argument("--average", type=float, default=0.0)
    p.add_argument("--temper", type=float, default=1.0, help="the head is scaled by it before LoRA")
    p.add_argument("--token-scale", type=float, default=1.0)
    p.add_argument("--sites", type=int, default=1, help="so many times the noise's variance")
    p.add_argument("--every", type=int, default=20)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--test", action="store_true")
    a = p.parse_args()
    begun = time.time()
    task: Any
    if a.data == "ncbi":
        task = Entities(not a.test)
        task.scale = a.token_scale
    else:
        folder, column = {
            "sst2": ("sst2", "label"),
            "banking77": ("banking77", "category"),
            "medical": ("medical_abstracts", "label"),
        }[a.data]
        task = Texts(folder, column, not a.test)
    n = len(task.train)
    lengths = [len(t) for t in task.train]
    model = MiniLM(a.rank, a.scale, a.projections, a.layers, a.seed)
    head = task.start(model)
    private = math.isfinite(a.epsilon)
    sigma = head_sigma = 0.0
    if private:
        if a.head_steps:
            head_sigma = sigma_of(a.epsilon, 1e-5, 1.0, 1, 0.0, 0) * math.sqrt(
                a.head_steps / a.head_share
            )
        sigma = sigma_of(a.epsilon, 1e-5, a.q, a.steps, head_sigma, a.head_steps)
    torch.manual_seed(a.seed)
    rng = random.Random(a.seed)
    print(vars(a), f"n {n} sigma {sigma:.3f} head {head_sigma:.3f}", flush=True)
    root = math.sqrt(a.sites)
    if a.head_steps:
        head_first(task, model, head, a, head_sigma * root * a.head_clip)
        print("head first", task.score(model, head), f"{time.time() - begun:.0f} s", flush=True)
    for k in head:
        head[k] = a.temper * head[k]
    expected = a.proxy or a.q * n
    bound = math.hypot(a.clip, a.head_clip)
    noise = sigma * bound * root * (expected / (a.q * n))  # of the sum
    lora, top = Adam(a.b1, a.b2, a.floor, a.tensor), Adam(a.b1, a.b2, a.floor, a.tensor)
    mean: dict[str, torch.Tensor] = {}
    for step in range(1, a.steps + 1):
        if a.proxy:
            rows = rng.sample(range(n), a.proxy)
        else:
            rows = [r for r in range(n) if rng.random() < a.q]
        total: dict[str, torch.Tensor] = {}
        tall: dict[str, torch.Tensor] = {}
        norms, lost = [], 0.0
        for b in batches(lengths, rows, 1024):
            loss, own = task.loss(model, head, b)
            loss.backward()
            lost += float(loss.detach())
            grads = {
                k: g for k, g in model.gradients().items() if not (a.only_b and k.endswith(".a"))
            }
            part, size = clip_sum(grads, a.clip)
            norms += size.tolist()
            high, _ = clip_sum(own, a.head_clip)
            for sums, found in ((total, part), (tall, high)):
                for k, g in found.items():
                    sums[k] = sums.get(k, 0.0) + g
        signal = math.sqrt(sum(float(g.square().sum()) for g in total.values()))
        if noise:
            for sums in (total, tall):
                for k in sums:
                    sums[k] = sums[k] + noise * torch.randn_like(sums[k])
        warm = min(1.0, step / (a.warm + 1))
        fall = warm * (1 - (1 - a.final) * (step - 1) / max(1, a.steps - 1))
        for k, u in lora.along(total, noise).items():
            rate = a.rate * (a.rate_b if k.endswith(".b") else 1.0)
            model.parameters()[k].sub_(rate * fall * u)
        for k, u in top.along(tall, noise).items():
            head[k] = head[k] - a.head_rate * fall * u * (0.1 if k == "head.b" else 1.0)
        if a.average:
            for k, x in {**model.parameters(), **head}.items():
                mean[k] = x.clone() if k not in mean else a.average * mean[k] + (1 - a.average) * x
        if step % a.every == 0 or step == a.steps:
            norms.sort()
            score = task.score(model, head)
            median, width = norms[len(norms) // 2], sum(g.numel() for g in total.values())
            ratio = signal / (noise * math.sqrt(width)) if noise else math.inf
            print(
                f"step {step} {task.name} {score[0]:.4f} loss {score[1]:.4f} "
                f"train {lost / len(rows):.4f} norm median {median:.3f} "
                f"signal/noise {ratio:.3f} {time.time() - begun:.0f} s",
                flush=True,
            )
    if a.average:
        now = {k: x.clone() for k, x in model.parameters().items()}
        for k, x in model.parameters().items():
            x.copy_(mean[k])
        print("averaged", task.score(model, {k: mean[k] for k in head}))
        for k, x in model.parameters().items():
            x.copy_(now[k])


def head_first(
    task: Any, model: MiniLM, head: dict[str, torch.Tensor], a: Any, noise: float
) -> None:
    """Full-batch steps of the head on frozen features (texts with one label)."""
    lengths = [len(t) for t in task.train]
    path = Path(f"/tmp/reference-features-{a.data}-{len(lengths)}.pt")
    if path.exists():
        f = torch.load(path)
    else:
        f = torch.empty(len(lengths), WIDTH)
        with torch.no_grad():
            for b in batches(lengths, list(range(len(lengths))), 1024):
                f[b] = task.features(model, [task.train[r] for r in b])
        torch.save(f, path)
    y = torch.tensor(task.y)
    adam = Adam(0.0, 0.99, 1.0, tensor=True)
    for step in range(a.head_steps):
        logits = f @ head["head.w"].T + head["head.b"]
        res = logits.softmax(1)
        res[torch.arange(len(y)), y] -= 1
        norm = (res.square().sum(1) * 1.01).sqrt()
        factor = (a.head_clip / (norm + 1e-12)).clamp(max=1.0)[:, None]
        sums = {"head.w": (factor * res).T @ f, "head.b": 0.1 * (factor * res).sum(0)}
        for k in sums:
            sums[k] = sums[k] + noise * torch.randn_like(sums[k])
        fall = 1 - 0.9 * step / max(1, a.head_steps - 1)
        for k, u in adam.along(sums, 0.0).items():
            head[k] = head[k] - a.first_rate / math.sqrt(a.head_steps) * fall * u * (
                0.1 if k == "head.b" else 1.0
            )


if __name__ == "__main__":
    main()
