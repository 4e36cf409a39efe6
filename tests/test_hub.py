"""A hub that does not answer is asked once: its cache is used, or an error says at once what was looked for where."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import datasets
import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

import hydralign.hub
from hydralign.data.reading import read_table
from hydralign.errors import DataError, ModelError
from hydralign.hub import hub_access
from hydralign.models.classifiers.loading import load_classifier
from hydralign.models.classifiers.starting import load_start
from hydralign.models.folders.loading import load_model
from hydralign.models.folders.merged import load_tokenizer

NAME = "some-org/some-model"


def http_error(status: int) -> HfHubHTTPError:
    error = HfHubHTTPError.__new__(HfHubHTTPError)  # which HTTP library makes the response differs between versions
    error.response = cast(Any, SimpleNamespace(status_code=status))
    return error


class ConnectError(Exception):
    """Stands in for that of the hub's HTTP library."""


class Hub:
    """Stands in for the hub's interface: counts requests, and answers them with an error if it has one."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, float]] = []
        self.error: Exception | None = ConnectError("[Errno -2] Name or service not known\nmore")

    def __call__(self) -> Hub:
        return self

    def repo_info(self, name: str, *, repo_type: str, timeout: float) -> None:
        self.requests.append((name, repo_type, timeout))
        if self.error is not None:
            raise self.error


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    fake = Hub()
    monkeypatch.setattr(hydralign.hub, "_answers", {})
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "prepared")
    monkeypatch.chdir(tmp_path)
    return fake


@pytest.mark.parametrize(
    ("load", "kind", "error"),
    [
        (load_model, "model", ModelError),
        (load_tokenizer, "model", ModelError),
        (lambda name: load_start(name, ["score"]), "model", ModelError),
        (lambda name: load_classifier(name, "cpu"), "model", ModelError),
        (read_table, "dataset", DataError),
    ],
    ids=["model", "tokenizer", "scorer", "classifier", "data"],
)
def test_hub_that_does_not_answer_is_asked_once_and_named(
    hub: Hub, tmp_path: Path, load: Any, kind: str, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        load(NAME)
    told = str(caught.value)
    assert told.startswith(f"{kind} {NAME!r} could not be loaded (no {tmp_path / NAME} here, so it was taken for a hub")
    assert "does not answer (ConnectError: [Errno -2] Name or service not known), and its cache" in told
    assert [request[:2] for request in hub.requests] == [(NAME, kind)]


@pytest.mark.parametrize(
    ("kind", "folder"),
    [
        ("model", "cache/models--some-org--some-model/snapshots/a1"),
        ("dataset", "cache/datasets--some-org--some-model/snapshots/a1"),
        ("dataset", "prepared/some-org___some-model"),
    ],
)
def test_copy_in_the_cache_is_read_offline(
    hub: Hub, tmp_path: Path, kind: Any, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    with hub_access(NAME, kind):
        assert constants.is_offline_mode()
        assert datasets.config.HF_HUB_OFFLINE
    assert not constants.is_offline_mode()
    assert not datasets.config.HF_HUB_OFFLINE
    assert f"{kind} {NAME} is read from the cache." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "answers"),
    [(None, True), (http_error(401), True), (http_error(404), True), (http_error(503), False), (OSError("x"), False)],
)
def test_hub_that_refuses_answers_all_the_same(hub: Hub, error: Exception | None, answers: bool) -> None:
    hub.error = error
    reached = False
    with suppress(ModelError), hub_access(NAME, "model"):
        reached = not constants.is_offline_mode()
    assert reached is answers


def test_answer_of_the_hub_holds_for_what_is_loaded_soon_after(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask() -> None:
        for name in (NAME, "another/one"):
            with suppress(ModelError), hub_access(name, "model"):
                pass

    ask()
    assert len(hub.requests) == 1
    monkeypatch.setattr(hydralign.hub, "SECONDS_ANSWER_HOLDS", -1.0)
    ask()
    assert len(hub.requests) == 3


def test_local_folder_and_a_user_who_is_offline_ask_nobody(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(NAME).mkdir(parents=True)
    with hub_access(NAME, "model"):
        pass
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with hub_access("another/one", "model"):
        pass
    assert hub.requests == []


def test_classifier_and_data_say_where_they_were_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, *, split: str) -> None:
        raise datasets.exceptions.DatasetNotFoundError("there is none")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    for attempt in (lambda: read_table(NAME), lambda: load_classifier(NAME, "cpu")):
        with pytest.raises((DataError, ModelError)) as caught:
            attempt()
        assert f"(no {tmp_path / NAME} here, so it was taken for a hub id)" in str(caught.value)
    with pytest.raises(ModelError, match=r"'runs/a/b' does not exist.*\(looked at "):
        load_classifier("runs/a/b", "cpu")
