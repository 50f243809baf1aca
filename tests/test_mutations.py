"""Bad settings, words, images and results, made from numbers: one line that says what to do, no traceback, no hang."""

import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from conftest import Zygote
from guarded import Answer, tried
from mutations import STOP_AFTER_S, Given, Mutation, mutation
from smokes import STUDIES, Smoke
from test_damage import readers_of

TRAINS = ("train", "train-base", "sweep", "run", "retry", "quickstart", "watch")
REPORT_AFTER_S = 30.0  # what only reads is to come to its end


@pytest.fixture(scope="module")
def given(zygote: Zygote, smoke: Callable[[str], Smoke], tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("given")
    smokes = {study: smoke(study) for study in STUDIES}

    @cache
    def done(study: str) -> Path:
        for words in (smokes[study].words, *smokes[study].then):
            ended = zygote.run(words, folder / study)
            assert ended.code == 0, ended.output
        return folder / study

    words = {study: one.words for study, one in smokes.items()}
    return Given(words, {study: readers_of(one) for study, one in smokes.items()}, done)


def put(zygote: Zygote, one: Mutation, folder: Path) -> Answer:
    """Start it in a folder of its own, which is removed."""
    folder.mkdir()
    one.make(folder)
    number = signal.SIGINT if one.words[:1] == ["watch"] else signal.SIGTERM  # nothing else ends a watch
    trains = any(word in one.words for word in TRAINS)
    hook = ["mutations", "stop_soon", STOP_AFTER_S if trains else REPORT_AFTER_S, number]
    answer = tried(zygote, one.words, folder, [hook])
    shutil.rmtree(folder, ignore_errors=True)
    return answer


def check(zygote: Zygote, given: Given, numbers: range, folder: Path) -> None:
    began, codes, bad, slowest = time.monotonic(), Counter[str](), [], (0.0, "")
    for number in numbers:
        one = mutation(number, given)
        start = time.monotonic()
        answer = put(zygote, one, folder / "here")
        slowest = max(slowest, (time.monotonic() - start, str(one)))
        codes[answer.fault or f"exit {answer.code}"] += 1
        if answer.fault:
            bad.append(f"{one}\n{answer.fault}: {answer.output[-1500:]}")
    told = ", ".join(f"{what} {n}" for what, n in sorted(codes.items()))
    print(
        f"{len(numbers)} mutations: {told}; {codes['traceback']} tracebacks, {codes['hang']} hangs; {time.monotonic() - began:.0f} s"
    )
    print(f"slowest: {slowest[0]:.1f} s, {slowest[1]}")
    assert not bad, "\n\n".join(bad)


def test_whatever_is_wrong_it_is_told_in_one_line(zygote: Zygote, given: Given, tmp_path: Path) -> None:
    check(zygote, given, range(16), tmp_path)


@pytest.mark.soak
def test_of_1000_mutations_each_is_told_in_one_line(zygote: Zygote, given: Given, tmp_path: Path) -> None:
    check(zygote, given, range(1000), tmp_path)
