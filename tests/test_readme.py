"""What the README tells a stranger to type works as written."""

from __future__ import annotations

import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from commandline import COMMANDS
from perturblab.cli import list_flags, spread_lists
from perturblab.cli import perturblab as program

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def lines(starting: str) -> list[str]:
    """The command lines in the README's bash blocks, without their comments."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    found = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in found if line.startswith(starting)]


def needs_cifar(line: str) -> bool:
    """Lines that would train or measure on the default data set, which is downloaded."""
    words = shlex.split(line)
    return words[2] in ("train", "evaluate", "sweep") and "digits" not in words and "generate" not in words


def run(line: str, folder: Path) -> str:
    words = [sys.executable, "-m", *shlex.split(line)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_names_the_commands_that_this_file_runs() -> None:
    assert len(lines("perturblab ")) >= 9
    assert {"make quickstart", "make test"} <= set(lines("make "))


@pytest.mark.parametrize("line", lines("make "))
def test_every_make_line_of_the_readme_names_a_target_of_the_makefile(line: str) -> None:
    done = subprocess.run(["make", "--dry-run", *line.split()[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", [line for line in lines("perturblab ") if needs_cifar(line + " - -")])
def test_a_line_that_needs_a_download_or_a_gpu_parses(line: str) -> None:
    words = shlex.split(line)[1:]
    group = program.get_command(
        program.make_context("perturblab", ["--help"], resilient_parsing=True), words[0]
    )
    command = group.commands[words[1]]  # type: ignore[union-attr]
    context = command.make_context(words[1], spread_lists(words, list_flags(words))[2:])
    given = {name: value for name, value in context.params.items() if value not in (None, ())}
    assert COMMANDS[" ".join(words[:2])].settings.parse(given)


@pytest.mark.slow
def test_the_lines_on_digits_run_one_after_another_and_draw_the_documented_plots(tmp_path: Path) -> None:
    for line in lines("perturblab masked-loss"):
        if "digits" in line or "generate" in line:
            run(line, tmp_path)
    printed = run("perturblab masked-loss visualize", tmp_path)
    assert "SUMMARY OF FINAL RESULTS" in printed
    for name in ("generalization_gap", "test_accuracy", "loss_curves_vgg11", "lambda_schedule", "robustness"):
        assert (tmp_path / "plots" / f"{name}.png").exists()


@pytest.mark.slow
def test_the_lines_of_layerwise_mi_on_digits_run_one_after_another_and_draw_its_plots(tmp_path: Path) -> None:
    for line in lines("perturblab layerwise-mi"):
        if "digits" in line:
            run(line, tmp_path)
    assert "INFORMATION LEFT AND LOST" in run("perturblab layerwise-mi visualize", tmp_path)
    for name in ("mi_progression", "mi_vs_kept"):
        assert (tmp_path / "plots" / f"{name}.png").exists()


@pytest.mark.slow
def test_the_lines_of_first_layer_mi_on_digits_run_one_after_another_and_draw_its_plots(
    tmp_path: Path,
) -> None:
    for line in lines("perturblab first-layer-mi"):
        if "digits" in line or line.endswith(" jobs"):
            run(line, tmp_path)
    assert "FINAL RESULTS" in run("perturblab first-layer-mi visualize", tmp_path)
    for name in ("mi_diff_vs_gen_gap", "mi_over_epochs", "mi_vs_kept_first_layer"):
        assert (tmp_path / "plots" / f"{name}.png").exists()
    curves = csv.DictReader((tmp_path / "plots" / "mi_over_epochs.csv").read_text().splitlines())
    assert {float(row["x"]) for row in curves} == {1, 2, 3, 4, 5, 6}
    assert len(list((tmp_path / "scripts").glob("job_manager_vgg*.sh"))) == 5


@pytest.mark.slow
def test_the_lines_of_correction_on_digits_run_one_after_another_and_end_with_the_page(
    tmp_path: Path,
) -> None:
    printed = [
        run(line, tmp_path)
        for line in lines("perturblab correction")
        if "digits" in line or line.endswith(" check")
    ]
    assert "is not there: building it from digits" in printed[0]
    assert "is the best of lr_search by validation" in printed[1]
    assert "WRONG" not in printed[2]
    page = (tmp_path / "plots" / "correction.html").read_text()
    assert "Does the model still rely on dots after correction?" in page


@pytest.mark.slow
def test_quickstart_as_the_readme_shows_it_ends_with_a_table_and_a_sentence_on_three_seeds(
    tmp_path: Path,
) -> None:
    (line,) = lines("perturblab quickstart")
    printed = run(line, tmp_path)
    assert "SUMMARY OF FINAL RESULTS" in printed
    assert "With 3 seeds" in printed
    assert "clamp was active" in printed
    assert (tmp_path / "quickstart" / "plots" / "robustness.png").exists()


def test_a_small_quickstart_compares_the_modes(tmp_path: Path) -> None:
    printed = run("perturblab quickstart --epochs 1 --seeds 0 --width 0.03 --modes baseline masked", tmp_path)
    assert re.search(r"vgg11\s+baseline", printed)
    assert re.search(r"vgg11\s+masked", printed)
    assert len(list((tmp_path / "quickstart" / "results").glob("*.json"))) == 2
