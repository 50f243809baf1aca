"""The document's config file: what it may hold, what wins over what, what is refused, and the grids that come of it."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from commandline import parsed, refusal
from conftest import files_of
from perturblab.studies.correction import Run, Train
from perturblab.studies.correction.config import packaged, settings_of
from perturblab.studies.correction.grid import cells_of
from perturblab.studies.correction.stages import completed
from perturblab.terminal import UserError

# correction.md 4.2, column by column.
COMMON = {
    "batch_size": 64, "user_corrected_max_per_batch": 4, "validate_ds_size": 0.4, "early_stopping_patience": 10,
    "accuracy_threshold": 0.95, "train_dataset_size": -1, "loss_type": ("both",), "lambda_weight": (1.0,),
    "user_corrected_pool_size": (100,),
}  # fmt: skip
DOCUMENTED: dict[str, dict[str, Any]] = {
    "overfit_test": {
        **COMMON, "batch_size": 16, "early_stopping_patience": 50, "accuracy_threshold": 0.99, "train_dataset_size": 100,
        "learning_rate": (0.01,), "user_corrected_pool_size": (50,),
    },
    "lr_search": {
        **COMMON, "train_dataset_size": 1000, "loss_type": ("balanced",),
        "learning_rate": (0.1, 0.07, 0.05, 0.01, 0.007, 0.005, 0.001, 0.0001),
    },
    "lambda_search": {
        **COMMON, "train_dataset_size": 1000, "loss_type": ("balanced",), "learning_rate": (0.01,),
        "lambda_weight": (0.1, 0.5, 1, 2, 5, 10),
    },
    "full_grid_search": {
        **COMMON, "early_stopping_patience": 15, "learning_rate": (0.01, 0.001), "lambda_weight": (1, 2),
        "user_corrected_pool_size": (100, 500),
    },
}  # fmt: skip
FILES = {name: (f"experiments/{name}.csv", f"runs/{name}") for name in DOCUMENTED}
NAMES = ("config_baseline.yaml", "baseline_config.yaml")
RUN = ("correction", "run")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, so that no earlier stage supplies anything."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str, name: str = "f.yaml") -> str:
    Path(name).write_text(text)
    return name


def ran(text: str, *words: str, experiment: str = "mine") -> Run:
    """What ``run`` gets from a file with this text and the words of the command line."""
    run = parsed(*RUN, "--config", write(text), "--experiment", experiment, *words)
    assert isinstance(run, Run)
    return run


def refused(text: str, *words: str, experiment: str = "mine") -> str:
    """The one line that is said against a file with this text."""
    line = refusal(*RUN, "--config", write(text), "--experiment", experiment, *words)
    assert len(line) < 400
    return line


def filled(experiment: str, *words: str) -> Run:
    """With learning rates and lambdas, as no earlier stage gives them."""
    run = parsed(*RUN, "--experiment", experiment, *words)
    assert isinstance(run, Run)
    return completed(run, "no data")[0]


# ---- the packaged experiments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", DOCUMENTED)
def test_an_experiment_has_exactly_the_documented_values(experiment) -> None:
    table, directory = FILES[experiment]
    expected = Run.parse({
        "experiment": experiment, **DOCUMENTED[experiment], "output_filename": table, "tensorboard_log_dir": directory,
    })  # fmt: skip
    assert filled(experiment) == expected


def test_the_general_values_are_the_documented_ones() -> None:
    assert Run.parse({"experiment": "of no name", **packaged("of no name")}) == Run.parse({
        "experiment": "of no name", **COMMON, "learning_rate": (0.01, 0.001, 0.0001),
        "output_filename": "experiments/baseline_default.csv", "tensorboard_log_dir": "runs/baseline_experiment",
    })  # fmt: skip


def test_defaults_that_the_document_leaves_open_are_those_decided() -> None:
    run = filled("lr_search")
    assert (run.max_epochs, run.min_delta, run.validation, run.grad_clip) == (500, 1e-4, "original", 0)
    assert not run.stop_grid_at_threshold


# Document 003 and 4.2, with `python baseline_loss_experiment.py` as `perturblab correction run`.
LINES = {
    **{f"--config config_baseline.yaml --experiment {name}": name for name in DOCUMENTED},
    **{f"--config baseline_config.yaml --experiment {name}": name for name in DOCUMENTED},
    "-c config_baseline.yaml -e overfit_test": "overfit_test",
}


@pytest.mark.parametrize("line", LINES)
def test_a_documented_command_line_means_what_the_document_says(line) -> None:
    found = parsed(*RUN, *line.split())
    assert completed(found, "no data")[0] == filled(LINES[line])


@pytest.mark.parametrize("experiment", DOCUMENTED)
def test_the_documented_command_line_takes_the_options_that_the_script_ignored(experiment) -> None:
    line = (
        f"--config config_baseline.yaml --experiment {experiment} --batch_size 32 --learning_rate 0.1,0.01 "
        "--early_stopping_patience 3 --seed 1"
    )
    changed = {"batch_size": 32, "learning_rate": (0.1, 0.01), "early_stopping_patience": 3, "seed": (1,)}
    found = completed(parsed(*RUN, *line.split()), "no data")[0]
    assert found == filled(experiment).model_copy(update=changed)
    assert {cell.seed for cell in found.grid()} == {1}


# ---- what wins over what ---------------------------------------------------------------------------------------------

# The built-in default is 10.
GENERAL, EXPERIMENT = "early_stopping_patience: 20", "early_stopping_patience: 30"
LEVELS = {
    "default": ("general: {}\nexperiments: {mine: {}}", (), 10),
    "general": (f"general: {{{GENERAL}}}\nexperiments: {{mine: {{}}}}", (), 20),
    "experiment": (f"general: {{{GENERAL}}}\nexperiments: {{mine: {{{EXPERIMENT}}}}}", (), 30),
    "experiment without general": (f"experiments: {{mine: {{{EXPERIMENT}}}}}", (), 30),
    "command line": (f"general: {{{GENERAL}}}\nexperiments: {{mine: {{{EXPERIMENT}}}}}", ("--early_stopping_patience", "40"), 40),
    "command line over general": (f"general: {{{GENERAL}}}\nexperiments: {{mine: {{}}}}", ("--early-stopping-patience=40",), 40),
    "command line over default": ("experiments: {mine: {}}", ("--early_stopping_patience", "40"), 40),
}  # fmt: skip


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "in program_args"])
@pytest.mark.parametrize("level", LEVELS)
def test_the_command_line_wins_over_the_experiment_over_the_general_over_the_default(level, nested) -> None:
    text, words, value = LEVELS[level]
    for one in (GENERAL, EXPERIMENT) if nested else ():
        text = text.replace(one, f"program_args: {{{one}}}")
    assert ran(text, *words).early_stopping_patience == value


@pytest.mark.parametrize(("general", "own"), [("program_args: {{{}}}", "{}"), ("{}", "program_args: {{{}}}")])
def test_an_experiment_wins_over_the_general_values_wherever_either_stands(general, own) -> None:
    text = f"general: {{{general.format(GENERAL)}}}\nexperiments: {{mine: {{{own.format(EXPERIMENT)}}}}}"
    assert ran(text).early_stopping_patience == 30


def test_lists_are_replaced_not_joined() -> None:
    text = "general: {learning_rate: [0.5, 0.25], lambda_weight: 3}\nexperiments: {mine: {learning_rate: [0.125]}}"
    assert (ran(text).learning_rate, ran(text).lambda_weight) == ((0.125,), (3,))
    assert ran(text, "--learning_rate", "1", "2").learning_rate == (1, 2)


def test_another_experiment_of_the_file_changes_nothing() -> None:
    text = "experiments:\n  mine: {batch_size: 7}\n  other: {batch_size: 8, max_epochs: 3}\n"
    assert ran(text) == Run(experiment="mine", batch_size=7)
    assert ran(text, experiment="other") == Run(experiment="other", batch_size=8, max_epochs=3)


def test_a_users_file_wins_over_earlier_stages_and_its_gaps_are_filled_as_the_document_has_it(capsys) -> None:
    """Decision 31: only what neither the command line nor the user's file says may come from elsewhere."""
    text = "general: {learning_rate: 0.5}\nexperiments: {full_grid_search: {}, lambda_search: {}}"
    run, sources = completed(ran(text, experiment="full_grid_search"), "no data")
    assert (run.learning_rate, run.lambda_weight) == ((0.5,), (1, 2))
    assert list(sources) == ["lambda_weight"]
    assert "learning_rate" not in capsys.readouterr().out
    run, sources = completed(ran(text, "--lambda_weight", "7", experiment="full_grid_search"), "no data")
    assert (run.lambda_weight, sources) == ((7,), {})


