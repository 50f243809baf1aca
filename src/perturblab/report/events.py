"""TensorBoard event files as bytes, a pure function of what they show: an export repeated after a kill gives the same.

Made of TensorBoard's own messages: ``torch.utils.tensorboard`` puts the clock and the host's name into them.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# 0.16 s, of it 0.02 s for the messages and 0.04 s for numpy. At the top, for only runs import this module, no --help.
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

Hparam = float | str | int | bool

MID_GREY = 128
PREFIX = "events.out.tfevents.0.perturblab-"  # TensorBoard reads any file with "tfevents" in its name
CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # colour type in a PNG header -> channels of the decoded image
EXACT = 2**53  # every whole number up to here is a double


@dataclass(frozen=True)
class Event:
    """What one run shows at one step: tag -> number, PNG bytes, markdown. Tags with equal words before "/" are a group.

    ``seconds`` is the wall time, since 1970. Numbers may be NaN or infinite; they are kept as float32.
    """

    step: int
    seconds: float
    scalars: Mapping[str, float]
    images: Mapping[str, bytes] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)


def file_name(run_id: str) -> str:
    """A name that TensorBoard reads and that tells whose file it is. ValueError if the id is empty or has a "/"."""
    if not run_id or "/" in run_id:
        raise ValueError(f"not a run's id: {run_id!r}")
    return PREFIX + run_id


def run_id_of(path: Path) -> str | None:
    """The id in a name made by ``file_name``; None for event files of other programs."""
    found = re.fullmatch(re.escape(PREFIX) + "(.+)", path.name)
    return found[1] if found else None


def event_file(events: Iterable[Event], hparams: Mapping[str, Hparam], metrics: Mapping[str, float]) -> bytes:
    """An event file of one run: its hyperparameters, its ``events`` in order, and its ``metrics`` at the last step.

    In the HPARAMS tab the run is one row, with a column per hyperparameter and per metric. TensorBoard takes the
    columns from one of the runs that it shows: runs to be compared need the same ones. ValueError if an image is
    not a PNG. Takes 1 s per 12 MB, for TensorBoard computes checksums in Python.
    """
    told = list(events)
    first, last = (told[0], told[-1]) if told else (Event(0, 0.0, {}), Event(0, 0.0, {}))
    out = io.BytesIO()
    records = RecordWriter(out)

    def write(at: Event, **what: Any) -> None:
        records.write(event_pb2.Event(step=at.step, wall_time=at.seconds, **what).SerializeToString())

    start = Event(0, first.seconds, {})
    write(start, file_version="brain.Event:2")
    write(start, summary=_summary(_start_of_session(hparams, metrics, first.seconds)))
    for event in told:
        if event.scalars or event.images or event.texts:
            write(event, summary=_summary(_values(event)))
    if metrics:
        write(last, summary=_summary(_scalars(metrics)))
    write(last, summary=_summary(_end_of_session(last.seconds)))
    return out.getvalue()


def image_grid(images: NDArray[np.uint8], columns: int = 8, scale: int = 4, gap: int = 1) -> bytes:
    """A PNG of ``images`` uint8 ``[n h w]`` or ``[n h w 3]``, in rows of ``columns``, from left to right.

    ``scale``: how many pixels a pixel becomes across and down, sharp-edged; ``gap``: mid-grey pixels, before
    enlargement, around each image. ValueError for another shape or dtype, or no image.
    """
    grey = images.ndim == 3
    if (
        images.dtype != np.uint8
        or not images.size
        or not (grey or (images.ndim == 4 and images.shape[3] == 3))
    ):
        raise ValueError(f"a grid needs uint8 [n h w] or [n h w 3], not {images.dtype} {list(images.shape)}")
    n, height, width = images.shape[:3]
    across = min(n, columns)
    down = -(-n // across)
    size = (gap + down * (height + gap), gap + across * (width + gap))
    grid = np.full((*size, *images.shape[3:]), MID_GREY, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // across * (height + gap), gap + i % across * (width + gap)
        grid[top : top + height, left : left + width] = image
    out = io.BytesIO()
    Image.fromarray(grid.repeat(scale, axis=0).repeat(scale, axis=1)).save(out, format="PNG")
    return out.getvalue()


def _summary(values: Sequence[summary_pb2.Summary.Value]) -> summary_pb2.Summary:
    return summary_pb2.Summary(value=values)


def _values(event: Event) -> list[summary_pb2.Summary.Value]:
    images = [summary_pb2.Summary.Value(tag=tag, image=_image(tag, png)) for tag, png in event.images.items()]
    texts = [_text(tag, text) for tag, text in event.texts.items()]
    return [*_scalars(event.scalars), *images, *texts]


def _scalars(scalars: Mapping[str, float]) -> list[summary_pb2.Summary.Value]:
    return [summary_pb2.Summary.Value(tag=tag, simple_value=float(v)) for tag, v in scalars.items()]


def _image(tag: str, png: bytes) -> summary_pb2.Summary.Image:
    """Size and channels are in the header of a PNG, at fixed places."""
    if not png.startswith(b"\x89PNG\r\n\x1a\n") or len(png) < 26:
        raise ValueError(f"{tag}: not a PNG")
    return summary_pb2.Summary.Image(
        width=int.from_bytes(png[16:20], "big"),
        height=int.from_bytes(png[20:24], "big"),
        colorspace=CHANNELS[png[25]],
        encoded_image_string=png,
    )


def _text(tag: str, text: str) -> summary_pb2.Summary.Value:
    """A scalar string: TensorBoard shows one in an array as a table."""
    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
    about = summary_pb2.SummaryMetadata(plugin_data=plugin, data_class=summary_pb2.DATA_CLASS_TENSOR)
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[text.encode()])
    tensor.tensor_shape.SetInParent()
    return summary_pb2.Summary.Value(tag=tag, metadata=about, tensor=tensor)


# ---- the HPARAMS tab -----------------------------------------------------------------------------------------------


def _start_of_session(
    hparams: Mapping[str, Hparam], metrics: Mapping[str, float], seconds: float
) -> list[summary_pb2.Summary.Value]:
    shown = {name: _cell(value) for name, value in hparams.items()}
    experiment = api_pb2.Experiment(
        time_created_secs=seconds,
        hparam_infos=[api_pb2.HParamInfo(name=name, type=_kind(value)) for name, value in shown.items()],
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics],
    )
    session = plugin_data_pb2.SessionStartInfo(start_time_secs=seconds)
    for name, value in shown.items():
        member = {bool: "bool_value", float: "number_value", str: "string_value"}[type(value)]
        setattr(session.hparams[name], member, value)
    return [
        _plugin_data(metadata.EXPERIMENT_TAG, experiment=experiment),
        _plugin_data(metadata.SESSION_START_INFO_TAG, session_start_info=session),
    ]


def _end_of_session(seconds: float) -> list[summary_pb2.Summary.Value]:
    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=seconds)
    return [_plugin_data(metadata.SESSION_END_INFO_TAG, session_end_info=end)]


def _plugin_data(tag: str, **content: Any) -> summary_pb2.Summary.Value:
    data = plugin_data_pb2.HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **content)
    plugin = summary_pb2.SummaryMetadata.PluginData(
        plugin_name=metadata.PLUGIN_NAME,
        # A map: without this its order differs from process to process, as in TensorBoard's own functions.
        content=data.SerializeToString(deterministic=True),
    )
    about = summary_pb2.SummaryMetadata(plugin_data=plugin, data_class=summary_pb2.DATA_CLASS_TENSOR)
    return summary_pb2.Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)


def _cell(value: Hparam) -> bool | float | str:
    """A number as text where the table cannot show it: it holds doubles, and leaves out those that are not finite."""
    if isinstance(value, bool | str):
        return value
    kept = abs(value) <= EXACT if isinstance(value, int) else math.isfinite(value)
    return float(value) if kept else str(value)


def _kind(value: bool | float | str) -> Any:
    kinds = {bool: api_pb2.DATA_TYPE_BOOL, float: api_pb2.DATA_TYPE_FLOAT64, str: api_pb2.DATA_TYPE_STRING}
    return kinds[type(value)]
