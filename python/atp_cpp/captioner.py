"""One object that turns images into text: opens the images, renders the prompt, runs the engine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from atp_cpp import chat, hub_files
from atp_cpp._core import Cut, Engine, ModelInfo
from atp_cpp.batch.config_hash import config_hash
from atp_cpp.caption import Caption
from atp_cpp.config import (
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
from atp_cpp.errors import AtpError, ImageError, ModelError, PlanError
from atp_cpp.forked import renew_in_children
from atp_cpp.image_spec import ImageSpec
from atp_cpp.images import ImageSource, Pixels, load_image
from atp_cpp.model_files import atp_file, image_spec_of, model_files
from atp_cpp.preprocess import prepare
from atp_cpp.prompts import DEFAULT_PROMPT, ChatPrompt, Turn
from atp_cpp.views import as_tiles, views_of

if TYPE_CHECKING:
    from atp_cpp.batch.embeddings import EmbeddingCache
    from atp_cpp.batch.item import Item
    from atp_cpp.batch.pipeline import CaptionRun, OnError


_BUSY = "this Captioner has a caption_many open; read its rows to the end, or close it"


class Captioner:
    """A loaded model and its vision projector, for as many captions as wanted.

    Use it as a context manager, or call :meth:`close`. Calls from several threads wait for each
    other.

    Args:
        model: GGUF of the text model; None for the built-in demo model.
        mmproj: GGUF of its vision projector; belongs to ``model``.
        atp: GGUF of its ATP sidecar, the thresholds trained for ``model``; the demo model has its
            own.
        policy: cuts and who chooses there, as text ("fastv:keep=0.25,after=2", "atp", "none"),
            CutSpec, or several of these. None: atp if there is a sidecar, else nothing is dropped.
        budget: of atp: image tokens in the mean over layers, as a fraction (float in (0, 1]) or a
            count (int). None: the learned thresholds alone decide.
        n_gpu_layers: layers on the accelerator; -1 for all, 0 for none.
        n_ctx: positions a prompt and its answer may take together.
        n_ubatch: rows computed at once.
        n_threads: CPU threads; 0 lets the engine choose.
        n_threads_encode: more threads, for the vision encoder, so that in a batch it works beside
            the decoder; 0: it has n_threads and they take turns.
        flash_attn: "auto", "on" or "off".
        type_k: element type of the key cache, "f16", "f32", "q8_0" …
        type_v: element type of the value cache.
        self_test: compare the staged decoder with plain llama.cpp at load.

    Raises:
        ModelError: a file that cannot be used, a model without vision, or a sidecar of another one.
        PlanError: cuts that this model cannot run; atp or a budget without a sidecar.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        mmproj: str | os.PathLike[str] | None = None,
        atp: str | os.PathLike[str] | None = None,
        policy: PolicyLike = None,
        budget: Budget | None = None,
        n_gpu_layers: int = -1,
        n_ctx: int = 4096,
        n_ubatch: int = 512,
        n_threads: int = 0,
        n_threads_encode: int = 0,
        flash_attn: str = "auto",
        type_k: str = "f16",
        type_v: str = "f16",
        self_test: bool = True,
    ) -> None:
        plan = parse_plan(policy, budget=budget)
        self.model, self.mmproj = model_files(model, mmproj)
        self.atp = atp_file(model, atp)
        if policy is None and budget is None and self.atp is not None:
            plan = (CutSpec(0, ATP),)
        if uses_atp(plan) and self.atp is None:
            settle(plan, 1, ())  # says so, before a model is loaded
        self._rounding = {"flash_attn": flash_attn, "type_k": type_k, "type_v": type_v}
        self.renew_locks()
        renew_in_children(self)
        self._batch = threading.Lock()  # held while a batch is open
        self._engine: Engine | None = Engine(
            str(self.model),
            str(self.mmproj),
            "" if self.atp is None else str(self.atp),
            n_gpu_layers=n_gpu_layers,
            n_ctx=n_ctx,
            n_ubatch=n_ubatch,
            n_threads=n_threads,
            n_threads_encode=n_threads_encode,
            flash_attn=flash_attn,
            type_k=type_k,
            type_v=type_v,
            self_test=self_test,
        )
        try:
            self._info = self._engine.info
            on_device = any(device != "CPU" for device in self._info.devices)
            self._overlaps = on_device or n_threads_encode > 0
            if not self._info.has_vision:
                raise ModelError(
                    f"{self.mmproj}: holds no vision encoder; give the mmproj file of {self.model}"
                )
            self._image_spec = image_spec_of(self.mmproj)
            self._plan = self.settle_plan(plan)
            self._prompt = ChatPrompt.for_model(self._info)
        except BaseException:
            self.close()
            raise

    def renew_locks(self) -> None:
        """For a forked child. The engine itself tells whether it can be used there."""
        self._lock = threading.Lock()  # one call of the engine at a time

    create_chat_completion = chat.create_chat_completion
    from_pretrained = classmethod(hub_files.from_pretrained)

    def __enter__(self) -> Captioner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def info(self) -> ModelInfo:
        """What the model is; stays readable after close()."""
        return self._info

    @property
    def image_spec(self) -> ImageSpec | None:
        """How images are prepared, if the projector's file says so; None: libmtmd decides."""
        return self._image_spec

    @property
    def plan(self) -> tuple[CutSpec, ...]:
        """The cuts made unless a call names others, as layer counts in order of depth."""
        return self._plan

    def close(self) -> None:
        """Frees model, projector and caches. Calling it again does nothing."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = None

    def caption(
        self,
        image: ImageSource | Sequence[ImageSource],
        prompt: str = DEFAULT_PROMPT,
        *,
        policy: PolicyLike = None,
        sampling: SamplingConfig | None = None,
        on_token: Callable[[str], bool] | None = None,
    ) -> Caption:
        """Answers a prompt about one image, or about several at once.

        Args:
            image: path, encoded bytes, Pillow image or uint8 [h, w, 3]; or a list of these, all
                seen in one prompt.
            prompt: the question.
            policy: cuts for this call instead of the captioner's; "none" to prune nothing.
            sampling: how to draw; greedy, at most 128 tokens, if not given.
            on_token: called with each new piece of text; returning False ends the caption there.

        Raises:
            ImageError: an image that cannot be opened.
            PlanError: cuts that this model cannot run.
            StageError: for instance a context too small for the prompt.
            AtpError: the captioner is closed or has a caption_many open, or the prompt holds the
                media marker.
            KeyboardInterrupt: Ctrl-C, within one decode step.
        """
        plan = self._plan if policy is None else self.settle_plan(parse_plan(policy))
        started = time.perf_counter()
        pixels = [load_image(source) for source in _as_list(image)]
        t_load = 1000 * (time.perf_counter() - started)
        return self.caption_pixels(
            pixels, prompt, plan=plan, sampling=sampling, on_token=on_token, t_load=t_load
        )

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
        """The part of :meth:`caption` after opening and planning.

        Args:
            pixels: uint8 [h, w, 3] each, as load_image returns them.
            prompt: the question, or a conversation with its images' places.
            plan: settled cuts, as settle_plan returns them.
            sampling: see caption.
            on_token: see caption.
            t_load: ms to put into the result.
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

    def caption_many(
        self,
        images: Iterable[ImageSource | Item],
        prompt: str | Sequence[str] = DEFAULT_PROMPT,
        *,
        batch_size: int = 16,
        ordered: bool = True,
        policy: PolicyLike = None,
        sampling: SamplingConfig | None = None,
        kv_budget: int | str | None = None,
        embeddings: str | os.PathLike[str] | EmbeddingCache | None = None,
        n_load_threads: int | None = None,
        overlap: bool | None = None,
        on_error: OnError = "record",
    ) -> CaptionRun:
        """Answers one prompt, or several, about each of many images, as many at once as told.

        Nothing is done before the first row is asked for, and only a few images beyond the rows
        asked for are opened: `images` may be endless. No other caption can be made by this
        Captioner until all rows were given or the run was closed.

        Args:
            images: paths, bytes, Pillow images, arrays, or Items, which bring their own prompts.
            prompt: the question, or several; then there is a row for each.
            batch_size: captions under way at once.
            ordered: rows in the order of the images; else as they end.
            policy: see caption.
            sampling: see caption; each caption is drawn as if it were alone.
            kv_budget: bytes that all caches may take together, or a text such as "2G"; half of the
                free memory if not given. Fewer captions run at once where it is too small.
            embeddings: folder that keeps encoded images between runs.
            n_load_threads: threads that open images; one for each CPU core up to 4 if not given.
            overlap: encode in a thread while the decoder works; if not given, only where they do
                not want the same cores: on an accelerator, or with n_threads_encode.
            on_error: "record": a row of status "error" for whatever fails. "stop": the first such
                row ends the run; captions under way are ended before.

        Returns:
            An iterator over Rows, with close() and stop().

        Raises:
            AtpError: an argument that cannot be. The run itself raises what `images` raises, after
                the rows under way.
            PlanError: cuts that this model cannot run.
        """
        from atp_cpp.batch.many import start_run

        return start_run(
            self,
            images,
            prompt,
            plan=self._plan if policy is None else self.settle_plan(parse_plan(policy)),
            sampling=sampling or SamplingConfig(),
            batch_size=batch_size,
            ordered=ordered,
            kv_budget=kv_budget,
            embeddings=embeddings,
            n_load_threads=n_load_threads,
            overlap=self._overlaps if overlap is None else overlap,
            on_error=on_error,
        )

    def config_hash(
        self, *, plan: Sequence[CutSpec] | None = None, sampling: SamplingConfig | None = None
    ) -> str:
        """16 hex digits that change with whatever changes captions: rows with others are not done.

        Raises:
            ModelError: a model file that cannot be read any more.
        """
        return config_hash(
            model=self.model,
            mmproj=self.mmproj,
            atp=self.atp,
            plan=self._plan if plan is None else plan,
            sampling=sampling or SamplingConfig(),
            **self._rounding,
        )

    @contextmanager
    def open_batch(self, plan: Sequence[CutSpec]) -> Iterator[Engine]:
        """The engine for one run of :mod:`atp_cpp.batch`, with the plan set; one at a time.

        Raises:
            AtpError: another run is open, or the captioner is closed.
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
        """Raises AtpError if the captioner is closed."""
        self._opened()

    def render(self, prompt: str | Sequence[Turn], n_images: int = 1) -> str:
        """The prompt as the model's chat template has it; see ChatPrompt."""
        if isinstance(prompt, str):
            return self._prompt.render(prompt, n_images)
        return self._prompt.render_chat(prompt)

    def _opened(self) -> Engine:
        if self._engine is None:
            raise AtpError("this Captioner is closed; make a new one")
        return self._engine

    def _cuts(self, engine: Engine, plan: Sequence[CutSpec]) -> list[Cut]:
        """A settled plan as the engine takes it."""
        if uses_atp(plan):
            return engine.atp_plan(plan[0].budget)
        return resolve(plan, self._info.n_layer, self._info.legal_cuts)

    def settle_plan(self, plan: Sequence[CutSpec]) -> tuple[CutSpec, ...]:
        """The plan with layer counts for this model; PlanError if it cannot be run."""
        info = self._info
        settled = settle(plan, info.n_layer, info.legal_cuts, info.atp_cuts)
        if settled and not self._info.can_prune:
            raise PlanError(
                f"{self.model.name} ({self._info.arch}) cannot be pruned: {self._info.why_not}; "
                "policy none runs it whole"
            )
        if uses_atp(settled) and self._engine is not None:
            self._engine.atp_plan(settled[0].budget)  # PlanError if it can never be met
        return settled


def _as_list(image: ImageSource | Sequence[ImageSource]) -> list[ImageSource]:
    if isinstance(image, (str, os.PathLike, bytes, Image.Image, np.ndarray)):
        return [image]
    images = list(image)
    if not images:
        raise ImageError("expected at least one image, got an empty list")
    return images