@pytest.mark.parametrize("under", ["experiments", "specific"])
def test_both_names_of_the_section_are_read(under) -> None:
    assert ran(f"{under}: {{mine: {{batch_size: 9}}}}").batch_size == 9
    both = "experiments: {mine: {batch_size: 9}}\nspecific: {other: {batch_size: 8}}"
    assert (ran(both).batch_size, ran(both, experiment="other").batch_size) == (9, 8)


def test_an_empty_section_or_value_sets_nothing() -> None:
    assert ran(
        "general:\nexperiments:\n  mine:\n    program_args:\n    batch_size:\n    dataset: ~\n"
    ) == Run(experiment="mine")


def test_the_packaged_file_as_the_users_own_means_the_same(here) -> None:
    from perturblab.studies.correction.config import PACKAGED

    for experiment in DOCUMENTED:
        own = ran(PACKAGED.read_text(), experiment=experiment)
        assert own == filled(experiment)


# ---- how values may be written ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-3", (0.001,)), ("0.001", (0.001,)), ("1", (1.0,)), ("[1e-3, 1E-2]", (0.001, 0.01)), ("[0.1]", (0.1,)),
        ("0.1,0.01", (0.1, 0.01)), ("'0.1, 0.01'", (0.1, 0.01)), ('"0.1"', (0.1,)), ("1e-3,1e-2", (0.001, 0.01)),
        ("\n      - 0.1\n      - 1e-3", (0.1, 0.001)), ("[0.1, 0.1, 0.2]", (0.1, 0.2)), ("[]", ()),
    ],
)  # fmt: skip
def test_a_list_is_a_value_or_several_or_words_with_commas(written, meant) -> None:
    text = f"experiments:\n  mine:\n    learning_rate: {written}\n"
    assert ran(text).learning_rate == meant
    assert all(type(value) is float for value in ran(text).learning_rate)


