"""The rules of the house, read off the source: layers, light commands, whole names, live links, short files."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from commandline import COMMANDS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "perturblab"
FILES = sorted(PACKAGE.rglob("*.py"))

# Each room with its layer (docs/architecture.md). A room imports its own layer and lower ones, with these limits:
# layers 0, 4 and 5 import no torch; 4 imports 0 and itself; 5 imports 0, 4 and itself. `runs` keeps bytes for
# layer 3, so that is the one edge from behaviour to bookkeeping.
LAYERS = {
    "terminal": 0, "flags": 0, "cpus": 0, "settings": 0, "yamlfile": 0, "signals": 0, "files": 0, "processes": 0,
    "streams": 1, "sites": 1, "hooked": 1, "masks": 1, "information": 1, "hardware": 1,
    "images": 2, "imagefiles": 2, "decode": 2, "augment": 2, "randaugment": 2, "datasets": 2, "confound": 2, "models": 2,
    "accelerate": 2, "checkpoints": 2,
    "objectives": 3, "perturb": 3, "schedules": 3, "measure": 3, "probes": 3, "train": 3, "state": 3,
    "claims": 4, "rows": 4, "runs": 4, "attempts": 4, "exports": 4, "launch": 4, "sweep": 4, "grids": 4,
    "report": 5,
    "experiment": 6, "planning": 6, "studies": 6,
    "cli": 7, "quickstart": 7, "gridcommands": 7, "__main__": 7,
}  # fmt: skip
ALLOWED = {
    0: {0},
    1: {0, 1},
    2: {0, 1, 2},
    3: {0, 1, 2, 3},
    4: {0, 4},
    5: {0, 4, 5},
    6: {0, 1, 2, 3, 4, 5, 6},
    7: {0, 4, 5, 6, 7},
}
EXTRA = {("measure", "runs"), ("probes", "runs"), ("train", "runs")}
LIGHT = {0, 4, 5}  # no torch, not even inside a function
IN_A_CHILD = {
    "perturblab.launch.local"
}  # its functions also run in the new process, which is the command line


def module_of(path: Path) -> str:
    """``perturblab.studies.masked_loss`` of a file; packages by their folder."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions; ``from a import b`` as ``a.b`` where that is a module."""
    tree = ast.parse(path.read_text())
    for node in tree.body if module_of(path) in IN_A_CHILD else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            base = node.module or ""
            for alias in node.names:
                below = PACKAGE.parent / Path(*base.split("."), alias.name)
                is_module = below.is_dir() or below.with_suffix(".py").exists()
                yield f"{base}.{alias.name}" if is_module else base


def wrong_edges(importer: str, imported: list[str]) -> list[str]:
    """Those of the imported modules that the room of ``importer`` must not know."""
    room = room_of(importer)
    wrong = []
    for module in imported:
        target = room_of(module) if module.startswith("perturblab") else ""
        if not target or (room, target) in EXTRA:
            continue
        if LAYERS[target] not in ALLOWED[LAYERS[room]]:
            wrong.append(f"{importer} (layer {LAYERS[room]}) imports {module} (layer {LAYERS[target]})")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_import_points_up(path) -> None:
    importer = module_of(path)
    if importer == "perturblab":
        assert not list(imports(path))
        return
    assert not wrong_edges(importer, list(imports(path)))


def test_an_edge_that_points_up_would_be_seen() -> None:
    assert wrong_edges("perturblab.sites", ["perturblab.train", "torch", "perturblab.settings"]) == [
        "perturblab.sites (layer 1) imports perturblab.train (layer 3)"
    ]
    assert wrong_edges("perturblab.report.plots", ["perturblab.studies.masked_loss"])
    assert wrong_edges("perturblab.runs", ["perturblab.checkpoints"])


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_rooms_that_need_no_torch_import_none(path) -> None:
    room = room_of(module_of(path))
    heavy = {"torch", "torchvision"} & {name.split(".")[0] for name in imports(path)}
    if not room or LAYERS[room] in LIGHT:
        assert not heavy
    if room and LAYERS[room] == 1:
        assert not {"pandas", "matplotlib", "scipy", "sklearn"} & {
            name.split(".")[0] for name in imports(path)
        }


@pytest.mark.parametrize("path", sorted((PACKAGE / "studies").glob("*/__init__.py")), ids=module_of)
def test_a_study_says_what_it_is_without_its_work(path) -> None:
    for name in imports(path):
        assert name.split(".")[0] not in ("torch", "numpy", "pandas", "matplotlib")
        if name.startswith(module_of(path)):  # a part of what it says, held to the same
            part = PACKAGE.parent / Path(*name.split(".")).with_suffix(".py")
            test_a_study_says_what_it_is_without_its_work(part)
        elif name.startswith("perturblab"):
            assert LAYERS[room_of(name)] in (0, 4)


def test_no_study_knows_another() -> None:
    for path in (PACKAGE / "studies").glob("*/*.py"):
        own = f"perturblab.studies.{path.parent.name}"
        assert all(name.startswith(own) for name in imports(path) if name.startswith("perturblab.studies"))


