"""One object that turns images into text: opens the images, renders the prompt, runs the engine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from PIL import Image

from atp_cpp._core import Engine, ModelInfo, Report
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
from atp_cpp.image_spec import ImageSpec
from atp_cpp.images import ImageSource, Pixels, load_image
from atp_cpp.model_files import atp_file, image_spec_of, model_files
from atp_cpp.preprocess import prepare
from atp_cpp.prompts import DEFAULT_PROMPT, ChatPrompt
from atp_cpp.views import View, as_tiles, views_of


@dataclass(frozen=True, slots=True)
class Caption:
    """What came out for one prompt.

    Attributes:
        text: the answer, white space at its ends dropped.
        finish_reason: "stop" (the model ended it), "length" (n_predict reached) or "cancelled".
        report: counts, times and bytes; see ``atp_cpp._core.Report``.
        plan: the cuts that were made, as layer counts.
        t_load: ms to open the images, and to prepare them if the projector's file says how.
        views: what each grid of the report shows of its image; empty where libmtmd prepared it.
    """

    text: str
    finish_reason: str
    report: Report
    plan: tuple[CutSpec, ...]
    t_load: float
    views: tuple[View, ...] = ()


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
        self._lock = threading.Lock()
        self._engine: Engine | None = Engine(
            str(self.model),
            str(self.mmproj),
            "" if self.atp is None else str(self.atp),
            n_gpu_layers=n_gpu_layers,
            n_ctx=n_ctx,
            n_ubatch=n_ubatch,
            n_threads=n_threads,
            flash_attn=flash_attn,
            type_k=type_k,
            type_v=type_v,
            self_test=self_test,
        )
        try:
            self._info = self._engine.info
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
            AtpError: the captioner is closed, or the prompt holds the media marker.
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
        prompt: str,
        *,
        plan: Sequence[CutSpec],
        sampling: SamplingConfig | None = None,
        on_token: Callable[[str], bool] | None = None,
        t_load: float = 0.0,
    ) -> Caption:
        """The part of :meth:`caption` after opening and planning.

        Args:
            pixels: uint8 [h, w, 3] each, as load_image returns them.
            prompt: the question.
            plan: settled cuts, as settle_plan returns them.
            sampling: see caption.
            on_token: see caption.
            t_load: ms to put into the result.
        """
        draw = sampling or SamplingConfig()
        text = self._prompt.render(prompt, len(pixels))
        spec, started = self._image_spec, time.perf_counter()
        prepared = [prepare(image, spec, n_images=len(pixels)) for image in pixels] if spec else []
        t_load += 1000 * (time.perf_counter() - started)
        with self._lock:
            if self._engine is None:
                raise AtpError("this Captioner is closed; make a new one")
            if uses_atp(plan):
                cuts = self._engine.atp_plan(plan[0].budget)
            else:
                cuts = resolve(plan, self._info.n_layer, self._info.legal_cuts)
            result = self._engine.generate(
                text,
                [as_tiles(image, spec) for image in prepared] if spec else pixels,
                plan=cuts,
                n_predict=draw.n_predict,
                temp=draw.temp,
                top_k=draw.top_k,
                top_p=draw.top_p,
                min_p=draw.min_p,
                seed=draw.seed,
                stop=list(draw.stop),
                on_token=on_token,
            )
        return Caption(
            text=result.text.strip(),
            finish_reason=result.finish_reason,
            report=result.report,
            plan=tuple(plan),
            t_load=t_load,
            views=views_of(prepared, spec, result.report) if spec else (),
        )

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
