"""An engine without a model that makes several captions at once, strict about how it is used.

It keeps the rules of the real one: cells are counted in each stage, text before the image is shared
by all captions since `reserve`, what is not allowed raises.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from atp_cpp.errors import ImageError, ModelError, StageError
from support.fake_engine import FakeEngine, FakeResult


@dataclass(eq=False)
class FakeSequence:
    """A prompt of 16 image tokens; tests of the schedule set the fields as they like.

    `needs` are cells of its own rows in each stage, without the shared text; `bound` what is known
    of them beforehand. `words` is what it says, one a step. `fail`: an error that "start" or "step"
    raises with it under way, or "alone", the text of one that ends only it.
    """

    needs: tuple
    words: tuple = (" A", " cat")
    bound: tuple = ()
    fail: dict = field(default_factory=dict)
    name: object = None
    embd: np.ndarray = field(default_factory=lambda: np.zeros((16, 4), np.float32))
    t_encode: float = 1.0
    n_images: int = 1


@dataclass(frozen=True)
class FakeStarted:
    slot: int
    n_cells: list
    result: FakeResult | None = None

    @property
    def ended(self):
        return self.result is not None


@dataclass
class _Live:
    sequence: FakeSequence
    needs: list
    n_said: int
    n_predict: int


class FakeCaches:
    """The part of the engine below `encode`: caches, start, step. Sizes are attributes."""

    cell_step = 4
    sizes = (8,)  # bytes of a cell, in each stage
    n_shared = 2  # cells of the shared text, in each stage
    can_batch = True

    def __init__(self):
        self.reserved, self.n_parallel = None, 0
        self.shared = False  # the text's cells are taken
        self.live = {}
        self.log = []  # ("start" | "step" | "reserve" | "reset", …)
        self.on_step = lambda: None  # tests look around here
        self.no_memory_above = None  # bytes that reserve can get
        self.steps = 0

    @property
    def n_live(self):
        return len(self.live)

    def cell_bytes(self):
        return list(self.sizes)

    def expect(self, sequence, n_predict):
        self._check(sequence)
        bound = sequence.bound or sequence.needs
        return [n + self.n_shared for n in bound]

    def reserve(self, n_cells, n_parallel):
        self._idle("reserve")
        if len(n_cells) != len(self.sizes):
            raise StageError(f"expected {len(self.sizes)} numbers of cells, got {len(n_cells)}")
        if n_parallel < 1 or any(n < 1 or n % self.cell_step for n in n_cells):
            raise StageError(f"cannot reserve {n_cells} cells for {n_parallel} captions")
        if n_parallel > 1 and not self.can_batch:
            raise StageError("this model makes one caption at a time")
        self.reserved, self.shared = None, False
        n_bytes = sum(n * size for n, size in zip(n_cells, self.sizes, strict=True))
        if self.no_memory_above is not None and n_bytes > self.no_memory_above:
            raise StageError(f"no memory for caches of {n_bytes} bytes")
        self.reserved, self.n_parallel = list(n_cells), n_parallel
        self.log.append(("reserve", list(n_cells)))

    def used(self):
        """Cells taken in each stage."""
        own = [sum(c.needs[s] for c in self.live.values()) for s in range(len(self.sizes))]
        return [n + self.n_shared * self.shared for n in own]

    def free_cells(self):
        return [a - b for a, b in zip(self.reserved, self.used(), strict=True)]

    def wants(self, sequence):
        """Cells that a start would take now; those of the text, if it is the first."""
        return [n + self.n_shared * (not self.shared) for n in sequence.needs]

    def fits(self, sequence):
        return all(a <= b for a, b in zip(self.wants(sequence), self.free_cells(), strict=True))

    def start(self, sequence, *, n_predict=128, **draw):
        unknown = draw.keys() - {"temp", "top_k", "top_p", "min_p", "seed", "stop", "grammar",
                                 "stop_on_repetition", "repeat_penalty", "frequency_penalty",
                                 "presence_penalty", "repeat_last_n"}  # fmt: skip
        assert not unknown, unknown
        self._check(sequence)
        if self.reserved is None:
            raise StageError("no caches; reserve them first")
        if "start" in sequence.fail:
            raise sequence.fail["start"]
        wants = self.wants(sequence)
        if len(self.live) == self.n_parallel or not self.fits(sequence):
            self.log.append(("refuse", sequence.name))
            return FakeStarted(-1, self._seen_by(wants, sequence))
        self.log.append(("start", sequence.name))
        words = sequence.words[:n_predict]
        if len(words) <= 1:
            self.shared = True
            return FakeStarted(-1, wants, self._result(sequence, n_predict))
        slot = min(set(range(self.n_parallel)) - self.live.keys())
        self.live[slot] = _Live(sequence, list(sequence.needs), 1, n_predict)
        self.shared = True
        return FakeStarted(slot, wants)

    def _seen_by(self, wants, sequence):
        """Of a caption that does not fit: exact up to the stage where that was seen."""
        free = self.free_cells()
        tight = next((s for s, n in enumerate(wants) if n > free[s]), len(wants))
        extra = self.n_shared * (not self.shared)
        bound = [n + extra for n in sequence.bound or sequence.needs]
        return wants[: tight + 1] + bound[tight + 1 :]

    def step(self):
        assert self.live, "a step with nothing under way"
        self.on_step()
        self.steps += 1
        self.log.append(("step", len(self.live)))
        for caption in self.live.values():
            error = caption.sequence.fail.get("step")
            if callable(error):
                error = error(self)
            if error is not None:
                self.live.clear()
                raise error
        ended = []
        for slot, caption in sorted(self.live.items()):
            caption.n_said += 1
            if "alone" in caption.sequence.fail or caption.n_said >= min(
                len(caption.sequence.words), caption.n_predict
            ):
                ended.append((slot, self._result(caption.sequence, caption.n_predict)))
        for slot, _ in ended:
            del self.live[slot]
        return ended

    def drop(self, slot):
        del self.live[slot]

    def reset(self):
        self._check_open()
        self.log.append(("reset", len(self.live)))
        self.live.clear()

    def _result(self, sequence, n_predict):
        words = sequence.words[:n_predict]
        if error := sequence.fail.get("alone"):
            return FakeResult("", [], "error", self._report(0, self.plan), error)
        reason = "length" if n_predict < len(sequence.words) else "stop"
        report = replace(self._report(sequence.n_images, self.plan), t_encode=sequence.t_encode)
        return FakeResult("".join(words), list(range(len(words))), reason, report)

    def _check(self, sequence):
        self._check_open()
        if not isinstance(sequence, FakeSequence):
            raise TypeError(f"expected a Sequence, got {type(sequence).__name__}")

    def _idle(self, what):
        self._check_open()
        if self.live:
            raise StageError(f"{what}: {len(self.live)} captions are under way")

    def _check_open(self):
        if getattr(self, "closed", False):
            raise ModelError("this engine is closed; make a new one")


class FakeBatchEngine(FakeCaches, FakeEngine):
    """A whole engine: an image shows its mean, and a caption says that and the prompt's words."""

    plan = ()

    def __init__(self, *args, **options):
        FakeEngine.__init__(self, *args, **options)
        FakeCaches.__init__(self)
        self.sizes = (8,)
        self.n_encoded = 0  # runs of the vision encoder

    def set_plan(self, plan):
        self._idle("set_plan")
        self.plan, self.reserved = list(plan), None
        self.sizes = (8,) * (1 + len(plan))

    def prepare(self, prompt, images):
        self._check_open()
        assert prompt.count(self.info.media_marker) == len(images)
        return prompt, [image.copy() for image in images]

    def encode_prepared(self, prepared):
        return self.encode(*prepared)

    def encode(self, prompt, images, *, embd=None):
        self._check_open()
        assert prompt.count(self.info.media_marker) == len(images)
        t_encode = 1.0 if embd is None else 0.0
        if embd is None:
            self.n_encoded += 1
            embd = np.full((16 * len(images), 4), np.mean([_mean(i) for i in images]), np.float32)
        elif embd.shape != (16 * len(images), 4) or embd.dtype != np.float32:
            raise ImageError(f"expected embeddings [{16 * len(images)}, 4], got {embd.shape}")
        words = (f" {embd[0, 0]:.3f}", *(f" {word}" for word in prompt.split()))
        return FakeSequence(
            needs=(len(prompt) + 16,) * len(self.sizes), words=words, embd=embd,
            t_encode=t_encode, n_images=len(images), name=prompt,
        )  # fmt: skip

    def generate(self, prompt, images, *, plan=(), n_predict=128, **options):
        self._idle("generate")
        FakeEngine.generate(self, prompt, images, plan=plan, n_predict=n_predict, **options)
        kept, self.plan = self.plan, list(plan)
        try:
            return self._result(self.encode(prompt, images), n_predict)
        finally:
            self.plan = kept


def _mean(image):
    return float(np.mean(getattr(image, "pixels", image)))
