"""Signals in every phase of every study: the start, the training, what is measured, the export; and two runs at a time."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Ended, Zygote, differing, files_of, until
from smokes import STUDIES, Smoke
from test_crash import GRID_OF_TWO, grid_folder
from test_disk_full import spread
from test_kill import points_of
