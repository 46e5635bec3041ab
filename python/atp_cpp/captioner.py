"""The class that users call: one object that turns images into text.

A Captioner is a :class:`~atp_cpp.session.Session`, the loaded model, with the methods for users.
Each method checks its arguments and calls the module that does the work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from atp_cpp.batch.run.embeddings import EmbeddingCache
from atp_cpp.batch.run.many import start_run
from atp_cpp.batch.run.pipeline import CaptionRun, OnError
from atp_cpp.batch.source.item import Item
from atp_cpp.caption import Caption
from atp_cpp.chat.completion import ChatSession
from atp_cpp.errors import ImageError
from atp_cpp.hub.gguf_files import hub_files
from atp_cpp.images.load import ImageSource, is_open_file, load_image
from atp_cpp.models.files import ModelFiles
from atp_cpp.options.load import LoadOptions
from atp_cpp.options.plan import Budget, PolicyLike, SamplingConfig
from atp_cpp.prompts.prompt import DEFAULT_PROMPT
from atp_cpp.session import first_plan


class Captioner(ChatSession):
    """A loaded model and its vision projector, for any number of captions.

    Use a Captioner as a context manager, or call :meth:`close`. Calls from several threads wait for
    each other.

    Args:
        model: GGUF of the text model; None for the built-in demo model.
        mmproj: GGUF of the vision projector that belongs to ``model``.
        atp: GGUF of the ATP sidecar, which holds the thresholds trained for ``model``. The demo
            model has its own sidecar.
        policy: the cuts and the policy at each cut, as text ("fastv:keep=0.25,after=2", "atp",
            "none"), as a CutSpec, or as several of these. None: atp if there is a sidecar, else
            nothing is dropped.
        budget: of the policy atp: the mean of the image tokens over the layers, as a fraction
            (float in (0, 1]) or a count (int). None: the learned thresholds alone decide.
        n_gpu_layers: layers on the accelerator; -1 for all, 0 for none.
        n_ctx: positions that a prompt and its answer may take together.
        n_ubatch: rows computed at once.
        n_threads: CPU threads; 0 lets the engine choose.
        n_threads_encode: more CPU threads, for the vision encoder alone, so that encoder and
            decoder work at the same time in a batch. 0: the encoder uses the ``n_threads`` threads,
            and encoder and decoder take turns.
        flash_attn: "auto", "on" or "off".
        type_k: element type of the key cache, "f16", "f32", "q8_0" …
        type_v: element type of the value cache.
        self_test: compare the staged decoder with plain llama.cpp at load.

    Raises:
        ModelError: a file cannot be used, the model has no vision, or the sidecar was trained for
            another model.
        PlanError: this model cannot run the cuts; or atp or a budget is asked for without a
            sidecar.
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
        files = ModelFiles.chosen(model, mmproj, atp)
        options = LoadOptions(
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
        super().__init__(files, first_plan(policy, budget, files.atp), options)

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
            image: path, encoded bytes, open file, Pillow image or uint8 [h, w, 3]; or a list of
                these, which all go into one prompt.
            prompt: the question.
            policy: cuts for this call, in place of the captioner's cuts; "none" to prune nothing.
            sampling: how tokens are drawn; greedy, at most 128 tokens, if not given.
            on_token: a function that gets each new piece of text; if it returns False, the caption
                ends there.

        Raises:
            ImageError: an image cannot be opened.
            PlanError: this model cannot run the cuts.
            StageError: the stages failed; for instance, the context is too small for the prompt.
            AtpError: the captioner is closed or a caption_many is open, or the prompt contains the
                media marker.
            KeyboardInterrupt: Ctrl-C; raised within one decode step.
        """
        plan = self.plan_of(policy)
        started = time.perf_counter()
        pixels = [load_image(source) for source in _as_list(image)]
        t_load = 1000 * (time.perf_counter() - started)
        return self.caption_pixels(
            pixels, prompt, plan=plan, sampling=sampling, on_token=on_token, t_load=t_load
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
        """Answers one prompt, or several, about each of many images; several captions run at once.

        The work begins when the first row is asked for. Only a few images are opened ahead, so
        `images` may be endless. This Captioner can make no other caption until all rows were given
        or the run was closed.

        Args:
            images: paths, bytes, open files, Pillow images, arrays, or Items, which bring their
                own prompts.
            prompt: the question, or several questions; each question of an image gets a row.
            batch_size: captions under way at once.
            ordered: whether rows come in the order of the images; otherwise they come as they end.
            policy: cuts for this run, in place of the captioner's cuts; "none" to prune nothing.
            sampling: how tokens are drawn; greedy, at most 128 tokens, if not given. Each caption
                is drawn as if it were alone.
            kv_budget: bytes that all caches may take together, or a text such as "2G"; half of the
                free memory if not given. With a smaller budget, fewer captions run at once.
            embeddings: folder that keeps encoded images between runs.
            n_load_threads: threads that open images; 2 if not given.
            overlap: encode in a thread while the decoder works; if not given, only where they do
                not want the same cores: on an accelerator, or with n_threads_encode.
            on_error: "record": a row of status "error" for whatever fails. "stop": the first such
                row ends the run; captions under way are ended before.

        Returns:
            An iterator over Rows, with close() and stop().

        Raises:
            AtpError: an argument has a value that cannot be used. The run itself raises every
                exception of `images`, after the rows under way.
            PlanError: this model cannot run the cuts.
        """
        return start_run(
            self,
            images,
            prompt,
            plan=self.plan_of(policy),
            sampling=sampling or SamplingConfig(),
            batch_size=batch_size,
            ordered=ordered,
            kv_budget=kv_budget,
            embeddings=embeddings,
            n_load_threads=n_load_threads,
            overlap=self.overlaps if overlap is None else overlap,
            on_error=on_error,
        )

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None = None,
        *,
        mmproj: str | None = None,
        atp: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
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
    ) -> Captioner:
        """A captioner from GGUF files of the Hugging Face hub, downloaded once into its cache.

        Args:
            repo_id: "org/name".
            filename: the text model's name there, or a pattern such as "*q4_k_m.gguf" (capitals do
                not matter); may be left out where there is only one.
            mmproj: name or pattern of the vision projector; if not given, the only
                ``mmproj*.gguf``, or the only one in f16.
            atp: name or pattern of the sidecar; if not given, the only ``atp-*.gguf``, if there is
                one.
            revision: branch, tag or commit; the main branch if not given.
            token: token for the hub. True or None: the token of the user's login; False: no token.
            cache_dir: folder where files are kept; the hub's own cache if not given.
            local_files_only: use the files in the cache only, and do not ask the hub.
            policy: the cuts and the policy at each cut; see Captioner.
            budget: of the policy atp: the mean of the image tokens over the layers; see Captioner.
            n_gpu_layers: layers on the accelerator; -1 for all, 0 for none.
            n_ctx: positions that a prompt and its answer may take together.
            n_ubatch: rows computed at once.
            n_threads: CPU threads; 0 lets the engine choose.
            n_threads_encode: more CPU threads, for the vision encoder alone; see Captioner.
            flash_attn: "auto", "on" or "off".
            type_k: element type of the key cache, "f16", "f32", "q8_0" …
            type_v: element type of the value cache.
            self_test: compare the staged decoder with plain llama.cpp at load.

        Raises:
            ModelError: the repository or a file does not exist or may not be read; several files
                fit a name; the hub cannot be reached; huggingface-hub is missing; or the files
                cannot be used.
            PlanError: this model cannot run the cuts; or atp or a budget is asked for without a
                sidecar.
        """
        files = hub_files(
            repo_id,
            filename,
            mmproj=mmproj,
            atp=atp,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        return cls(
            files[0],
            mmproj=files[1],
            atp=files[2],
            policy=policy,
            budget=budget,
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


def _as_list(image: ImageSource | Sequence[ImageSource]) -> list[ImageSource]:
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)
    if isinstance(image, kinds) or is_open_file(image):
        return [image]  # type: ignore[list-item]
    if not isinstance(image, Iterable) or isinstance(image, Mapping):
        raise ImageError(
            "expected an image as a path, bytes, an open file, a Pillow image or uint8 [h, w, 3], "
            f"or a list of these; got {type(image).__name__}"
        )
    images = list(image)
    if not images:
        raise ImageError("expected at least one image, got an empty list")
    return images
