"""An engine without a model, for tests of the Python side: same interface, canned words."""

from dataclasses import dataclass, field, replace

from atp_cpp.errors import PlanError, StageError

WORDS = (" A", " red", " circle", ".")


@dataclass(frozen=True)
class FakeInfo:
    arch: str = "fake"
    name: str = "Fake"
    n_layer: int = 8
    n_embd: int = 64
    n_vocab: int = 32
    n_ctx_train: int = 512
    n_params: int = 1000
    size_bytes: int = 4000
    has_vision: bool = True
    chat_template: str = (
        "{{ bos_token }}{% for m in messages %}USER: {% for part in m['content'] %}"
        "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )
    bos: str = "<s>"
    eos: str = "</s>"
    add_bos: bool = True
    nfc: bool = False
    lstrip: tuple = ()
    rstrip: tuple = ()
    media_marker: str = "<__media__>"
    legal_cuts: tuple = (1, 2, 3, 4, 5, 6, 7)
    atp_cuts: tuple = ()
    can_prune: bool = True
    why_not: str = ""
    mrope: bool = False
    devices: tuple = ("CPU",)
    can_batch: bool = True


@dataclass(frozen=True)
class FakeReport:
    n_image_tokens: int
    n_prompt: int
    n_decoded: int
    n_kept: list
    tokens_mean: float
    kept: list
    grids: list
    t_encode: float = 1.0
    t_prefill: float = 2.0
    t_decode: float = 3.0
    kv_bytes: int = 4096
    thresholds: tuple = ()
    kept_spatial: tuple = ()
    grid_images: tuple = ()


@dataclass(frozen=True)
class FakeCut:
    """A cut of the sidecar a FakeEngine was given."""

    after: int
    policy: str = "atp"
    keep: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class FakeResult:
    text: str
    tokens: list
    finish_reason: str
    report: FakeReport
    error: str = ""


@dataclass
class FakeEngine:
    """Every image is a grid of 4 x 4 tokens; each cut keeps the first `keep` share of them.

    With a sidecar it has cuts after 2 and 5 layers, which keep the first half and quarter.
    Class attributes steer all engines a test makes; `made` collects them. `interrupt_at` raises
    KeyboardInterrupt before that word of that call: (call, word).
    """

    model: str
    mmproj: str = ""
    atp: str = ""
    options: dict = field(default_factory=dict)
    calls: list = field(default_factory=list)
    closed: bool = False

    info = FakeInfo()
    words = WORDS
    interrupt_at = None
    fail_calls = ()
    made = ()

    @classmethod
    def fresh(cls, **steer):
        """A class of its own, so that one test's steering is not another's."""
        info = replace(FakeInfo(), **steer.pop("info", {}))
        return type("FakeEngine", (cls,), {"info": info, "made": [], **steer})

    def __call__(self):
        raise TypeError("an engine is not callable")

    def __init__(self, model, mmproj="", atp="", **options):
        self.model, self.mmproj, self.atp, self.options = model, mmproj, atp, options
        self.calls, self.budgets, self.closed = [], [], False
        if atp:
            self.info = replace(self.info, atp_cuts=(2, 5))
        type(self).made.append(self)

    def close(self):
        self.closed = True

    def atp_plan(self, budget=None):
        assert self.atp
        if isinstance(budget, float) and budget <= 2 / 8:
            raise PlanError(f"a budget of {budget} cannot be met")
        self.budgets.append(budget)
        return [FakeCut(2), FakeCut(5)]

    def generate(self, prompt, images, *, plan=(), n_predict=128, on_token=None, **options):
        assert not self.closed
        assert prompt.count(self.info.media_marker) == len(images)
        call = len(self.calls)
        self.calls.append(
            {
                "prompt": prompt,
                "images": list(images),
                "plan": [(c.after, c.policy, c.keep, c.seed) for c in plan],
                "n_predict": n_predict,
                **options,
            }
        )
        if call in self.fail_calls:
            raise StageError("the context is too small for the prompt; raise -c")
        text, reason = "", "stop"
        for i, word in enumerate(self.words[:n_predict]):
            if self.interrupt_at == (call, i):
                raise KeyboardInterrupt
            text += word
            if on_token is not None and on_token(word) is False:
                reason = "cancelled"
                break
        if reason == "stop" and n_predict < len(self.words):
            reason = "length"
        return FakeResult(text, [0] * len(self.words), reason, self._report(len(images), plan))

    def _report(self, n_images, plan):
        n = 16 * n_images
        atp = [cut for cut in plan if cut.policy == "atp"]
        share = {cut: 0.5 ** (k + 1) for k, cut in enumerate(atp)}
        kept = [list(range(max(1, round(share.get(cut, cut.keep) * n)))) for cut in plan]
        live, first, total = n, 0, 0
        for cut, alive in zip(plan, kept, strict=True):
            total += (cut.after - first) * live
            first, live = cut.after, len(alive)
        total += (self.info.n_layer - first) * live
        return FakeReport(
            n_image_tokens=n,
            n_prompt=n + 8,
            n_decoded=len(self.words),
            n_kept=[len(alive) for alive in kept],
            tokens_mean=total / self.info.n_layer,
            kept=kept,
            grids=[(4, 4)] * n_images,
            grid_images=list(range(n_images)),
            thresholds=[(0.5, 0.75, 0.125 * k) for k in range(len(atp))],
            kept_spatial=[alive[::2] for alive in kept] if atp else [],
        )
