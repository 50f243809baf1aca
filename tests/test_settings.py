"""Settings: what ran is what is recorded, and a run's name says exactly what it computes."""

import json
import string
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from commandline import COMMANDS, parsed
from perturblab.settings import Settings, documented_flag, explain, flag, is_where
from perturblab.studies.masked_loss import Evaluate, Sweep, Train, Visualize
from perturblab.terminal import UserError

REQUIRED = {"arch": "vgg11", "mode": "masked", "seed": 0}
DEFAULTS = Path(__file__).with_name("defaults.json")


def a_run(**values: Any) -> Train:
    return Train.parse({**REQUIRED, **values})


# ---- any settings at all -----------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8) | st.sampled_from(
    ["-x", "--seeds", "a b", "x=y", "'", "$HOME", "ü", "--", "-1", "0.5"]
)


def values_of(cls: type[Settings], name: str) -> st.SearchStrategy[Any]:
    """Every value that a field takes, from its type and limits."""
    info = cls.model_fields[name]
    if name == "suffix":
        return st.text(string.ascii_letters + "-_. =", max_size=5)
    if name == "dataset":
        return st.sampled_from(["cifar10", "digits"]) | TEXT.map("folder:{}".format)
    if name == "device":
        return st.sampled_from(["auto", "cpu", "mps", "cuda"]) | st.integers(0, 99).map("cuda:{}".format)
    if name == "runs_dir":
        return TEXT.filter(str.strip)
    limits = {k: getattr(m, k) for m in info.metadata for k in ("ge", "gt", "le", "lt") if hasattr(m, k)}
    annotation, listed = info.annotation, get_origin(info.annotation) is tuple
    inner = get_args(annotation)[0] if listed else annotation
    found: st.SearchStrategy[Any]
    if get_origin(inner) is Literal:
        found = st.sampled_from(get_args(inner))
    elif inner is bool:
        found = st.booleans()
    elif inner is int:
        found = st.integers(limits.get("ge", 0), 10**6)
    elif inner is float:
        found = st.floats(
            limits.get("ge", limits.get("gt")),
            limits.get("le", limits.get("lt", 1e6)),
            exclude_min="gt" in limits,
            exclude_max="lt" in limits,
        )
    else:
        found = TEXT
    return st.lists(found, min_size=1, max_size=4, unique=True).map(tuple) if listed else found


def settings_of(cls: type[Settings]) -> st.SearchStrategy[Settings]:
    required = {n: values_of(cls, n) for n, i in cls.model_fields.items() if i.is_required()}
    others = {n: values_of(cls, n) for n, i in cls.model_fields.items() if not i.is_required()}
    return st.fixed_dictionaries(required, optional=others).map(cls.parse)


@given(settings_of(Train))
@settings(max_examples=60, deadline=None)
def test_a_training_runs_own_command_line_gives_its_settings_again(run) -> None:
    assert parsed(*run.arguments()) == run


@given(settings_of(Sweep))
@settings(max_examples=30, deadline=None)
def test_a_sweeps_own_command_line_gives_its_settings_again(sweep) -> None:
    assert parsed(*sweep.arguments()) == sweep


@given(settings_of(Train))
@settings(max_examples=60, deadline=None)
def test_settings_survive_json_and_keep_their_id(run) -> None:
    again = Train.parse(json.loads(json.dumps(run.model_dump(mode="json"))))
    assert again == run
    assert again.id == run.id


@given(settings_of(Train), settings_of(Train))
@settings(max_examples=60, deadline=None)
def test_ids_are_equal_exactly_when_what_is_computed_is(one, other) -> None:
    def what(run: Train) -> dict[str, Any]:
        """By hand: the fields without those that say where, and those that the mode reads."""
        where = {"device", "threads", "num_workers", "data_dir", "checkpoint_dir", "results_dir", "runs_dir"}
        unread = {
            "baseline": {"n_masks", "lambda_max", "clamp", "site"},
            "half-loss": {"n_masks", "clamp", "site"},
        }
        fields = run.model_dump(exclude=where | {"checkpoint_every", "suffix"} | unread.get(run.mode, set()))
        if fields["augment"] == "auto":
            fields["augment"] = "crop" if run.dataset in ("digits", "mnist") else "crop-flip"
        return fields

    assert (one.id == other.id) == (what(one) == what(other))
    assert len(one.id) == 10


