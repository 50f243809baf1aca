"""layerwise-mi, killed at any moment and started again: the same bytes in every file."""

from pathlib import Path

import pytest

from conftest import KillAtRandom, Zygote
from layerwise import evaluate_words, train_words, write_images
from test_kill import check, killed_at_each

SETTINGS = ("--select-on", "val", "--target-acc", "30", "--seed", "3")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images.npz")


@pytest.fixture(scope="module")
def evaluation(zygote: Zygote, images: Path) -> list[str]:
    """The words of an evaluation of a whole, if small, network: six layers, exports."""
    ended = zygote.run(train_words(images, "--epochs", "1"), images.parent)
    assert ended.code == 0, ended.output
    checkpoint = images.parent / "checkpoints" / "vgg9_best.pth"
    return evaluate_words("--checkpoint", str(checkpoint), "--save-predictions", "p.npz", subsets=8)


@pytest.mark.parametrize("every", ["0", "60"])
def test_training_killed_at_random_moments_ends_with_the_same_files(
    kill_at_random: KillAtRandom, images: Path, tmp_path: Path, every: str
) -> None:
    words = train_words(images, *SETTINGS, "--checkpoint_every", every)
    check(kill_at_random(words, tmp_path, 5, seed=1), 5)


def test_an_evaluation_killed_at_random_moments_ends_with_the_same_files(
    kill_at_random: KillAtRandom, evaluation: list[str], tmp_path: Path
) -> None:
    check(kill_at_random(evaluation, tmp_path, 8, seed=2), 8)


@pytest.mark.slow
@pytest.mark.parametrize("every", ["0", "0.05", "60"])
def test_training_killed_30_times_ends_with_the_same_files(
    kill_at_random: KillAtRandom, images: Path, tmp_path: Path, every: str
) -> None:
    words = train_words(images, *SETTINGS, "--epochs", "6", "--checkpoint_every", every)
    check(kill_at_random(words, tmp_path, 30, seed=4), 30)


@pytest.mark.slow
def test_training_killed_at_each_kind_of_file_change_ends_with_the_same_files(
    zygote: Zygote, images: Path, tmp_path: Path
) -> None:
    words = train_words(images, *SETTINGS, "--checkpoint_every", "0", "--batch-size", "72")
    killed_at_each(zygote, words, tmp_path, every_point=False)


@pytest.mark.slow
def test_an_evaluation_killed_at_each_kind_of_file_change_ends_with_the_same_files(
    zygote: Zygote, evaluation: list[str], tmp_path: Path
) -> None:
    killed_at_each(zygote, evaluation, tmp_path, every_point=False)


@pytest.mark.slow
def test_an_evaluation_killed_before_and_after_every_file_change_ends_with_the_same_files(
    zygote: Zygote, evaluation: list[str], tmp_path: Path
) -> None:
    killed_at_each(zygote, [*evaluation, "--layers", "0", "5"], tmp_path, every_point=True)