def test_1e_minus_3_is_a_number_wherever_it_stands() -> None:
    text = "experiments: {mine: {program_args: {min_delta: 1e-3, validate_ds_size: 5E-1}, lambda_weight: [1e1, 2]}}"
    run = ran(text)
    assert (run.min_delta, run.validate_ds_size, run.lambda_weight) == (0.001, 0.5, (10.0, 2.0))


def test_losses_pools_and_seeds_are_lists_as_well() -> None:
    text = (
        "experiments: {mine: {loss_type: [imbalanced, balanced], user_corrected_pool_size: '5,10', seed: 3}}"
    )
    run = ran(text)
    assert (run.losses, run.user_corrected_pool_size, run.seed) == (("balanced", "imbalanced"), (5, 10), (3,))
    assert ran("experiments: {mine: {loss_type: both}}").losses == ("balanced", "imbalanced")
    assert ran("experiments: {mine: {seeds: [0, 1]}}").seed == (0, 1)


def test_keys_may_be_spelt_with_dashes() -> None:
    text = "general: {program-args: {batch-size: 5}}\nexperiments: {mine: {learning-rate: 0.5}}"
    assert ran(text) == Run(experiment="mine", batch_size=5, learning_rate=(0.5,))


@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"indent": "\t"}, {"separators": (",", ":")}], ids=str)
def test_json_is_read_as_well(layout) -> None:
    content = {
        "general": {"program_args": {"batch_size": 32, "min_delta": 1e-05, "stop_grid_at_threshold": True}},
        "experiments": {"mine": {"learning_rate": [0.1, 1e-07], "dataset": None, "tensorboard_log_dir": 'a "b" \\ ü'}},
    }  # fmt: skip
    assert ran(json.dumps(content, **layout)) == Run(
        experiment="mine", batch_size=32, min_delta=1e-5, stop_grid_at_threshold=True, learning_rate=(0.1, 1e-7),
        tensorboard_log_dir='a "b" \\ ü',
    )  # fmt: skip


