"""Event files, read back by TensorBoard's own readers and by the code behind its HPARAMS tab."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import json_format
from PIL import Image
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.proto import event_pb2
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups, metadata

from perturblab.report.events import Event, event_file, file_name, image_grid, run_id_of

HPARAMS = {"lr": 0.01, "loss_type": "balanced", "lambda": 1.0, "pool_size": 100, "augment": True}
METRICS = {"hparam/val_accuracy": 0.96, "hparam/test_accuracy": 0.5}
BATTERY = np.random.default_rng(0).integers(0, 256, (11, 5, 4, 3), dtype=np.uint8)


def history(length: int = 4) -> list[Event]:
    """A run whose loss is NaN at step 2, infinite at step 3; images at steps 1 and 4, a text at step 4."""
    losses = {2: math.nan, 3: math.inf}
    return [
        Event(
            step=step,
            seconds=1.7e9 + 0.5 * step,
            scalars={"Loss/train_epoch": losses.get(step, 1 / (step + 2)), "Accuracy/val_epoch": 0.1 * step},
            images={"confounded_samples": image_grid(BATTERY), "grey": image_grid(BATTERY[..., 0])}
            if step in (1, 4)
            else {},
            texts={"Predictions/confounded": "a **b** | `ü`"} if step == 4 else {},
        )
        for step in range(1, length + 1)
    ]


def read(folder: Path, data: bytes, run: str = "ab12") -> EventAccumulator:
    """What TensorBoard's reader finds in a folder with this event file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file_name(run)).write_bytes(data)
    everything = {"scalars": 0, "images": 0, "tensors": 0}
    found = EventAccumulator(str(folder), size_guidance=everything)
    found.Reload()
    return found


# ---- the file ------------------------------------------------------------------------------------------------------


def test_every_scalar_comes_back_at_its_step_and_time(tmp_path: Path) -> None:
    found = read(tmp_path, event_file(history(), HPARAMS, METRICS))
    assert set(found.Tags()["scalars"]) == {"Loss/train_epoch", "Accuracy/val_epoch", *METRICS}
    for tag in ("Loss/train_epoch", "Accuracy/val_epoch"):
        points = found.Scalars(tag)
        assert [(p.step, p.wall_time) for p in points] == [(e.step, e.seconds) for e in history()]
        written = np.array([e.scalars[tag] for e in history()], dtype=np.float32)
        np.testing.assert_array_equal(np.array([p.value for p in points], dtype=np.float32), written)


def test_metrics_stand_at_the_last_step(tmp_path: Path) -> None:
    found = read(tmp_path, event_file(history(), HPARAMS, METRICS))
    for tag, value in METRICS.items():
        (point,) = found.Scalars(tag)
        assert (point.step, point.wall_time, point.value) == (4, 1.7e9 + 2, np.float32(value))


def test_images_come_back_pixel_for_pixel_at_the_steps_that_have_them(tmp_path: Path) -> None:
    found = read(tmp_path, event_file(history(), HPARAMS, METRICS))
    for tag, mode, channels in (("confounded_samples", "RGB", 3), ("grey", "L", 1)):
        shown = found.Images(tag)
        assert [image.step for image in shown] == [1, 4]
        written = history()[0].images[tag]
        decoded = Image.open(io.BytesIO(shown[0].encoded_image_string))
        np.testing.assert_array_equal(np.asarray(decoded), np.asarray(Image.open(io.BytesIO(written))))
        assert (decoded.mode, decoded.size) == (mode, (shown[0].width, shown[0].height))
        (value,) = [v for e in raw(tmp_path) if e.step == 4 for v in e.summary.value if v.tag == tag]
        assert value.image.colorspace == channels


def raw(folder: Path) -> list[event_pb2.Event]:
    """The records of the one event file in a folder, as they are; the reader checks their checksums."""
    (path,) = folder.iterdir()
    return [event_pb2.Event.FromString(record) for record in RawEventFileLoader(str(path)).Load()]


