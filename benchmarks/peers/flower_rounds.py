"""Head rounds on Flower's simulation engine (Ray), with its message API.

    python benchmarks/peers/flower_rounds.py TASK.npz ROUNDS [--empty]

A supernode is a site. The server app sends the head to all, adds up what comes and makes a step; a
worker process reads the sites' records once. Prints the seconds of every round as JSON.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_worker_niceness", "0")

HERE = str(Path(__file__).resolve().parent)
sys.path.insert(0, HERE)

import torch  # noqa: E402
from flwr.app import ArrayRecord, Context, Message, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402
from flwr.simulation import run_simulation  # noqa: E402

FILE, ROUNDS, EMPTY = str(Path(sys.argv[1]).resolve()), int(sys.argv[2]), "--empty" in sys.argv


def task():  # type: ignore[no-untyped-def]
    """The task, once in a process, also in one of Ray's, to which this function is sent."""
    if HERE not in sys.path:
        sys.path.insert(0, HERE)
    from head_round import held

    torch.set_num_threads(1)
    return held(FILE, ROUNDS, EMPTY)


def main() -> None:
    """Run and print."""
    from head_round import Step

    logging.getLogger("flwr").setLevel(logging.ERROR)
    client, server = ClientApp(), ServerApp()
    seconds: list[float] = []
    sites = len(task().sites)

    @client.train()
    def fit(message: Message, context: Context) -> Message:
        head = torch.from_numpy(message.content["head"]["head"].numpy().copy())
        release = task().release(head, int(context.node_config["partition-id"]))
        return Message(RecordDict({"head": ArrayRecord({"head": release})}), reply_to=message)

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        head, step = task().start(), Step()
        while len(list(grid.get_node_ids())) < sites:
            time.sleep(0.1)
        for number in range(ROUNDS):
            begun = time.perf_counter()
            content = RecordDict({"head": ArrayRecord({"head": head})})
            group, nodes = str(number), grid.get_node_ids()
            messages = [Message(content, node, "train", group_id=group) for node in nodes]
            total = torch.zeros_like(head)
            for reply in grid.send_and_receive(messages):
                total += torch.from_numpy(reply.content["head"]["head"].numpy())
            head = step(head, total)
            seconds.append(time.perf_counter() - begun)

    run_simulation(
        server,
        client,
        num_supernodes=sites,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
