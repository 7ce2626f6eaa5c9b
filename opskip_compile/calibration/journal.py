"""What was measured or answered so far, one JSON line each, so that interrupted work goes on where it stopped.

A line is written whole and flushed before the next measurement starts; a torn last line is dropped when the file is
read again. A search is deterministic, so with the same measurements it takes the same way. Several processes share the
items; each writes a file of its own, and any number of processes goes on with all of them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from opskip_compile.calibration import processes
from opskip_compile.errors import OpSkipError


class Journal:
    """Results by key and item, in memory and, with a path, in a file.

    Args:
        path: where to keep them; None keeps them in memory only.
        about: what they depend on, by field. A file that was written about anything else is refused.
        part: number of the process that writes, each to a file of its own; all of them are read, and with
            ``torch.distributed`` every process starts with what any of them has read.

    Raises:
        OpSkipError: the file can't be read or written, is no journal, or is about something else (names the field).
    """

    def __init__(self, path: str | os.PathLike[str] | None, about: Mapping[str, Any], part: int = 0) -> None:
        self._known: dict[tuple[str, int], Any] = {}
        self._file: IO[str] | None = None
        if path is None:
            return
        target = Path(path) if part == 0 else Path(f"{os.fspath(path)}.{part}")
        try:
            for file in _parts(Path(path)):
                self._read(file, about)
            # Also a barrier: nobody writes before everybody has read, so all know the same and share work alike.
            for known in processes.from_others(self._known):
                self._known.update(known)
            _cut_torn_line(target)
            self._file = open(target, "a", encoding="utf-8")  # noqa: SIM115 - stays open until `close`
            if target.stat().st_size == 0:
                self._write({"about": dict(about)})
        except OSError as error:
            raise OpSkipError(f"resume: {os.fspath(path)!r}: {error.strerror or error}") from error

    def get(self, key: str, item: int) -> Any:
        """What was put, or None."""
        return self._known.get((key, item))

    def put(self, key: str, item: int, value: Any) -> None:
        """Keep a JSON value."""
        self._known[key, item] = value
        if self._file is not None:
            self._write({"key": key, "item": item, "value": value})

    def share(
        self,
        items: Sequence[int],
        work: Callable[[int], Iterable[tuple[str, Any]]],
        names: Callable[[int], Sequence[str]],
        step: Callable[[int, int], None],
    ) -> None:
        """Work on items, each process on its own ones; then all of them know what came of it.

        Args:
            items: of which something is missing; the same ones in all processes, since these know the same.
            work: keys and JSON values that come of an item, kept one by one.
            names: what the samples of an item are called in messages.
            step: called with the items that this process has done, and how many it has.

        Raises:
            OpSkipError: another process has failed (says with what) or has ended.
        """
        mine = processes.items_of_this_process(items)
        new: list[tuple[str, int, Any]] = []
        for done, i in enumerate(mine):
            step(done, len(mine))
            try:
                for key, value in work(i):
                    self.put(key, i, value)
                    new.append((key, i, value))
            except OpSkipError:
                raise  # it has the name already
            except Exception as error:
                error.add_note(f"it happened with {', '.join(names(i))}")
                raise
        for theirs in processes.from_others(new) if items else ():
            for entry in theirs:
                self.put(*entry)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, value: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(value) + "\n")
        self._file.flush()

    def _read(self, path: Path, about: Mapping[str, Any]) -> None:
        lines = path.read_bytes().split(b"\n")[:-1]  # what stands behind the last line end was torn
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                if number == 1:
                    written = entry["about"]
                else:
                    self._known[entry["key"], entry["item"]] = entry["value"]
                    continue
            except (ValueError, KeyError, TypeError) as error:
                raise OpSkipError(f"resume: {str(path)!r}, line {number}: not written by this package") from error
            plain = json.loads(json.dumps(dict(about)))
            for field in sorted({*plain, *written}):
                if plain.get(field) != written.get(field):
                    raise OpSkipError(
                        f"resume: {str(path)!r} was written with {field} {written.get(field)!r}, "
                        f"this run has {plain.get(field)!r}; use another file"
                    )


def _parts(path: Path) -> Iterator[Path]:
    """The files of all processes that have written: of that path, and with a number behind it."""
    for file in sorted(path.parent.iterdir()) if path.parent.is_dir() else ():
        if re.fullmatch(re.escape(path.name) + r"(\.\d+)?", file.name):
            yield file


def _cut_torn_line(path: Path) -> None:
    """Cut a torn last line off."""
    if path.exists():
        raw = path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        if whole != len(raw):
            os.truncate(path, whole)
