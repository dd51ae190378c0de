"""The in-process grid: real messages, one site per pull, errors as answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from lorica.simulations.run.grid import InProcessGrid

Handler = Callable[[Message, Context], Message]


def content(text: str = "ask") -> RecordDict:
    data = bytes(range(256))
    array = Array(dtype="uint8", shape=(256,), stype="safetensors", data=data)
    return RecordDict(
        {"lorica": ConfigRecord({"text": text}), "adapter": ArrayRecord({"adapter": array})}
    )


def echo(message: Message, context: Context) -> Message:
    text = f"{message.content['lorica']['text']} {context.node_config['partition-id']}"
    return Message(content(text), reply_to=message)


def make_grid(handler: Handler = echo, nodes: int = 3) -> InProcessGrid:
    app = ClientApp()
    app.train()(handler)
    return InProcessGrid(app, nodes)


def ask(*nodes: int, kind: str = "train") -> list[Message]:
    return [Message(content(), node, kind, ttl=60.0, group_id="2") for node in nodes]


def text_of(message: Message) -> object:
    return message.content["lorica"]["text"]


def test_every_node_is_its_own_partition() -> None:
    grid = make_grid()
    nodes = list(grid.get_node_ids())
    assert nodes == [1, 2, 3]
    replies = list(grid.send_and_receive(ask(*nodes)))
    assert [text_of(reply) for reply in replies] == ["ask 0", "ask 1", "ask 2"]


def test_a_reply_names_the_message_it_answers() -> None:
    grid = make_grid()
    ids = list(grid.push_messages(ask(2, 3)))
    assert len(set(ids)) == 2
    (second,) = grid.pull_messages([ids[1]])
    (first,) = grid.pull_messages(ids)
    assert second.metadata.reply_to_message_id == ids[1]
    assert (second.metadata.src_node_id, text_of(second)) == (3, "ask 2")
    assert first.metadata.reply_to_message_id == ids[0]
    assert first.metadata.group_id == "2"


def test_a_site_runs_when_it_is_pulled_and_one_at_a_time() -> None:
    ran: list[int] = []

    def handler(message: Message, context: Context) -> Message:
        ran.append(context.node_id)
        return echo(message, context)

    grid = make_grid(handler)
    ids = list(grid.push_messages(ask(1, 2, 3)))
    assert ran == []
    for count in (1, 2, 3):
        assert len(list(grid.pull_messages(ids))) == 1
        assert ran == [1, 2, 3][:count]
    assert list(grid.pull_messages(ids)) == []
    assert ran == [1, 2, 3]


def test_a_message_is_delivered_once() -> None:
    grid = make_grid()
    (identity,) = grid.push_messages(ask(1))
    assert len(list(grid.pull_messages([identity]))) == 1
    assert list(grid.pull_messages([identity, "unheard of"])) == []


def test_a_site_cannot_change_what_the_coordinator_holds() -> None:
    """Nor the other way: messages pass through Flower's serialisation both ways."""
    returned: list[RecordDict] = []

    def handler(message: Message, context: Context) -> Message:
        assert message.content["adapter"]["adapter"].data == bytes(range(256))
        message.content["lorica"]["text"] = "changed"
        message.content["adapter"]["adapter"].data = b"changed"
        message.content["more"] = ConfigRecord({})
        returned.append(content("answer"))
        return Message(returned[0], reply_to=message)

    grid = make_grid(handler)
    sent = ask(1)
    (reply,) = grid.send_and_receive(sent)
    assert sent[0].content["lorica"]["text"] == "ask"
    assert sent[0].content["adapter"]["adapter"].data == bytes(range(256))
    assert set(sent[0].content) == {"lorica", "adapter"}
    returned[0]["lorica"]["text"] = "changed afterwards"
    assert text_of(reply) == "answer"


def test_sites_that_share_a_message_do_not_see_each_others_changes() -> None:
    def handler(message: Message, context: Context) -> Message:
        message.content["lorica"]["text"] += "!"
        return echo(message, context)

    shared = content()
    messages = [Message(shared, node, "train") for node in (1, 2, 3)]
    replies = make_grid(handler).send_and_receive(messages)
    assert [text_of(reply) for reply in replies] == ["ask! 0", "ask! 1", "ask! 2"]


def test_only_what_flower_can_serialise_gets_through() -> None:
    grid = make_grid()
    big = RecordDict({"lorica": ConfigRecord({"text": "x", "count": 2**64})})
    with pytest.raises(ValueError, match="range"):
        list(grid.send_and_receive([Message(big, 1, "train")]))


@pytest.mark.parametrize("error", [ValueError("why"), MemoryError("why"), KeyError("why")])
def test_an_exception_of_a_site_becomes_an_error_reply(error: Exception) -> None:
    def handler(message: Message, context: Context) -> Message:
        if context.node_id == 2:
            raise error
        return echo(message, context)

    grid = make_grid(handler)
    replies = list(grid.send_and_receive(ask(1, 2, 3)))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert replies[1].metadata.reply_to_message_id


@pytest.mark.parametrize(("node", "kind"), [(4, "train"), (1, "evaluate")])
def test_what_nobody_handles_becomes_an_error_reply(node: int, kind: str) -> None:
    (reply,) = make_grid().send_and_receive(ask(node, kind=kind))
    assert reply.has_error()


def test_an_interrupt_is_not_taken_for_a_sites_error() -> None:
    def handler(message: Message, context: Context) -> Message:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(make_grid(handler).send_and_receive(ask(1)))


def test_a_sites_context_lasts_from_message_to_message() -> None:
    def handler(message: Message, context: Context) -> Message:
        seen = context.state.get("seen", ConfigRecord({"count": 0}))
        context.state["seen"] = ConfigRecord({"count": seen["count"] + 1})
        return Message(content(str(context.state["seen"]["count"])), reply_to=message)

    grid = make_grid(handler)
    for count in ("1", "2"):
        assert [text_of(reply) for reply in grid.send_and_receive(ask(1, 2))] == [count, count]


def test_a_site_that_answers_after_its_messages_deadline_is_still_heard() -> None:
    """Virtual sites run one after another: the last has waited for all before it."""
    grid = make_grid()
    messages = [Message(content(), node, "train", ttl=0.001) for node in (1, 2)]
    for message in messages:
        message.metadata.created_at -= 10
    assert [reply.has_error() for reply in grid.send_and_receive(messages)] == [False, False]
