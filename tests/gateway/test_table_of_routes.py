"""The rows say what is true: of tasks, of examples."""

import pytest

from onecard.gateway.routes.table import ROUTES

ASKING = [row for row in ROUTES.rows if row.task is not None and row.example is not None]
ABLE = {"generate": "talker", "embed": "embedder", "rerank": "judge"}


def test_no_two_rows_are_one_route() -> None:
    assert len({(row.method, row.path) for row in ROUTES.rows}) == len(ROUTES.rows)


@pytest.mark.parametrize("row", [row for row in ASKING if row.task in ABLE], ids=lambda row: row.path)
async def test_an_endpoint_asks_for_the_task_of_its_row(client, judge, row):
    for task, model in ABLE.items():
        reply = await client.post(row.path, {"model": model, **row.example})
        if task == row.task:
            assert reply.status == 200
        else:
            assert (reply.status, reply.error["param"]) == (400, "model")
            assert f"Models that do: {ABLE[row.task]}" in reply.error["message"]


@pytest.mark.parametrize("row", ASKING, ids=lambda row: row.path)
async def test_an_example_needs_no_model_where_only_one_does_the_task(client, node, judge, row):
    node.engines = [engine for engine in node.engines if row.task in engine.info.tasks]
    if node.engines:
        assert (await client.post(row.path, dict(row.example))).status == 200