# ---- identity, field by field --------------------------------------------------------------------------------------

OTHER: dict[str, Any] = {
    "arch": "vgg13", "mode": "baseline", "seed": 1, "epochs": 3, "batch_size": 64, "lr": 0.2, "n_masks": 4,
    "lambda_max": 0.5, "clamp": "rescale", "site": "conv1", "momentum": 0.8, "weight_decay": 1e-3,
    "dataset": "cifar100", "normalize": "data", "augment": "none", "width": 0.5, "eval_every": 2,
    "clean_every": 2, "robustness_masks": 0, "precision": "bf16", "compile": True,
    "device": "cpu", "threads": 3, "num_workers": 0, "data_dir": "/d", "checkpoint_dir": "/c", "results_dir": "/r",
    "runs_dir": "/s", "checkpoint_every": 1.0, "suffix": "b",
}  # fmt: skip
WHERE = {"device", "threads", "num_workers", "data_dir", "checkpoint_dir", "results_dir", "runs_dir"} | {
    "checkpoint_every",
    "suffix",
}


@pytest.mark.parametrize("name", Train.model_fields)
def test_a_field_changes_the_id_unless_it_only_says_where(name) -> None:
    """A new field must be put into OTHER, and into WHERE if it changes nothing that is computed."""
    other = a_run(**{name: OTHER[name]})
    assert (other.id == a_run().id) == (name in WHERE)
    assert is_where(Train.model_fields[name]) == (name in WHERE)


@pytest.mark.parametrize(("mode", "ignored"), [
    ("baseline", {"n_masks", "lambda_max", "clamp", "site"}),
    ("half-loss", {"n_masks", "clamp", "site"}),
    ("masked", set()),
])  # fmt: skip
def test_a_mode_ignores_what_it_never_reads(mode, ignored) -> None:
    for name in ("n_masks", "lambda_max", "clamp", "site", "lr", "width"):
        same = a_run(mode=mode, **{name: OTHER[name]}).id == a_run(mode=mode).id
        assert same == (name in ignored), name


def test_auto_augmentation_is_the_one_that_it_stands_for() -> None:
    assert a_run(augment="auto").id == a_run(augment="crop-flip").id != a_run(augment="crop").id
    digits = {"dataset": "digits"}
    assert (
        a_run(augment="auto", **digits).id
        == a_run(augment="crop", **digits).id
        != a_run(augment="crop-flip", **digits).id
    )


def test_canonical_settings_are_canonical_already() -> None:
    for mode in ("baseline", "masked", "half-loss"):
        run = a_run(mode=mode, n_masks=7, lambda_max=0.3, clamp="none", augment="auto")
        assert run.canonical().canonical() == run.canonical()
        assert run.canonical().id == run.id


def test_a_raised_version_and_another_study_are_other_ids() -> None:
    class Later(Train):
        version = Train.version + 1

    class Elsewhere(Train):
        study = "another"

    ids = {cls.parse(REQUIRED).id for cls in (Train, Later, Elsewhere)}
    assert len(ids) == 3


def test_the_name_of_a_run_is_the_stem_of_its_documented_files() -> None:
    assert a_run().name == "vgg11_masked_seed0"
    assert a_run(suffix="wide").name == "vgg11_masked_seed0_wide"


@pytest.mark.parametrize("suffix", ["a/b", "../x", "a\\b", "a\tb"])
def test_a_suffix_that_is_no_part_of_a_file_name_is_refused(suffix) -> None:
    with pytest.raises(UserError, match=r"--suffix .+ is refused: it must be a part of a file name"):
        a_run(suffix=suffix)


# ---- defaults ------------------------------------------------------------------------------------------------------


def defaults_of(cls: type[Settings]) -> dict[str, Any]:
    """The defaults that a run's id leaves out; of the fields that only say where, none."""
    found = {}
    for name, info in cls.model_fields.items():
        if not is_where(info):
            found[name] = "required" if info.is_required() else json.loads(json.dumps(info.default))
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_a_default_changes_only_together_with_the_version(command) -> None:
    """An id leaves out what is default: were a default changed alone, a new run would take an old run's folder.

    After a change raise ``version`` in the settings class, and write its defaults under the new number here.
    """
    cls = COMMANDS[command].settings
    committed = json.loads(DEFAULTS.read_text())
    versions = committed[command]
    assert max(map(int, versions)) == cls.version
    assert versions[str(cls.version)] == defaults_of(cls), (
        f"raise {cls.__name__}.version, add it to {DEFAULTS.name}"
    )


