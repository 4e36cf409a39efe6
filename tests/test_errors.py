"""What messages are made of: values cut to fit, and errors of others in one line."""

from __future__ import annotations

import pytest

from hydralign.config import Recipe, read_config
from hydralign.errors import ConfigError, describe_error, first_line, shortened


def test_what_is_cut_says_so() -> None:
    assert shortened("x" * 58) == repr("x" * 58)
    assert shortened("x" * 59) == f"'{'x' * 59}…"
    assert shortened(12345, 3, show=str) == "123…"
    assert shortened("a\u202eb", show=ascii) == "'a\\u202eb'"


@pytest.mark.parametrize(
    ("error", "line", "described"),
    [
        (TimeoutError(), "TimeoutError", "TimeoutError"),
        (TimeoutError("no answer\nfor long"), "no answer", "TimeoutError: no answer"),
    ],
)
def test_an_error_is_described_by_its_class_and_first_line(error: Exception, line: str, described: str) -> None:
    assert (first_line(error), describe_error(error)) == (line, described)


def test_characters_that_mislead_are_escaped_in_messages_about_paths() -> None:
    for output in ("a\u202e\0", "а" * 300):  # the second is Cyrillic
        with pytest.raises(ConfigError) as caught:
            read_config(Recipe, {"output": output, "model": {"path": "m"}})
        assert str(caught.value).replace("…", "").isascii()
        assert str(caught.value).startswith("output='")