# ---- mistakes --------------------------------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[str, str]] = {
    "unknown key in general": ("general:\n  learning_rat: 1\nexperiments: {mine: {}}",
        "f.yaml, line 2: unknown key 'learning_rat'; did you mean 'learning_rate'?"),
    "unknown key in program_args": ("experiments:\n  mine:\n    program_args:\n      batch_size: 1\n      early_stoping_patience: 2\n",
        "f.yaml, line 5: unknown key 'early_stoping_patience'; did you mean 'early_stopping_patience'?"),
    "unknown key in an experiment": ("experiments:\n  mine:\n    user_corrected_pol_size: 2\n",
        "f.yaml, line 3: unknown key 'user_corrected_pol_size'; did you mean 'user_corrected_pool_size'?"),
    "key of the later script": ("general: {max_user_corrected_per_batch: 10}\nexperiments: {mine: }",
        "f.yaml, line 1: unknown key 'max_user_corrected_per_batch'; did you mean 'user_corrected_max_per_batch'?"),
    "unknown section": ("generall: {}\nexperiments: {mine: {}}", "f.yaml, line 1: unknown key 'generall'; did you mean 'general'?"),
    "experiment as a key": ("experiments: {mine: {experiment: other}}", "f.yaml, line 1: unknown key 'experiment'; choose from "),
    "its short flag as a key": ("experiments: {mine: {e: other}}", "f.yaml, line 1: unknown key 'e'; choose from "),
    "program_args in itself": ("general: {program_args: {program_args: {}}}\nexperiments: {mine: }",
                               "f.yaml, line 1: unknown key 'program_args'; choose from "),
    "key twice": ("experiments:\n  mine:\n    batch_size: 1\n    seed: 0\n    batch_size: 1\n",
                  "f.yaml, line 5: key 'batch_size' stands twice (first in line 3)"),
    "experiment twice": ("experiments:\n  mine: {}\n  mine: {}\n", "f.yaml, line 3: key 'mine' stands twice (first in line 2)"),
    "section twice": ("general: {}\nexperiments: {mine: }\ngeneral: {}\n",
                      "f.yaml, line 3: key 'general' stands twice (first in line 1)"),
    "key in two spellings": ("experiments:\n  mine:\n    batch_size: 1\n    batch-size: 1\n",
                             "f.yaml, line 4: key 'batch-size' sets 'batch_size' a second time"),
    "seed and seeds": ("experiments:\n  mine:\n    seed: 1\n    seeds: 1\n", "f.yaml, line 4: key 'seeds' sets 'seed' a second time"),
    "flat and in program_args": ("experiments:\n  mine:\n    program_args:\n      batch_size: 16\n    batch_size: 32\n",
                                 "f.yaml, line 4: key 'batch_size' sets 'batch_size' a second time"),
    "in two program_args": ("general:\n  program_args: {batch_size: 16}\n  program-args: {batch_size: 16}\nexperiments: {mine: }",
                            "f.yaml, line 3: key 'batch_size' sets 'batch_size' a second time"),
    "under both sections": ("experiments: {mine: {}}\nspecific: {mine: {}}", "f.yaml: 'mine' stands under 'experiments' and under 'specific'"),
    "unknown experiment": ("experiments: {abc: {}, xyz: {}}", "no experiment 'mine' in f.yaml; choose from abc, xyz"),
    "nearly the experiment": ("experiments: {mines: {}}\nspecific: {xyz: {}}", "no experiment 'mine' in f.yaml; did you mean 'mines'?"),
    "no experiment at all": ("general: {batch_size: 3}\n", "no experiment 'mine' in f.yaml; it has none"),
    "no experiment in the section": ("experiments:\n", "no experiment 'mine' in f.yaml; it has none"),
    "an experiment at the top": ("mine: {batch_size: 3}\n", "f.yaml, line 1: unknown key 'mine'; choose from experiments, general, specific"),
    "an experiment that is a list": ("experiments:\n  mine: [1]\n", "f.yaml, line 2: 'mine' must hold 'key: value' lines"),
    "experiments as a list": ("experiments: [mine]\n", "f.yaml, line 1: 'experiments' must hold 'key: value' lines"),
    "general as a number": ("experiments: {mine: }\ngeneral: 3\n", "f.yaml, line 2: 'general' must hold 'key: value' lines"),
    "program_args as text": ("experiments:\n  mine:\n    program_args: none\n", "f.yaml, line 3: 'program_args' must hold 'key: value' lines"),
    "broken YAML": ("experiments: {mine: {batch_size: 3}\ngeneral: {}\n", "f.yaml, line 2: not valid YAML: expected ',' or '}'"),
    "a tab": ("experiments:\n\tmine: {}\n", "f.yaml, line 2: not valid YAML: found character '\\t' that cannot start any token"),
    "broken JSON": ('{"experiments": {"mine": {"batch_size": }', "f.yaml, line 1: not valid YAML: "),
    "empty": ("", "f.yaml: expected 'key: value' lines, found nothing"),
    "a comment": ("# none\n", "f.yaml: expected 'key: value' lines, found nothing"),
    "a list": ("- mine\n", "f.yaml: expected 'key: value' lines, found list"),
    "words": ("mine\n", "f.yaml: expected 'key: value' lines, found str"),
    "an alias": ("general: &x {batch_size: 1}\nexperiments: {mine: *x}\n", "f.yaml, line 2: not valid YAML: aliases (*name) are not read"),
    "code": ("general: !!python/object/apply:os.system ['touch it-ran']\n", "f.yaml, line 1: not valid YAML: "),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_file_is_told_in_one_line(mistake) -> None:
    text, told = MISTAKES[mistake]
    assert refused(text).startswith(told)
    assert [path.name for path in Path().iterdir()] == ["f.yaml"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("batch_size: 0", "--batch_size 0 is refused: it must be a whole number, 1 or more"),
        ("batch_size: 1.5", "--batch_size 1.5 is refused: it must be a whole number, 1 or more"),
        ("batch_size: many", "--batch_size many is refused: it must be a whole number, 1 or more"),
        ("batch_size: [1, 2]", "--batch_size [1, 2] is refused: it must be a whole number, 1 or more"),
        ("batch_size: true", "--batch_size True is refused: it must be a whole number, 1 or more"),
        ("validate_ds_size: 1", "--validate_ds_size 1 is refused: it must be a finite number, more than 0 and less than 1"),
        ("accuracy_threshold: 95", "--accuracy_threshold 95 is refused: it must be a finite number, more than 0 and at most 1"),
        ("loss_type: balancd", "--loss_type 'balancd' is not one of balanced, imbalanced, both; did you mean 'balanced'?"),
        ("loss_type: [balanced, 3]", "--loss_type '3' is not one of balanced, imbalanced, both"),
        ("learning_rate: [0.1, fast]", "--learning_rate fast is refused: it must be a finite number"),
        ("learning_rate: nan", "--learning_rate nan is refused: it must be a finite number"),
        ("learning_rate: 1e999", "--learning_rate inf is refused: it must be a finite number"),
        ("learning_rate: true", "--learning_rate True is refused: it must be a finite number"),
        ("learning_rate: [0.1, false]", "--learning_rate False is refused: it must be a finite number"),
        ("learning_rate: {a: 1}", "--learning_rate {'a': 1} is refused: it must be a finite number"),
        ("learning_rate: '0.1,,0.2'", "--learning_rate '' is refused: it must be a finite number"),
        ("seed: [true]", "--seed True is refused: it must be a whole number"),
        ("user_corrected_pool_size: 1.5", "--user_corrected_pool_size 1.5 is refused: it must be a whole number"),
        ("validation: both", "--validation 'both' is not one of original, confounded"),
        ("data: 5", "--data 5 is refused: it must be text"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_told_as_on_the_command_line(value, told) -> None:
    for text in (f"experiments: {{mine: {{{value}}}}}", f"general: {{program_args: {{{value}}}}}\nexperiments: {{mine: }}"):  # fmt: skip
        assert refused(text) == told


def test_a_misspelt_key_anywhere_in_the_documents_file_is_told_with_its_line() -> None:
    from perturblab.studies.correction.config import PACKAGED

    lines = PACKAGED.read_text().splitlines()
    experiment, misspelt = "overfit_test", 0
    for number, line in enumerate(lines, 1):
        key = re.match(r" *(\w+):", line)
        if key is None:
            continue
        if line.startswith("  ") and line[2] != " " and number > lines.index("experiments:"):
            experiment = key[1]  # its name is free
            continue
        wrong = line.replace(key[1], f"{key[1]}x")
        told = refused("\n".join([*lines[: number - 1], wrong, *lines[number:]]), experiment=experiment)
        assert told.startswith(f"f.yaml, line {number}: unknown key '{key[1]}x'; did you mean '{key[1]}'?")
        misspelt += 1
    assert misspelt > 40


def test_without_an_experiment_the_choices_are_listed() -> None:
    assert refusal(*RUN) == (
        "--experiment is required: one of overfit_test, lr_search, lambda_search, full_grid_search, pool_search"
    )
    write("experiments: {mine: }\nspecific: {other: }")
    assert refusal(*RUN, "--config", "f.yaml") == "--experiment is required: one of mine, other"


def test_an_unknown_experiment_lists_those_of_the_document() -> None:
    told = refusal(*RUN, "--experiment", "xyz")
    assert all(name in told for name in DOCUMENTED)
    assert told.startswith("no experiment 'xyz' in baseline_config.yaml; choose from ")
    assert refusal(*RUN, "-e", "overfit").endswith("; did you mean 'overfit_test'?")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--learning_rate", "-1"), "--learning_rate -1.0 is refused: it must be a finite number, more than 0"),
        (("--lambda_weight", "1,-2"), "--lambda_weight -2.0 is refused: it must be a finite number, 0 or more and at most 1000000000000.0"),
        (("--user_corrected_pool_size", "0"), "--user_corrected_pool_size 0 is refused: it must be a whole number, 1 or more"),
        (("--seed", "-1"), "--seed -1 is refused: it must be a whole number, 0 or more"),
        (("--batch_size", "4"), "--batch_size 4, --user_corrected_max_per_batch 4: the corrected images leave no room for others"),
        (("--batch_size", "3"), "--batch_size 3, --user_corrected_max_per_batch 4: the corrected images leave no room for others"),
        (("--config", "pools.yaml"), "mine: --loss_type and --user_corrected_pool_size need one or more values"),
        (("--config", "losses.yaml"), "mine: --loss_type and --user_corrected_pool_size need one or more values"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else "",
)  # fmt: skip
def test_a_grid_that_cannot_run_is_refused_before_anything_is_built(words, told, here) -> None:
    write("experiments: {mine: {user_corrected_pool_size: []}}", "pools.yaml")
    write("experiments: {mine: {loss_type: []}}", "losses.yaml")
    before = files_of(here)
    experiment = "mine" if "--config" in words else "lambda_search"
    assert refusal(*RUN, "--experiment", experiment, *words) == told
    assert files_of(here) == before


# ---- which file ------------------------------------------------------------------------------------------------------

MINE = "experiments: {overfit_test: {batch_size: 7}}"


@pytest.mark.parametrize("folder", ["", "configs/"])
@pytest.mark.parametrize("asked", NAMES)
def test_a_documented_name_that_is_missing_falls_back_to_the_other_beside_it(asked, folder, capsys) -> None:
    other = NAMES[1 - NAMES.index(asked)]
    Path("configs").mkdir()
    write(MINE, folder + other)
    values = settings_of(folder + asked, {"experiment": "overfit_test"})
    assert values == {"batch_size": 7}
    assert capsys.readouterr().out == f"{folder}{asked} is not there; taking {folder}{other}\n"


@pytest.mark.parametrize("asked", [*NAMES, "configs/config_baseline.yaml"])
def test_with_neither_the_packaged_experiments_are_taken(asked, capsys) -> None:
    values = settings_of(asked, {"experiment": "overfit_test"})
    assert capsys.readouterr().out == f"{asked} is not there; taking the packaged experiments\n"
    assert values == settings_of(None, {"experiment": "overfit_test"})
    assert capsys.readouterr().out == ""
    assert values["batch_size"] == 16


@pytest.mark.parametrize("asked", NAMES)
def test_a_documented_name_that_is_there_is_taken_without_a_word(asked, capsys) -> None:
    write(MINE, asked)
    write("experiments: {overfit_test: {batch_size: 8}}", NAMES[1 - NAMES.index(asked)])
    assert settings_of(asked, {"experiment": "overfit_test"}) == {"batch_size": 7}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("asked", ["mine.yaml", "config_baseline.yml", "configs/mine.json", "baseline_config.yaml.bak"])  # fmt: skip
def test_another_missing_file_is_an_error(asked) -> None:
    write(MINE, NAMES[0])
    assert refusal(*RUN, "-c", asked, "-e", "overfit_test") == (
        f"cannot read {asked}: No such file or directory"
    )


def test_a_folder_or_a_file_that_is_no_text_is_an_error() -> None:
    Path(NAMES[0]).mkdir()
    assert refusal(*RUN, "-c", NAMES[0], "-e", "mine") == f"cannot read {NAMES[0]}: Is a directory"
    Path("f.yaml").write_bytes(b"\xff\xfe\x00")
    assert refusal(*RUN, "-c", "f.yaml", "-e", "mine") == "cannot read f.yaml: not UTF-8 text"


# ---- mutations -------------------------------------------------------------------------------------------------------

ODD = ("{", "}", "[", "]", ":", ": ", ",", "#", "- ", "'", '"', "&a ", "*a", "!!int ", "|", ">", "%", "@", "\t", "\n", "\n\n",
       " ", "   ", "~", "null", "true", "1e999", "nan", "-1", "0", "9" * 400, "9" * 5000, "?", "<<: ", "---\n", "\x00", "ü", "\u2028", "[]",
       "{}", "[[1]]", "both", "1,2", "..", "e", "0x1F")  # fmt: skip


def mutated(text: str, chance: random.Random) -> str:
    """A slip of the pen, a bad copy, a bad merge."""
    lines = text.splitlines(keepends=True)
    at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    place = chance.randrange(len(text))
    kind = chance.randrange(9)
    if kind == 0:
        return text[:place] + chance.choice(ODD) + text[place:]
    if kind == 1:
        return text[:place] + text[place + chance.randrange(1, 30) :]
    if kind == 2:
        return text[:place]
    if kind == 3:
        return text[:place] + chr(ord(text[place]) ^ 1 << chance.randrange(6)) + text[place + 1 :]
    if kind == 4:
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 5:
        lines.insert(at, lines[other])
    elif kind == 6:
        lines[at] = " " * chance.randrange(9) + lines[at].lstrip()
    elif kind == 7:
        lines[at] = lines[at].partition(":")[0] + ": " + chance.choice(ODD) + "\n"
    else:
        del lines[at]
    return "".join(lines)


def test_300_mutations_of_the_documents_file_give_settings_or_one_line() -> None:
    from perturblab.studies.correction.config import PACKAGED

    text, chance = PACKAGED.read_text(), random.Random(0)
    accepted, said = 0, set()
    for _ in range(300):
        changed = mutated(text, chance)
        for _ in range(chance.randrange(3)):
            changed = mutated(changed or "x", chance)
        Path("f.yaml").write_text(changed, newline="")
        experiment = chance.choice(list(DOCUMENTED))
        try:
            run = Run.parse({**settings_of("f.yaml", {"experiment": experiment}), "experiment": experiment})
            for cell in run.grid():
                assert cell.name
            accepted += 1
        except UserError as error:
            line = " ".join(str(error).split())
            assert 10 < len(line) < 400, line
            said.add(re.sub(r"\d+", "N", line))
    assert accepted > 60
    assert len(said) > 40  # in as many different words


# ---- grids -----------------------------------------------------------------------------------------------------------


def grid(experiment: str, *words: str) -> list[Train]:
    return list(filled(experiment, *words).grid())


def names(experiment: str, *words: str) -> list[str]:
    return [cell.name for cell in grid(experiment, *words)]


def test_full_grid_search_has_12_runs_in_the_documents_order_imbalanced_once() -> None:
    """itertools.product over learning rate, loss, lambda, pool; lambda does nothing to the imbalanced loss."""
    assert names("full_grid_search") == [
        "lr0.01_lossbalanced_lambda1.0_pool100",
        "lr0.01_lossbalanced_lambda1.0_pool500",
        "lr0.01_lossbalanced_lambda2.0_pool100",
        "lr0.01_lossbalanced_lambda2.0_pool500",
        "lr0.01_lossimbalanced_lambda1.0_pool100",
        "lr0.01_lossimbalanced_lambda1.0_pool500",
        "lr0.001_lossbalanced_lambda1.0_pool100",
        "lr0.001_lossbalanced_lambda1.0_pool500",
        "lr0.001_lossbalanced_lambda2.0_pool100",
        "lr0.001_lossbalanced_lambda2.0_pool500",
        "lr0.001_lossimbalanced_lambda1.0_pool100",
        "lr0.001_lossimbalanced_lambda1.0_pool500",
    ]


def test_lr_search_has_8_runs_lambda_search_6_and_overfit_test_2() -> None:
    rates = ("0.1", "0.07", "0.05", "0.01", "0.007", "0.005", "0.001", "0.0001")
    assert names("lr_search") == [f"lr{rate}_lossbalanced_lambda1.0_pool100" for rate in rates]
    lambdas = ("0.1", "0.5", "1.0", "2.0", "5.0", "10.0")
    assert names("lambda_search") == [f"lr0.01_lossbalanced_lambda{weight}_pool100" for weight in lambdas]
    assert names("overfit_test") == [
        f"lr0.01_loss{loss}_lambda1.0_pool50" for loss in ("balanced", "imbalanced")
    ]


def test_every_cell_is_trained_as_its_experiment_says() -> None:
    for experiment, values in DOCUMENTED.items():
        for cell in grid(experiment):
            for name in set(values) & set(Train.model_fields) - {"learning_rate", "loss_type", "lambda_weight", "user_corrected_pool_size"}:  # fmt: skip
                assert getattr(cell, name) == values[name]
            assert str(cell.log_dir) == f"runs/{experiment}/{cell.name}"


def test_the_imbalanced_run_bears_the_first_lambda_whatever_it_is() -> None:
    found = grid("full_grid_search", "--lambda_weight", "5", "0.5", "--learning_rate", "1e-3")
    assert [
        (cell.loss_type, cell.lambda_weight) for cell in found if cell.user_corrected_pool_size == 100
    ] == [("balanced", 5), ("balanced", 0.5), ("imbalanced", 5)]
    assert {cell.loss_type for cell in grid("full_grid_search", "--loss_type", "imbalanced")} == {
        "imbalanced"
    }
    assert len(grid("full_grid_search", "--loss_type", "imbalanced")) == 4


def test_seeds_stand_in_the_name_and_give_a_run_each() -> None:
    assert names("overfit_test", "--seed", "0") == [
        f"lr0.01_loss{loss}_lambda1.0_pool50_seed0" for loss in ("balanced", "imbalanced")
    ]
    assert names("overfit_test", "--seeds", "3", "1", "--loss_type", "balanced") == [
        "lr0.01_lossbalanced_lambda1.0_pool50_seed3",
        "lr0.01_lossbalanced_lambda1.0_pool50_seed1",
    ]
    assert len(grid("full_grid_search", "--seeds", "0,1,2")) == 36
    assert [cell.random_seed for cell in grid("overfit_test")] == [0, 0]


def test_no_two_runs_of_a_grid_share_a_name_or_an_id() -> None:
    for experiment in DOCUMENTED:
        found = grid(experiment, "--seeds", "0", "1")
        assert len({cell.name for cell in found}) == len({cell.id for cell in found}) == len(found)


def test_what_changes_nothing_changes_no_id() -> None:
    """No seed is seed 0, and lambda does nothing to the imbalanced loss: such runs are not repeated."""
    one, other = grid("overfit_test"), grid("overfit_test", "--seed", "0")
    assert [cell.id for cell in one] == [cell.id for cell in other]
    one, other = (
        grid("full_grid_search", "--loss_type", "imbalanced", "--lambda_weight", w) for w in ("1", "7")
    )
    assert [cell.id for cell in one] == [cell.id for cell in other]
    one, other = (
        grid("full_grid_search", "--loss_type", "balanced", "--lambda_weight", w) for w in ("1", "7")
    )
    assert not {cell.id for cell in one} & {cell.id for cell in other}


@pytest.fixture
def data(here: Path) -> None:
    """What names the runs of a grid: some bytes in the place of data and base model."""
    for name in ("08MNIST/confounded_v1/train.pth", "08MNIST/confounded_v1/test.pth", "08MNIST/original/test.pth"):  # fmt: skip
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"data")
    Path("model_confounded.pth").write_bytes(b"model")


def cells(experiment: str, *words: str) -> tuple[list[str], list[str]]:
    """The names of the runs, and of the controls after them."""
    found = list(cells_of(filled(experiment, *words)))
    grid, beside = ([cell.name for cell, control in found if control is which] for which in (False, True))
    assert [cell.name for cell, _ in found] == grid + beside
    return grid, beside


@pytest.mark.usefixtures("data")
def test_beside_the_6_of_lambda_search_2_controls_show_imbalanced_as_a_point_of_the_curve() -> None:
    """k / (B - k) = 4 / 60 (correction.md 4.1)."""
    runs, beside = cells("lambda_search")
    assert len(runs) == 6
    assert beside == [
        "lr0.01_lossimbalanced_lambda0.1_pool100",
        "lr0.01_lossbalanced_lambda0.066666666667_pool100",
    ]
    assert cells("lambda_search", "--controls", "false") == (runs, [])
    assert cells("lambda_search", "--batch_size", "32", "--seed", "1")[1] == [
        "lr0.01_lossimbalanced_lambda0.1_pool100_seed1",
        "lr0.01_lossbalanced_lambda0.142857142857_pool100_seed1",
    ]


@pytest.mark.usefixtures("data")
def test_the_other_experiments_have_no_controls_and_k_0_has_none() -> None:
    for experiment in ("overfit_test", "lr_search", "full_grid_search"):
        runs, beside = cells(experiment)
        assert (runs, beside) == (names(experiment), [])
    assert cells("lambda_search", "--user_corrected_max_per_batch", "0")[1] == []


@pytest.mark.usefixtures("data")
def test_a_lambda_of_the_curve_that_is_the_equal_one_is_not_trained_twice() -> None:
    runs, beside = cells("lambda_search", "--batch_size", "5", "--lambda_weight", "1", "4")
    assert len(runs) == 2
    assert beside == ["lr0.01_lossimbalanced_lambda1.0_pool100"]


@pytest.mark.usefixtures("data")
def test_runs_on_other_data_or_another_base_model_are_other_runs() -> None:
    def ids() -> set[str]:
        return {cell.settings.id for cell, _ in cells_of(filled("lambda_search"))}

    before = ids()
    assert len(before) == 8
    for name in ("model_confounded.pth", "08MNIST/original/test.pth"):
        Path(name).write_bytes(b"another")
        assert not ids() & before
        before |= ids()
    Path("elsewhere").mkdir()
    Path("model_confounded.pth").rename("elsewhere/model.pth")
    moved = filled("lambda_search", "--base_model", "elsewhere/model.pth")
    assert {cell.settings.id for cell, _ in cells_of(moved)} <= before