def test_no_command_that_is_gone_stands_among_the_defaults() -> None:
    assert json.loads(DEFAULTS.read_text()).keys() == COMMANDS.keys()


def test_the_documented_defaults_are_the_defaults() -> None:
    """The table of document 000 and the code's own further flags (masked-loss.md 1.2); the device by decision 16."""
    run = a_run()
    assert (run.epochs, run.batch_size, run.lr, run.n_masks, run.lambda_max) == (200, 128, 0.1, 3, 1.0)
    assert (run.momentum, run.weight_decay, run.num_workers) == (0.9, 5e-4, 4)
    assert (run.data_dir, run.checkpoint_dir, run.results_dir) == ("./data", "./checkpoints", "./results")
    assert (run.clamp, run.site, run.device, run.dataset, run.width, run.precision) == (
        "hard", "hidden", "auto", "cifar10", 1.0, "fp32",
    )  # fmt: skip
    sweep = Sweep.parse({})
    assert sweep.architectures == ("vgg11", "vgg13", "vgg16", "vgg19")
    assert (sweep.modes, sweep.seeds) == (("baseline", "masked"), (0, 1, 2))
    assert (sweep.mode, sweep.output_script) == ("sequential", "run_all.sh")
    assert (Visualize.parse({}).results_dir, Visualize.parse({}).plots_dir) == ("./results", "./plots")


def test_the_documented_grid_is_24_runs_in_the_documented_order() -> None:
    names = [cell.name for cell in Sweep.parse({"epochs": 3}).grid()]
    assert names == [
        f"{arch}_{mode}_seed{seed}"
        for arch in ("vgg11", "vgg13", "vgg16", "vgg19")
        for mode in ("baseline", "masked")
        for seed in (0, 1, 2)
    ]
    assert len(names) == 24


def test_every_setting_of_a_sweep_reaches_its_runs() -> None:
    shared = {name: value for name, value in OTHER.items() if name in Sweep.model_fields and name != "mode"}
    for cell in Sweep.parse({**shared, "architectures": ["vgg11"], "modes": ["masked"], "seeds": [4]}).grid():
        assert cell == a_run(**shared, seed=4)


def test_a_run_that_is_named_twice_is_one_run() -> None:
    sweep = Sweep.parse(
        {"seeds": (1, 0, 1), "modes": ("half_loss", "half-loss"), "architectures": ("vgg11",) * 2}
    )
    assert [cell.name for cell in sweep.grid()] == ["vgg11_half-loss_seed1", "vgg11_half-loss_seed0"]


def test_settings_cannot_be_changed() -> None:
    run = a_run()
    with pytest.raises(ValidationError, match="frozen"):
        run.lr = 0.5


# ---- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "message"), [
    ({"seed": None}, "--seed None is refused: it must be a whole number, 0 or more"),
    ({"seed": True}, "--seed True is refused: it must be a whole number, 0 or more"),
    ({"lr": False}, "--lr False is refused: it must be a finite number, more than 0"),
    ({"epochs": 0}, "--epochs 0 is refused: it must be a whole number, 1 or more"),
    ({"epochs": "ten"}, "--epochs ten is refused: it must be a whole number, 1 or more"),
    ({"epochs": 1.5}, "--epochs 1.5 is refused: it must be a whole number, 1 or more"),
    ({"epochs": [3]}, "--epochs [3] is refused: it must be a whole number, 1 or more"),
    ({"lr": "nan"}, "--lr nan is refused: it must be a finite number, more than 0"),
    ({"lr": float("inf")}, "--lr inf is refused: it must be a finite number, more than 0"),
    ({"lr": ""}, "--lr '' is refused: it must be a finite number, more than 0"),
    ({"momentum": 1}, "--momentum 1 is refused: it must be a finite number, 0 or more and less than 1"),
    ({"width": 9}, "--width 9 is refused: it must be a finite number, more than 0 and at most 8"),
    ({"compile": "maybe"}, "--compile maybe is refused: it must be True or False"),
    ({"dataset": 5}, "--dataset 5 is refused: it must be text"),
    ({"mode": "maskd"}, "--mode 'maskd' is not one of baseline, masked, half-loss; did you mean 'masked'?"),
    ({"arch": "resnet"}, "--arch 'resnet' is not one of vgg11, vgg13, vgg16, vgg19"),
    ({"lamda_max": 1}, "unknown setting 'lamda_max'; did you mean 'lambda_max'?"),
    ({"suffix": "x" * 500 + "/"}, f"--suffix {'x' * 60}... is refused: it must be a part of a file name"),
])  # fmt: skip
def test_a_wrong_value_is_refused_with_its_flag_and_what_it_may_be(values, message) -> None:
    with pytest.raises(UserError) as told:
        a_run(**values)
    assert str(told.value) == message


