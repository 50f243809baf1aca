"""benchmarks/gpu.py can be measured on few machines: here its code runs, end to end, on a CPU."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from perturblab import terminal

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A place from which gpu.py can be run as a script."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(terminal, "PLAIN_EVERY_S", terminal.PLAIN_EVERY_S)  # it sets this: put it back
    return monkeypatch


def run(gpu: pytest.MonkeyPatch, words: str) -> None:
    gpu.setattr(sys, "argv", ["gpu.py", *words.split()])
    runpy.run_path(str(BENCHMARKS / "gpu.py"), run_name="__main__")


def test_the_dry_mode_measures_every_figure_on_a_cpu(
    gpu: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu.setenv("OMP_NUM_THREADS", "1")  # for the worker
    run(
        gpu,
        "--device cpu --tiny --architectures vgg11 --modes masked --ways eager --epochs 1 --together 1 --json",
    )
    figures = {figure["name"]: figure for figure in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(figures) == [
        "vgg11 masked, eager",
        "suite of 3 runs x 200 epochs, eager, one at a time",
        "vgg11 masked, eager, 1 at a time",
        "suite of 3 runs x 200 epochs, eager, 1 at a time",
    ]
    assert all(figure["value"] > 0 for figure in figures.values())


def test_the_probes_are_measured_in_both_precisions_and_agree(
    gpu: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(gpu, "--device cpu --tiny --probes --architectures vgg11 --json")
    seconds, in_bf16, different = map(json.loads, capsys.readouterr().out.splitlines())
    assert seconds["value"] > 0
    assert in_bf16["value"] > 0
    assert different["unit"] == "of 1536 predictions"
    assert different["value"] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_it_says_so_in_one_line_and_exits_2(
    gpu: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(gpu, "")
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
