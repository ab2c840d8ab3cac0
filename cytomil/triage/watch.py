"""rank --watch: ranks a folder again whenever slides were added, changed or removed."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cytomil.bags.images import list_cell_files
from cytomil.errors import NotFoundError, SettingsError
from cytomil.progress import Listener
from cytomil.slides.resolution import companions_of
from cytomil.triage.apart import ReadingProcess
from cytomil.triage.config import RankConfig
from cytomil.triage.identities import pseudonymise
from cytomil.triage.rank import OnSlide, RankSession, require_names_shown_or_hidden
from cytomil.triage.sources import SlideEntry, discover
from cytomil.triage.worklist import SlideResult, Worklist

State = tuple[tuple[str, int, int], ...]
"""The path, size in bytes and time of change in ns of each file of a slide; -1 if unknown."""

_MAX_NAMES = 5


@dataclass(frozen=True)
class Look:
    """The slides in a folder at one moment, and the names of those that have not changed since the look before."""

    found: tuple[SlideEntry, ...]
    states: Mapping[str, State]
    settled: frozenset[str]

    @property
    def unsettled(self) -> set[str]:
        """The slides that are new, or that changed since the look before."""
        return self.states.keys() - self.settled


class WatchedFolder:
    """Looks at a folder of slides again and again. ``out`` is the folder of the worklist, which is not a slide."""

    def __init__(self, folder: Path, out: Path) -> None:
        self._folder, self._out = folder, out
        self._last: Mapping[str, State] = {}

    def look(self) -> Look:
        """Look once more. Raises `NotFoundError` if there is no such folder."""
        found, _ = discover(self._folder, self._out, may_be_empty=True)
        states = {one.real_name: state_of(one) for one in found}
        settled = frozenset(name for name, state in states.items() if self._last.get(name) == state)
        self._last = states
        return Look(tuple(found), states, settled)


def state_of(found: SlideEntry) -> State:
    """The state of all files of a slide, those beside it and in its folders included."""
    if found.path.is_dir():
        files = set(list_cell_files(found.path).files)
    else:
        files = {found.path, *found.parts}
        for companion in companions_of(found.path):
            files |= {companion, *companion.rglob("*")}
    return tuple((str(file), *_size_and_time(file)) for file in sorted(files))


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def watch(
    slide_dir: Path,
    settings: RankConfig,
    listener: Listener,
    on_slide: OnSlide | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> Generator[Worklist, None, None]:
    """Yield the worklist of ``slide_dir`` whenever its slides have changed, without end.

    The model, the engine and the reading process are loaded once. A slide is read when its files were the same at two
    looks, ``settings.watch_s`` seconds apart. Until then it is counted as unread, or keeps its former result. A look at an
    unchanged folder opens no slide. ``on_slide`` is as for `cytomil.triage.rank.rank`. ``wait`` sleeps for some seconds.

    Raises what `cytomil.triage.rank.rank` raises, but no error for a folder without slides. Raises `SettingsError` over Ray.
    """
    if settings.ray_address:
        raise SettingsError("--watch does not work over Ray. Leave out --ray-address.")
    require_names_shown_or_hidden(settings)
    folder = WatchedFolder(slide_dir, settings.out)
    look: Look | None = folder.look()
    last_note = ""
    with ReadingProcess() as process:
        followed = _FollowedWorklist(slide_dir, settings, RankSession(slide_dir, settings, listener, process), process)
        while True:
            worklist = followed.after(look, on_slide) if look else None
            if worklist is not None:
                yield worklist
            waits_for = _waits_for(look, settings.pseudonymise is not None)
            if worklist is not None or waits_for != last_note:
                listener.note(waits_for)
                last_note = waits_for
            wait(settings.watch_s)
            try:
                look = folder.look()
            except (NotFoundError, OSError):  # such as a network drive that is away for a while
                look = None


class _FollowedWorklist:
    """The worklist of a folder that changes, by ``session``. Only slides in a new state are read."""

    def __init__(self, slide_dir: Path, settings: RankConfig, session: RankSession, process: ReadingProcess) -> None:
        self._slide_dir, self._settings, self._session, self._process = slide_dir, settings, session, process
        self._results: dict[str, SlideResult] = {}
        self._states: dict[str, State] = {}
        self._n_waiting = 0

    def after(self, look: Look, on_slide: OnSlide | None) -> Worklist | None:
        """The worklist after a look at the folder; None if it is the same as before."""
        gone = self._results.keys() - look.states.keys()
        changed = [
            one for one in look.found if one.real_name in look.settled and self._is_new(one.real_name, look.states)
        ]
        n_waiting = len(look.unsettled - self._results.keys())
        if not (changed or gone or (self._results and n_waiting != self._n_waiting)):
            return None
        self._n_waiting = n_waiting
        for name in gone:
            del self._results[name], self._states[name]
        if changed:
            self._read(changed, look.states, on_slide)
        return self._session.worklist(list(self._results.values()), n_waiting)

    def _is_new(self, name: str, states: Mapping[str, State]) -> bool:
        return self._states.get(name) != states[name]

    def _read(self, found: Sequence[SlideEntry], states: Mapping[str, State], on_slide: OnSlide | None) -> None:
        names = {one.real_name for one in found}
        kept = [result for name, result in self._results.items() if name not in names]
        shown = found
        if self._settings.pseudonymise is not None:
            shown = pseudonymise(found, self._slide_dir, self._settings.pseudonymise, self._settings.out)
        for one in shown:
            self._process.forgive(one.path)
        results = self._session.assess(shown, kept, self._n_waiting, on_slide)
        for one, result in zip(shown, results, strict=True):
            self._results[one.real_name], self._states[one.real_name] = result, states[one.real_name]


def _waits_for(look: Look | None, is_hidden: bool) -> str:
    """One line that says what the command waits for; without names if they are hidden."""
    if look is None:
        return "The folder of slides cannot be read at present. Waiting for it; Ctrl-C ends."
    if not look.unsettled:
        return "Waiting for new slides; Ctrl-C ends."
    names = sorted(look.unsettled)
    which = f"{len(names)} slide{'s' * (len(names) != 1)}" if is_hidden or len(names) > _MAX_NAMES else ", ".join(names)
    return f"Waiting until copied completely: {which}; Ctrl-C ends."