def test_what_is_missing_is_named_with_its_choices() -> None:
    for given_, message in (
        ({}, "--arch is required: one of vgg11, vgg13, vgg16, vgg19"),
        ({"arch": "vgg11"}, "--mode is required: one of baseline, masked, half-loss"),
        ({"arch": "vgg11", "mode": "masked"}, "--seed is required"),
    ):
        with pytest.raises(UserError) as told:
            Train.parse(given_)
        assert str(told.value) == message


@pytest.mark.parametrize(("values", "message"), [
    ({"seeds": 3}, "--seeds 3 is refused: it must be a list"),
    ({"seeds": [0, "x"]}, "--seeds x is refused: it must be a whole number"),
    ({"seeds": []}, "--seeds [] is refused: it must hold one or more values"),
    ({"modes": ["masked", "bse"]}, "--modes 'bse' is not one of baseline, masked, half-loss; did you mean 'baseline'?"),
])  # fmt: skip
def test_a_wrong_value_in_a_list_is_refused_with_the_value(values, message) -> None:
    with pytest.raises(UserError) as told:
        Sweep.parse(values)
    assert str(told.value) == message


def test_an_optional_choice_names_its_choices_too() -> None:
    with pytest.raises(
        UserError, match=r"--arch 'vgg1' is not one of vgg11, vgg13, vgg16, vgg19; did you mean 'vgg"
    ):
        Evaluate.parse({"checkpoint": "x.pt", "arch": "vgg1"})


def test_a_giant_value_makes_a_short_message() -> None:
    bomb: list[Any] = ["x"]
    for _ in range(40):
        bomb = [bomb] * 10
    with pytest.raises(UserError) as told:
        a_run(seed=bomb)
    assert len(str(told.value)) < 300


def test_a_message_about_several_fields_at_once_is_told_as_it_is() -> None:
    from pydantic import model_validator

    class Pair(Settings):
        low: int = flag(0, "Lower end.")
        high: int = flag(1, "Upper end.")

        @model_validator(mode="after")
        def _order(self) -> "Pair":
            if self.low > self.high:
                raise ValueError("--low must not be over --high")
            return self

    with pytest.raises(ValidationError) as told:
        Pair(low=2, high=1)
    assert explain(Pair, told.value) == "--low must not be over --high"


# ---- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["batch_size", "batch-size", "--batch_size", "--batch-size"])
def test_any_spelling_of_a_field_is_that_field(name) -> None:
    assert Train.field_for(name) == "batch_size"
    assert a_run(**{name: 7}).batch_size == 7


@pytest.mark.parametrize("command", COMMANDS)
def test_no_two_fields_share_a_flag(command) -> None:
    cls = COMMANDS[command].settings
    spelt = [name for field in cls.model_fields for name in {cls.field_for(field), field}]
    assert len(spelt) == len(set(spelt))
    for name in cls.names():
        assert cls.field_for(name) in cls.model_fields
    aliases = [n for i in cls.model_fields.values() for n in {*(i.json_schema_extra or {}).get("flags", [])}]
    assert len(aliases) == len(set(aliases))


def test_the_documented_spelling_is_shown() -> None:
    assert documented_flag("num_workers", Train.model_fields["num_workers"]) == "--num_workers"
    assert documented_flag("arch", Train.model_fields["arch"]) == "--arch"
    assert documented_flag("lr", Train.model_fields["lr"]) == "--lr"