def test_a_text_comes_back_as_one_string_which_tensorboard_shows_as_markdown(tmp_path: Path) -> None:
    found = read(tmp_path, event_file(history(), HPARAMS, METRICS))
    (text,) = found.Tensors("Predictions/confounded")
    assert text.step == 4
    assert [string.decode() for string in text.tensor_proto.string_val] == ["a **b** | `ü`"]
    assert not text.tensor_proto.tensor_shape.dim
    assert "Predictions/confounded" in found.PluginTagToContent("text")


def test_the_records_are_the_version_the_session_the_events_the_metrics_and_the_end(tmp_path: Path) -> None:
    read(tmp_path, event_file(history(2), HPARAMS, METRICS))
    first, *rest = raw(tmp_path)
    assert first.file_version == "brain.Event:2"
    tags = [[value.tag for value in event.summary.value] for event in rest]
    scalars = ["Loss/train_epoch", "Accuracy/val_epoch"]
    assert tags == [
        [metadata.EXPERIMENT_TAG, metadata.SESSION_START_INFO_TAG],
        [*scalars, "confounded_samples", "grey"],
        scalars,
        list(METRICS),
        [metadata.SESSION_END_INFO_TAG],
    ]


def test_hyperparameters_and_the_length_of_the_session_come_back(tmp_path: Path) -> None:
    found = read(tmp_path, event_file(history(), HPARAMS, METRICS))
    content = found.PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert {name: values(value) for name, value in start.hparams.items()} == HPARAMS
    end = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])
    assert (start.start_time_secs, end.end_time_secs) == (1.7e9 + 0.5, 1.7e9 + 2)
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    kinds = {info.name: api_pb2.DataType.Name(info.type) for info in experiment.hparam_infos}
    number, text, boolean = "DATA_TYPE_FLOAT64", "DATA_TYPE_STRING", "DATA_TYPE_BOOL"
    assert list(kinds.items()) == list(zip(HPARAMS, (number, text, number, number, boolean), strict=True))
    assert [info.name.tag for info in experiment.metric_infos] == list(METRICS)


def values(value: object) -> object:
    """The member that a ``google.protobuf.Value`` holds."""
    return getattr(value, value.WhichOneof("kind"))  # type: ignore[attr-defined]


def test_equal_input_gives_equal_bytes_in_every_process() -> None:
    code = (
        "import sys, hashlib; from perturblab.report.events import *\n"
        "names = {f'name {i}': i for i in range(50)}\n"
        "data = event_file([Event(1, 2.0, {'a': 0.1})], names, {'m': 1.0})\n"
        "print(hashlib.sha256(data).hexdigest(), 'torch' in sys.modules)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout
    assert runs[0].stdout.endswith(" False\n"), runs[0].stderr
    assert event_file(history(), HPARAMS, METRICS) == event_file(iter(history()), dict(HPARAMS), METRICS)


def test_a_run_without_events_still_has_its_row_of_hyperparameters(tmp_path: Path) -> None:
    found = read(tmp_path, event_file([], HPARAMS, {}))
    assert found.Tags()["scalars"] == []
    assert metadata.SESSION_START_INFO_TAG in found.PluginTagToContent("hparams")
    assert [event.step for event in raw(tmp_path)] == [0, 0, 0]


def test_an_image_that_is_no_png_is_refused() -> None:
    with pytest.raises(ValueError, match="samples: not a PNG"):
        event_file([Event(1, 0.0, {}, {"samples": b"\xff\xd8 a JPEG"})], {}, {})


def test_a_name_tells_whose_it_is_and_foreign_ones_tell_nothing() -> None:
    assert "tfevents" in file_name("3f2a")
    assert run_id_of(Path("anywhere") / file_name("3f2a")) == "3f2a"
    foreign = ["events.out.tfevents.1700000000.host.12.0", "events.out.tfevents.0.perturblab-", "notes.txt"]
    assert [run_id_of(Path(name)) for name in foreign] == [None] * 3
    for bad in ("", "a/b"):
        with pytest.raises(ValueError, match="not a run's id"):
            file_name(bad)


# ---- the HPARAMS tab -----------------------------------------------------------------------------------------------


def rows_of_the_tab(logs: Path) -> tuple[dict[str, dict[str, object]], list[str]]:
    """What the HPARAMS tab receives of TensorBoard: per run its columns, and the names of the columns."""
    runs = EventMultiplexer()
    runs.AddRunsFromDirectory(str(logs))
    runs.Reload()
    context = backend_context.Context(TBContext(data_provider=MultiplexerDataProvider(runs, str(logs))))
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=10, allowed_statuses=[api_pb2.STATUS_SUCCESS]
    )
    answer = list_session_groups.Handler(RequestContext(), context, "", request).run()
    groups = json.loads(json_format.MessageToJson(answer)).get("sessionGroups", [])
    rows = {
        g["name"]: g["hparams"] | {m["name"]["tag"]: m["value"] for m in g["metricValues"]} for g in groups
    }
    content = context.hparams_metadata(RequestContext(), "")
    experiment = context.experiment_from_metadata(RequestContext(), "", True, content, None)
    names = [info.name for info in experiment.hparam_infos] + [
        info.name.tag for info in experiment.metric_infos
    ]
    return rows, names


