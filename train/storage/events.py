"""The TensorBoard event file of a run: each point of metrics.jsonl exactly once, even after an interruption."""

# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# tensorboardX builds its protobuf classes when it is imported, where no checker can see them.

import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import masked_crc32c

from train.storage.files import remove

PATTERN = "events.out.tfevents.*"


class EventFile:
    """An event file that replaces the event files of earlier processes of the same run.

    Points up to the checkpoint from which the run resumes are copied from metrics.jsonl and keep their original times.

    Args:
      folder: the workdir.
      lines: the lines of metrics.jsonl up to that checkpoint.
    """

    def __init__(self, folder: Path, lines: Iterable[Mapping[str, Any]]):
        earlier = sorted(folder.glob(PATTERN))
        times = _times(earlier)
        path = folder / PATTERN.replace("*", f"{time.time_ns() // 1000}.{socket.gethostname()}")  # sorts after them
        temporary = path.with_name(".events.tmp")
        self._file = temporary.open("wb")
        now = time.time()
        self._add(event_pb2.Event(wall_time=now, file_version="brain.Event:2"))
        # Tells a running TensorBoard to discard what it read from earlier files.
        self._add(event_pb2.Event(wall_time=now, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START)))
        last = min(times.values(), default=now)
        for line in lines:
            last = times.get((line["split"], line["step"]), last)
            self._add_line(last, line)
        self._file.flush()
        temporary.rename(path)
        for other in earlier:
            remove(other)

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Writes the numbers among `values` as split/name, and flushes them."""
        self._add_line(time.time(), {"step": step, "split": split, **values})
        self._file.flush()

    def _add_line(self, at: float, line: Mapping[str, Any]) -> None:
        points = summary_pb2.Summary()
        for name, value in line.items():
            if isinstance(value, (int, float)) and name != "step":
                points.MergeFrom(summary.scalar(f"{line['split']}/{name}", value))
        self._add(event_pb2.Event(wall_time=at, step=line["step"], summary=points))

    def _add(self, event: event_pb2.Event) -> None:
        payload = event.SerializeToString()
        size = struct.pack("<Q", len(payload))
        for part in (size, payload):  # a TFRecord
            self._file.write(part + struct.pack("<I", masked_crc32c(part)))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read(path: Path) -> Iterator[event_pb2.Event]:
    """Yields the complete events of a file; a killed process or a full disk may have truncated the last one."""
    with path.open("rb") as file:
        while len(head := file.read(12)) == 12:
            size, checksum = struct.unpack("<QI", head)
            if checksum != masked_crc32c(head[:8]):
                return
            payload, tail = file.read(size), file.read(4)
            if tail != struct.pack("<I", masked_crc32c(payload)):
                return
            yield event_pb2.Event.FromString(payload)


def _times(paths: Iterable[Path]) -> dict[tuple[str, int], float]:
    """Returns the time at which each point was written, by (split, step)."""
    times = {}
    for path in paths:
        for event in read(path):
            for value in event.summary.value:
                times[value.tag.split("/")[0], event.step] = event.wall_time
    return times
