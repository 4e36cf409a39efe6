"""Equal products at every address: what is asked of the library, before what, and what is recorded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hydralign.reproducible import products_setting, request_reproducible_products
from hydralign.training import checkpoints as state


def test_setting_is_made_only_where_it_can_work_and_the_users_own_stays() -> None:
    fresh: dict[str, str] = {}
    assert request_reproducible_products(fresh, torch_loaded=False) == "MKL_CBWR=AUTO,STRICT"
    assert fresh == {"MKL_CBWR": "AUTO,STRICT"}
    own = {"MKL_CBWR": "COMPATIBLE"}
    assert request_reproducible_products(own, torch_loaded=False) == "MKL_CBWR=COMPATIBLE"
    assert own == {"MKL_CBWR": "COMPATIBLE"}
    late: dict[str, str] = {}
    assert "torch was loaded before" in request_reproducible_products(late, torch_loaded=True)
    assert late == {}
    assert "too late" in request_reproducible_products(dict(own), torch_loaded=True)


def test_importing_any_part_of_the_package_sets_it_without_torch() -> None:
    code = "import os, sys, hydralign.errors; assert 'torch' not in sys.modules; print(os.environ['MKL_CBWR'])"
    source = str(Path(state.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {source!r}); {code}"],
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "AUTO,STRICT\n", done.stderr


def test_checkpoint_names_products_that_repeat_no_longer_and_those_that_never_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def differences(then: bool, now: bool) -> list[str]:
        monkeypatch.setattr(state, "products_repeat", lambda: then)
        state.write_checkpoint(
            tmp_path / f"{then}{now}", 1, {"step": 1, "metrics_position": 0}, {"w": weight}, optimizer, keep=1
        )
        monkeypatch.setattr(state, "products_repeat", lambda: now)
        capsys.readouterr()
        state.resume(tmp_path / f"{then}{now}", {"w": weight}, optimizer, dict)
        said = "".join(capsys.readouterr().err.split("Not bit-equal to an uninterrupted run: ")[1:])
        return [line.removesuffix(".") for line in said.splitlines()]

    assert differences(True, True) == []
    assert differences(True, False) == ["products was same bits at every address, is bits depend on addresses"]
    assert differences(False, False) == [f"bits depend on addresses on this machine ({products_setting()})"]


def test_measure_finds_products_that_hang_on_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert state.products_repeat.__wrapped__() in (True, False)
    calls = iter(range(1000))
    real = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: real(a, b) + 1e-6 * next(calls))
    assert not state.products_repeat.__wrapped__()
