"""Batches are a function of their position: epochs are permutations, slices and restarts agree."""

from __future__ import annotations

import pytest

from hydralign.data import PromptStream, Stream
from hydralign.errors import ConfigError, DataError
from hydralign.types import Prompt

ROWS = tuple(range(10))


def test_stream_shows_every_row_once_an_epoch_in_a_new_order() -> None:
    stream = Stream(ROWS, seed=3)
    epochs = [stream.batch(step, 10) for step in range(20)]
    assert all(sorted(epoch) == list(ROWS) for epoch in epochs)
    assert len(set(epochs)) == 20
    assert Stream(ROWS, seed=4).batch(0, 10) != epochs[0]


def test_stream_leaves_out_nothing_when_batches_span_epochs() -> None:
    stream = Stream(ROWS, seed=1)
    whole = tuple(row for step in range(12) for row in stream.batch(step, 10))
    for count in (1, 3, 7, 10, 24, 40):
        assert (
            tuple(row for step in range(120 // count) for row in stream.batch(step, count))
            == whole[: 120 // count * count]
        )
    assert stream.batch(2, 10, offset=5) == whole[25:35]
    assert stream.batch(1, 8)[2:6] == whole[10:14]


def test_stream_gives_the_same_batch_in_any_order_of_asking() -> None:
    forwards = [Stream(ROWS, seed=1).batch(step, 7) for step in range(30)]
    stream = Stream(ROWS, seed=1)
    assert [stream.batch(step, 7) for step in reversed(range(30))] == forwards[::-1]


def test_stream_is_pinned_so_that_a_run_resumes_on_another_machine() -> None:
    assert Stream(ROWS, seed=0).batch(0, 10) == (0, 8, 9, 3, 7, 5, 1, 2, 6, 4)
    assert Stream(ROWS, seed=0).batch(1, 10) == (3, 7, 4, 2, 9, 8, 1, 6, 5, 0)


def test_prompt_stream_gives_prompts() -> None:
    prompt = Prompt("a", (1,))
    assert PromptStream((prompt,), 5).batch(3, 2) == (prompt, prompt)


def test_stream_refuses_what_it_cannot_draw_from() -> None:
    with pytest.raises(DataError, match="no rows"):
        Stream(())
    with pytest.raises(ConfigError, match="seed=-1"):
        Stream(ROWS, seed=-1)
    for step, count in ((0, 0), (-1, 2)):
        with pytest.raises(ConfigError, match=f"a batch of {count} rows"):
            Stream(ROWS).batch(step, count)