def test_two_runs_are_two_rows_with_their_hyperparameters_and_metrics(tmp_path: Path) -> None:
    other = HPARAMS | {"lr": 0.001, "loss_type": "imbalanced", "augment": False}
    read(tmp_path / "lr0.01", event_file(history(), HPARAMS, METRICS), "a")
    read(tmp_path / "lr0.001", event_file(history(), other, dict.fromkeys(METRICS, 0.25)), "b")
    rows, columns = rows_of_the_tab(tmp_path)
    assert rows["lr0.01"] == HPARAMS | {tag: float(np.float32(value)) for tag, value in METRICS.items()}
    assert rows["lr0.001"] == other | dict.fromkeys(METRICS, 0.25)
    assert sorted(columns) == sorted([*HPARAMS, *METRICS])


def test_numbers_that_the_table_cannot_show_stand_there_as_text(tmp_path: Path) -> None:
    odd = {"clip": math.inf, "seed": 2**63 + 1, "tau": math.nan, "n": 2**53}
    read(tmp_path / "a", event_file(history(), odd, {"m": math.nan}), "a")
    rows, _ = rows_of_the_tab(tmp_path)
    assert rows == {
        "a": {"clip": "inf", "seed": "9223372036854775809", "tau": "nan", "n": 2.0**53, "m": "NaN"}
    }


# ---- grids of images -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [BATTERY, BATTERY[..., 0]], ids=["colour", "grey"])
def test_a_grid_holds_every_image_enlarged_and_in_order(images: np.ndarray) -> None:
    scale, gap, columns = 3, 2, 4
    grid = np.asarray(Image.open(io.BytesIO(image_grid(images, columns, scale, gap))))
    assert grid.shape[:2] == (3 * (2 + 3 * (5 + 2)), 3 * (2 + 4 * (4 + 2)))
    small = grid[::scale, ::scale]
    np.testing.assert_array_equal(small.repeat(scale, 0).repeat(scale, 1), grid)
    covered = np.zeros(small.shape[:2], dtype=bool)
    for i, image in enumerate(images):
        at = np.s_[2 + i // 4 * 7 :, 2 + i % 4 * 6 :]
        np.testing.assert_array_equal(small[at][:5, :4], image)
        covered[at][:5, :4] = True
    assert (small[~covered] == 128).all()


def test_few_images_make_a_narrow_grid() -> None:
    grid = Image.open(io.BytesIO(image_grid(BATTERY[:2], columns=8, scale=1, gap=0)))
    assert grid.size == (2 * 4, 5)


@pytest.mark.parametrize(
    "images",
    [BATTERY[:0], BATTERY.astype(np.float32), BATTERY[0, 0], BATTERY[..., :2]],
    ids=["none", "float", "flat", "two channels"],
)
def test_what_is_no_row_of_images_is_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a grid needs uint8"):
        image_grid(images)