def test_every_room_has_its_layer_and_stands_in_the_architecture() -> None:
    rooms = {room_of(module_of(path)) for path in FILES} - {""}
    assert rooms <= LAYERS.keys()
    text = (ROOT / "docs" / "architecture.md").read_text()
    for room in rooms - {"__main__"}:
        assert re.search(rf"^\| {LAYERS[room]} \|[^|]*`{room}/?`", text, re.MULTILINE), room


# ---- light commands ------------------------------------------------------------------------------------------------

LOADED = """
import contextlib, io, json, sys
from perturblab.cli import main
out = io.StringIO()
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main(words)
heavy = ("torch", "torchvision", "numpy", "pandas", "matplotlib", "sklearn", "scipy", "rich")
print(json.dumps([name for name in heavy if name in sys.modules]))
print(len(out.getvalue()))
"""


def loaded_by(*lines: str, folder: Path) -> tuple[list[str], int]:
    """The heavy modules that a process has loaded after these command lines, and how much they printed."""
    words = json.dumps([line.split() for line in lines])
    command = [sys.executable, "-c", LOADED, words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    heavy, printed = done.stdout.splitlines()
    return json.loads(heavy), int(printed)


def test_help_version_mistakes_and_generating_a_script_load_no_torch(tmp_path) -> None:
    helps = [f"{command} --help" for command in COMMANDS]
    heavy, printed = loaded_by(
        "--help", "--version", "masked-loss --help", *helps, "masked-loss sweep --mode generate", "first-layer-mi jobs",
        "masked-loss train --arch vgg12", "masked-loss train --epochs 0", folder=tmp_path,
    )  # fmt: skip
    assert heavy == []
    assert printed > 5000
    assert (tmp_path / "run_all.sh").exists()
    assert (tmp_path / "scripts" / "job_manager_vgg9.sh").exists()


def test_a_run_would_be_seen_to_load_torch(tmp_path) -> None:
    heavy, _ = loaded_by("masked-loss evaluate --checkpoint none.pt", folder=tmp_path)
    assert "torch" in heavy


# ---- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in FILES if path.stem != "__main__"], ids=module_of)
def test_a_module_imports_and_holds_every_name_that_it_exports(path) -> None:
    module = import_module(module_of(path))
    assert module.__doc__, "a module says what it is for"
    for name in getattr(module, "__all__", []):
        assert hasattr(module, name)


def test_every_command_names_a_function_that_is_there() -> None:
    for command in COMMANDS.values():
        module, _, function = command.target.partition(":")
        assert callable(getattr(import_module(module), function))


def test_the_package_is_typed_and_its_version_is_that_of_the_project() -> None:
    import tomllib

    import perturblab

    assert (PACKAGE / "py.typed").exists()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == perturblab.__version__


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_file_is_at_most_300_lines(path) -> None:
    assert len(path.read_text().splitlines()) <= 300


def test_no_room_is_called_utils() -> None:
    vague = {"util", "utils", "helper", "helpers", "common", "misc", "manager", "handler"}
    assert not [path for path in FILES if {path.stem.lower(), *path.stem.lower().split("_")} & vague]


WRITTEN = [
    *FILES,
    *(path for kind in ("*.md", "docs/*.md", "tests/*.py", "benchmarks/*", "Makefile", "pyproject.toml", ".ci/*") for path in sorted(ROOT.glob(kind)) if path.is_file()),
]  # fmt: skip
HOMES = re.compile("|".join(("/wo" + "rk/", "/ho" + "me/", "/ro" + "ot/", "/Us" + "ers/", r"C:\\Us" + "ers")))


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_names_a_folder_of_somebodys_machine(path) -> None:
    assert not HOMES.findall(path.read_text(errors="replace"))


def test_a_folder_of_somebodys_machine_would_be_seen() -> None:
    assert HOMES.search("open('/ho" + "me/ada/data')")


# ---- links ---------------------------------------------------------------------------------------------------------

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def dead_links(page: Path, text: str) -> list[str]:
    """Links of a page to files that are not there, or to headings that the target does not have."""
    dead = []
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        content = text if target == page else target.read_text() if target.is_file() else ""
        if not target.exists() or (heading and heading not in headings(content)):
            dead.append(link)
    return dead


def headings(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page) -> None:
    assert not dead_links(page, page.read_text())


def test_a_dead_link_would_be_seen() -> None:
    text = "# A title\n[a](none.md) [b](README.md) [c](#a-title) [d](#none) [e](https://x.org) `f`\n"
    assert dead_links(ROOT / "CHANGELOG.md", text) == ["none.md", "#none"]


def test_the_files_and_folders_that_the_documentation_names_exist() -> None:
    """Backticked paths of this repository, such as ``docs/extending.md`` or ``src/perturblab/train.py``."""
    for page in PAGES:
        for named in re.findall(r"`((?:docs|tests|benchmarks|src)/[\w./-]+)`", page.read_text()):
            assert (ROOT / named).exists(), f"{page.name} names {named}"
