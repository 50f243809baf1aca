"""A run of a grid that crashes, is killed for want of memory, or diverges: the others finish, and it says why."""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import TESTS, Ended, Zygote, differing, environment, files_of, program

LIMIT = 48 * 2**20  # bytes; a run that the launcher forks has used less of its own by then
GRID = """
study: masked-loss
fixed:
  arch: vgg11
  width: 0.05
  epochs: 4
  batch_size: 20
  robustness_masks: 2
  threads: 1
  device: cpu
  checkpoint_every: 0
  dataset: npz:{npz}
axes:
  mode: [masked, baseline]
  lr: [0.05, 0.04, 0.03, 1e9]
  seed: [0]
"""
CRASHES = {
    "vgg11_masked_seed0_lr0.05": "memory_is_used_up",
    "vgg11_masked_seed0_lr0.04": "segmentation_fault",
    "vgg11_masked_seed0_lr0.03": "memory_is_refused",
}
DIVERGE = ("vgg11_masked_seed0_lr1000000000.0", "vgg11_baseline_seed0_lr1000000000.0")
REASONS = {
    "vgg11_masked_seed0_lr0.05": "killed by SIGKILL",
    "vgg11_masked_seed0_lr0.04": "killed by SIGSEGV",
    "vgg11_masked_seed0_lr0.03": "MemoryError",
    **dict.fromkeys(DIVERGE, "not finite"),
}


@pytest.fixture
def cgroup() -> Iterator[Path | None]:
    """A group of processes that may use little memory, where the system lets us make one (root, cgroup v1 or v2)."""
    for root, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        group = Path("/sys/fs/cgroup", root, f"perturblab-test-{os.getpid()}")
        with contextlib.suppress(OSError):
            group.mkdir()
            try:
                (group / limit).write_text(str(LIMIT))
                yield group
                return
            finally:
                group.rmdir()
    yield None


def compared(folder: Path) -> dict[str, bytes]:
    """What the runs left; logs, scripts and the file of the grid are of this test."""
    kept = ("perturblab_runs", "results", "checkpoints")
    found = files_of(folder).items()
    return {name: data for name, data in found if name.startswith(kept) and not name.endswith("log.txt")}


def alone(zygote: Zygote, grid: Path) -> Path:
    """A folder in which each run of the grid was started by itself."""
    folder = grid.with_name("alone")
    folder.mkdir()
    shutil.copy(grid / "grid.yaml", folder)
    assert call(folder, "run", "grid.yaml", "--launcher", "script").code == 0
    for line in (folder / "run_all.sh").read_text().splitlines():
        if line.startswith("python"):
            assert zygote.run(shlex.split(line)[3:], folder).code in (0, 2)
    return folder


@pytest.fixture
def grid(npz: Path, tmp_path: Path) -> Path:
    """A folder with the file of the grid, and a folder on PYTHONPATH that lets runs crash where ``CRASHES`` is set."""
    folder, hook = tmp_path / "grid", tmp_path / "hook"
    folder.mkdir()
    hook.mkdir()
    (folder / "grid.yaml").write_text(GRID.format(npz=npz))
    (hook / "sitecustomize.py").write_text("import crashing\n")
    return folder


def call(folder: Path, *words: str, **env: str) -> Ended:
    path = os.pathsep.join([str(folder.parent / "hook"), str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        program(*words), cwd=folder, env=environment(PYTHONPATH=path, **env), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout)


def told(output: str) -> dict[str, str]:
    """Why each run failed, as the lines of ``status`` say it."""
    lines = [line.split(": ", 2)[1:] for line in output.splitlines() if line.startswith("failed: ")]
    return {one.removesuffix(" and 1 more"): why for one, why in lines}


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(1, marks=pytest.mark.soak, id="in the first step"),
        pytest.param(6, id="in the second epoch"),
        pytest.param(16, marks=pytest.mark.soak, id="in the last step"),
    ],
)
@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere runs are not forked from a server that a test can change"
)
def test_runs_that_crash_run_out_of_memory_or_diverge_leave_the_others_alone_and_say_why(
    zygote: Zygote, grid: Path, cgroup: Path | None, step: int
) -> None:
    crashes = CRASHES if cgroup else {**CRASHES, "vgg11_masked_seed0_lr0.05": "killed"}
    env = {"CRASHES": json.dumps(crashes), "CRASH_STEP": str(step), "CGROUP": str(cgroup)}

    ended = call(grid, "run", "grid.yaml", "--jobs", "2", **env)

    assert ended.code == 1, ended.output
    assert "Traceback" not in ended.output
    for name, reason in REASONS.items():
        assert f"{name} failed: " in ended.output or name in DIVERGE, ended.output
        assert reason in ended.output
    assert "5 of 8 runs failed; run them again with: perturblab retry grid.yaml" in ended.output
    status = call(grid, "status", "grid.yaml")
    assert [line.split() for line in status.output.splitlines()[1:6]] == [
        ["done", "3"], ["running", "0"], ["failed", "5"], ["interrupted", "0"], ["missing", "0"],
    ]  # fmt: skip
    reasons = told(status.output)
    assert all(REASONS[name] in reasons[name] for name in reasons)
    assert {*reasons, *DIVERGE} == REASONS.keys()

    again = call(grid, "run", "grid.yaml", "--jobs", "2")
    assert again.code == 1
    assert "nothing is missing\n5 failed before and are left alone; again: perturblab retry" in again.output
    done = {path: path.stat().st_mtime_ns for path in grid.glob("perturblab_runs/*/*baseline*lr0.0*/*")}

    retried = call(grid, "retry", "grid.yaml", "--jobs", "2")

    assert retried.code == 1, "two of them diverge again"
    assert "2 of 5 runs failed" in retried.output, retried.output
    assert done == {path: path.stat().st_mtime_ns for path in done}, "a run that was done was touched"
    assert not differing(compared(grid), compared(alone(zygote, grid)))
    how = f"by the kernel, in a group of processes with {LIMIT >> 20} MiB" if cgroup else "by SIGKILL"
    print(
        f"step {step}: 5 of 8 runs died (out of memory {how}; segmentation fault; MemoryError; 2 not finite): 3 finished "
        "beside them, 5 said why, 3 finished by retry, 0 files differ"
    )
