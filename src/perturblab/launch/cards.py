"""CUDA cards: how many there are, how many runs at a time they take, and which one a run that starts now is given."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache

from perturblab.cpus import cores
from perturblab.launch import Cell
from perturblab.settings import Settings
from perturblab.terminal import say

OPEN = ("auto", "cuda")  # values of --device that leave the card to the launcher
COUNT = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"


@cache
def cards() -> int:
    """CUDA cards that a run could use, as torch counts them: it knows CUDA_VISIBLE_DEVICES, MIG and its own build.

    torch is asked in another process, and only where there is an NVIDIA driver: importing it takes 2 s.
    """
    if shutil.which("nvidia-smi") is None:
        return 0
    told = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True).stdout.split()
    return int(told[-1]) if told else 0


def cards_for(runs: Iterable[Settings], jobs: int = 0) -> list[int]:
    """The cards over which these runs are spread: none for one at a time, or where every run names its device."""
    return list(range(cards())) if jobs != 1 and any(map(_is_open, runs)) else []


def at_a_time(jobs: int, cards: Sequence[int], per_gpu: int) -> int:
    """How many runs: what the cards take, at most ``jobs`` if that is not 0; without a card one per core."""
    most = len(cards) * per_gpu
    if jobs > most > 0:
        say(f"--jobs {jobs}: {len(cards)} CUDA cards take {per_gpu} each; --per_gpu N lets more share one")
    return min(jobs or most, most) if most else jobs or cores()


class Places:
    """Room for ``per_gpu`` runs on each card. A run that names no device gets a place when it starts, not before:
    runs end unevenly, and by order two of them would come to share a card while another one idles."""

    def __init__(self, cards: Sequence[int] = (), per_gpu: int = 1) -> None:
        self._free = Counter(dict.fromkeys(cards, per_gpu))
        self._taken: dict[str, int] = {}

    def start(self, cell: Cell) -> Cell | None:
        """The cell on the card with the most room; None if there is none and it has to wait."""
        if not self._free or not _is_open(cell.settings):
            return cell
        card, room = max(self._free.items(), key=lambda item: item[1])
        if room == 0:
            return None
        self._free[card] -= 1
        self._taken[cell.name] = card
        return on_card(cell, card)

    def end(self, cell: Cell) -> None:
        """Give the place of a cell that started back."""
        if cell.name in self._taken:
            self._free[self._taken.pop(cell.name)] += 1


def on_card(cell: Cell, card: int) -> Cell:
    """The same run (a device says where, not what) on this card, unless it names its device."""
    if not _is_open(cell.settings):
        return cell
    return replace(cell, settings=cell.settings.model_copy(update={"device": f"cuda:{card}"}))


def _is_open(settings: Settings) -> bool:
    return getattr(settings, "device", "") in OPEN
