"""benchmarks/noise.py takes minutes where its numbers mean something: here its code runs, end to end, on a few images."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run noise.py as a script; its figures by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # for the plain way's process
    threads = torch.get_num_threads()

    def run(words: str) -> dict[str, dict[str, object]]:
        monkeypatch.setattr(sys, "argv", ["noise.py", *words.split(), "--json"])
        runpy.run_path(str(BENCHMARKS / "noise.py"), run_name="__main__")
        return {figure["name"]: figure for figure in map(json.loads, capsys.readouterr().out.splitlines())}

    yield run
    torch.set_num_threads(threads)


def test_the_quick_mode_compares_every_kind_of_noise_with_a_step_without(noise) -> None:
    figures = noise("--quick --only steps")
    kinds = [name.removeprefix("resnet18 step: ") for name in figures if name.startswith("resnet18 step: ")]
    assert kinds == [
        "clean norms",
        "gradient noise, gaussian, relative",
        "gradient noise, uniform, relative",
        "gradient noise, gaussian, absolute",
        "gradient noise, uniform, absolute",
        "weight noise, temporary",
        "weight noise, permanent",
        "without",
    ]
    for kind in kinds[:-1]:
        assert figures[f"resnet18 step: {kind}"]["ratio"] > 0
        assert figures[f"resnet18 epoch: {kind}"]["ratio"] > 0
    assert figures["resnet18 step: without"]["value"] > 0


def test_the_quick_mode_compares_an_epoch_with_the_plain_way_on_as_many_images(noise) -> None:
    figures = noise("--quick --only epochs --workers 0")
    for about in ("no noise", "gradient noise"):
        ratio = figures[f"BabyCNN epoch, {about}: DataLoader, 0 workers, over ours"]
        assert ratio["ratio"] > 0
        assert "at least 3" in ratio["unit"]
        assert figures[f"BabyCNN epoch, {about}: ours"]["value"] > 0
