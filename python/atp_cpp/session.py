"""A loaded model: engine, files, rule for images, prompt, plan, and the lock for calls.

:class:`~atp_cpp.captioner.Captioner` is a session with the methods for users. The packages that
make captions (``batch``, ``chat``) take a session and know no Captioner.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, TypeVar

from atp_cpp._core import Cut, Engine, ModelInfo
from atp_cpp.batch.run_key import config_hash, file_fingerprint
from atp_cpp.caption import Caption
from atp_cpp.errors import AtpError, ModelError, PlanError
from atp_cpp.images.load import Pixels
from atp_cpp.images.prepare import prepare
from atp_cpp.images.spec import ImageSpec
from atp_cpp.images.views import as_tiles, views_of
from atp_cpp.models.files import ModelFiles, image_spec_of, note_pair
from atp_cpp.options.load import LoadOptions
from atp_cpp.options.plan import (
    ATP,
    Budget,
    CutSpec,
    PolicyLike,
    SamplingConfig,
    parse_plan,
    resolve,
    settle,
    uses_atp,
)
from atp_cpp.prompts.prompt import ChatPrompt, Turn
from atp_cpp.storage.forked import renew_in_children

__all__ = ["Parts", "Session", "first_plan"]

Self = TypeVar("Self", bound="Session")

_BUSY = "this Captioner has a caption_many open; read its rows to the end, or close it"


@dataclass(frozen=True, slots=True)
class Parts:
    """The functions that a session calls. A test passes others, such as an engine without a model.

    Attributes:
        engine: makes the engine; called like the class Engine.
        image_spec_of: path of a projector -> how its images are prepared, or None.
        fingerprint: path of a model file -> a text that changes with the content of the file.
        note_pair: warns when a model and a projector do not belong together.
    """

    engine: Callable[..., Engine] = Engine
    image_spec_of: Callable[[Path], ImageSpec | None] = image_spec_of
    fingerprint: Callable[[str | os.PathLike[str]], str] = file_fingerprint
    note_pair: Callable[[Path, Path], None] = note_pair


def first_plan(policy: PolicyLike, budget: Budget | None, atp: Path | None) -> tuple[CutSpec, ...]:
    """The cuts that the user asked for; if none: atp where there is a sidecar.

    Raises:
        PlanError: the policy cannot be read, or atp is asked for without a sidecar.
    """
    plan = parse_plan(policy, budget=budget)
    if policy is None and budget is None and atp is not None:
        plan = (CutSpec(0, ATP),)
    if uses_atp(plan) and atp is None:
        settle(plan, 1, ())  # raises, before a model is loaded
    return plan


class Session:
    """A loaded model and its vision projector. Calls from several threads wait for each other.

    Use it as a context manager, or call :meth:`close`.

    Args:
        files: the files to load.
        plan: the cuts of calls that name no cuts, not settled yet.
        options: how to load the model.
        parts: the functions that the session calls; the parts of the class if not given.

    Raises:
        ModelError: a file cannot be used, the model has no vision, or the sidecar was trained for
            another model.
        PlanError: this model cannot run the cuts.
    """

    parts: ClassVar[Parts] = Parts()

    def __init__(
        self,
        files: ModelFiles,
        plan: Sequence[CutSpec] = (),
        options: LoadOptions | None = None,
        *,
        parts: Parts | None = None,
    ) -> None:
        options = options or LoadOptions()
        parts = parts or type(self).parts
        self.files = files
        self._rounding = options.rounding()
        self._fingerprint = parts.fingerprint
        self.renew_locks()
        renew_in_children(self)
        self._batch = threading.Lock()  # held while a batch is open
        # before the engine: libmtmd ends the process on some files that this refuses
        self._image_spec = parts.image_spec_of(files.mmproj)
        self._engine: Engine | None = parts.engine(
            str(files.model),
            str(files.mmproj),
            "" if files.atp is None else str(files.atp),
            **options.engine_options(),
        )
        try:
            self._info = self._engine.info
            on_device = any(device != "CPU" for device in self._info.devices)
            self._overlaps = on_device or options.n_threads_encode > 0
            if not self._info.has_vision:
                raise ModelError(
                    f"{files.mmproj}: holds no vision encoder; give the mmproj file of "
                    f"{files.model}"
                )
            parts.note_pair(files.model, files.mmproj)
            self._plan = self.settle_plan(plan)
            self._prompt = ChatPrompt.for_model(self._info)
        except BaseException:
            self.close()
            raise

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def model(self) -> Path:
        """GGUF of the text model."""
        return self.files.model

    @property
    def mmproj(self) -> Path:
        """GGUF of the vision projector."""
        return self.files.mmproj

    @property
    def atp(self) -> Path | None:
        """GGUF of the ATP sidecar; None without a sidecar."""
        return self.files.atp

    @property
    def info(self) -> ModelInfo:
        """Facts about the model; they stay readable after close()."""
        return self._info

    @property
    def image_spec(self) -> ImageSpec | None:
        """How images are prepared, if the projector's file says so; None: libmtmd decides."""
        return self._image_spec

    @property
    def plan(self) -> tuple[CutSpec, ...]:
        """The cuts of calls that name no cuts, as layer counts in order of depth."""
        return self._plan

    @property
    def overlaps(self) -> bool:
        """Whether the vision encoder and the decoder use different cores or devices."""
        return self._overlaps

    def renew_locks(self) -> None:
        """Makes new locks in a forked child. The engine checks whether the child can use it."""
        self._lock = threading.Lock()  # one call of the engine at a time

    def close(self) -> None:
        """Frees model, projector and caches. Calling it again does nothing."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = None

    def plan_of(self, policy: PolicyLike) -> tuple[CutSpec, ...]:
        """The cuts that a call names, settled; the session's if it names none.

        Raises:
            PlanError: the policy cannot be read, or this model cannot run the cuts.
        """
        return self._plan if policy is None else self.settle_plan(parse_plan(policy))

    def settle_plan(self, plan: Sequence[CutSpec]) -> tuple[CutSpec, ...]:
        """The plan with layer counts for this model; PlanError if the model cannot run the plan."""
        info = self._info
        settled = settle(plan, info.n_layer, info.legal_cuts, info.atp_cuts)
        if settled and not self._info.can_prune:
            raise PlanError(
                f"{self.model.name} ({self._info.arch}) cannot be pruned: {self._info.why_not}; "
                "policy none runs it whole"
            )
        if uses_atp(settled) and self._engine is not None:
            self._engine.atp_plan(settled[0].budget)  # PlanError for a budget that is too small
        return settled

    def caption_pixels(
        self,
        pixels: Sequence[Pixels],
        prompt: str | Sequence[Turn],
        *,
        plan: Sequence[CutSpec],
        sampling: SamplingConfig | None = None,
        on_token: Callable[[str], bool] | None = None,
        t_load: float = 0.0,
    ) -> Caption:
        """One caption: the part of ``Captioner.caption`` after opening and planning.

        Args:
            pixels: uint8 [h, w, 3] each, as load_image returns them.
            prompt: the question, or a conversation with the places of its images.
            plan: settled cuts, as settle_plan returns them.
            sampling: how tokens are drawn.
            on_token: a function that gets each new piece of text; if it returns False, the caption
                ends there.
            t_load: value for Caption.t_load, in ms.
        """
        draw = sampling or SamplingConfig()
        text = self.render(prompt, len(pixels))
        spec, started = self._image_spec, time.perf_counter()
        prepared = [prepare(image, spec, n_images=len(pixels)) for image in pixels] if spec else []
        t_load += 1000 * (time.perf_counter() - started)
        with self._lock:
            engine = self._opened()
            if self._batch.locked():
                raise AtpError(_BUSY)
            result = engine.generate(
                text,
                [as_tiles(image, spec) for image in prepared] if spec else pixels,
                plan=self._cuts(engine, plan),
                on_token=on_token,
                **draw.engine_options(),
            )
        return Caption(
            text=result.text.strip(),
            finish_reason=result.finish_reason,
            report=result.report,
            plan=tuple(plan),
            t_load=t_load,
            views=views_of(prepared, spec, result.report) if spec else (),
        )

    def config_hash(
        self, *, plan: Sequence[CutSpec] | None = None, sampling: SamplingConfig | None = None
    ) -> str:
        """A hash of everything that can change a caption, as 16 hex digits.

        A run reuses the rows of an earlier run only if they have the same hash.

        Raises:
            ModelError: a model file cannot be read any more.
        """
        return config_hash(
            model=self.model,
            mmproj=self.mmproj,
            atp=self.atp,
            plan=self._plan if plan is None else plan,
            sampling=sampling or SamplingConfig(),
            fingerprint=self._fingerprint,
            **self._rounding,
        )

    def mmproj_fingerprint(self) -> str:
        """A text that changes with the content of the projector's file.

        Raises:
            ModelError: the file cannot be read any more.
        """
        return self._fingerprint(self.mmproj)

    @contextmanager
    def open_batch(self, plan: Sequence[CutSpec]) -> Iterator[Engine]:
        """The engine for one run of :mod:`atp_cpp.batch`, with the plan set; one run at a time.

        Raises:
            AtpError: another run is open, or the session is closed.
        """
        if not self._batch.acquire(blocking=False):
            raise AtpError(_BUSY)
        try:
            with self._lock:
                engine = self._opened()
                engine.set_plan(self._cuts(engine, plan))
            yield engine
        finally:
            self._batch.release()

    def check_open(self) -> None:
        """Raises AtpError if the session is closed."""
        self._opened()

    def render(self, prompt: str | Sequence[Turn], n_images: int = 1) -> str:
        """The prompt as the model's chat template has it; see ChatPrompt."""
        if isinstance(prompt, str):
            return self._prompt.render(prompt, n_images)
        turns = list(prompt or ()) if isinstance(prompt, Sequence) else [prompt]
        said = [turn for turn in turns if isinstance(turn, Turn)]
        if len(said) < len(turns):
            raise AtpError("prompt: expected one text; caption_many takes several prompts")
        return self._prompt.render_chat(said)

    def _opened(self) -> Engine:
        if self._engine is None:
            raise AtpError("this Captioner is closed; make a new one")
        return self._engine

    def _cuts(self, engine: Engine, plan: Sequence[CutSpec]) -> list[Cut]:
        """A settled plan as the engine takes it."""
        if uses_atp(plan):
            return engine.atp_plan(plan[0].budget)
        return resolve(plan, self._info.n_layer, self._info.legal_cuts)
