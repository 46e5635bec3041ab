"""Modules inside a transformers LLaVA: its own attention with the pruned rows hidden."""

import numpy as np
import pytest

from support import atp_twin
from support.random_sidecar import KEEP_ALL, random_sidecar
from support.tiny_llava_hf import N_LAYER, SIDE, write_tiny_llava
from support.train_modules import load_heads, spec_of

pytestmark = pytest.mark.torch

CUTS = (2, 4)
N = SIDE * SIDE
# logits of the two ways to hide rows, float32, after five layers of random weights
LOGITS_NMSE = 1e-9


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_llava(tmp_path_factory.mktemp("tiny") / "llava", seed=3)


def load(folder, **options):
    import torch
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, **options
    ).eval()


@pytest.fixture(scope="module")
def prompts(folder):
    """Two images, three questions of different lengths: what a Batch holds."""
    import torch
    from PIL import Image

    from atp_cpp.train.data import load_processor

    processor = load_processor(folder)
    rng = np.random.default_rng(1)
    images = [Image.fromarray(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8)) for _ in range(2)]
    asked = ["what color is the circle?", "how many?", "is there a red triangle in the image?"]
    texts = [f"USER: <image>\n{question} ASSISTANT: red" for question in asked]
    processor.tokenizer.padding_side = "right"
    out = processor(
        images=[images[i] for i in (0, 0, 1)], text=texts, padding=True, return_tensors="pt"
    )
    lengths = out["attention_mask"].sum(1)
    n_answer = len(processor.tokenizer(" red", add_special_tokens=False)["input_ids"])
    labels = out["input_ids"].clone()
    columns = torch.arange(labels.shape[1])
    outside = (columns < (lengths - n_answer)[:, None]) | (columns >= lengths[:, None])
    labels[outside] = -100
    return {
        **out,
        "prompt_len": lengths - n_answer,
        "labels": labels,
        "pixel_values": out["pixel_values"][[0, 2]],
        "image_of": torch.tensor([0, 0, 1]),
    }


def make(folder, *, seed=0, **fields):
    """An AtpLlava with a random sidecar's modules."""
    from atp_cpp.train.insert import AtpLlava

    sidecar = random_sidecar(
        seed, n_layer=N_LAYER, cuts=CUTS, grid=(SIDE, SIDE), n_embd=32, kept=(0.5, 0.3), **fields
    )
    llava = AtpLlava(load(folder), spec_of(sidecar), (SIDE, SIDE))
    load_heads(sidecar, llava.heads)
    return llava, sidecar


def run(llava, prompts, **options):
    images = llava.image_features(prompts["pixel_values"])
    names = ("input_ids", "attention_mask", "prompt_len")
    return llava(*(prompts[n] for n in names), images, prompts["image_of"], **options)


class Reference:
    """transformers' own eager LLaVA; the twin decides, a mask hides what it drops."""

    def __init__(self, folder, sidecar, row):
        self.model = load(folder, attn_implementation="eager")
        self.sidecar, self.n, self.row = sidecar, int(row["attention_mask"].sum()), row
        ids = row["input_ids"][: self.n]
        self.image = np.flatnonzero((ids == self.model.config.image_token_id).numpy())
        self.n_images = len(self.image) // N
        self.live, self.kept, self.thresholds = list(range(len(self.image))), [], []
        for number, layer in enumerate(self.model.model.language_model.layers):
            layer.register_forward_pre_hook(self._hide, with_kwargs=True)
            if number + 1 in sidecar.cuts:
                layer.self_attn.register_forward_hook(self._decide)

    def _hide(self, _, args, kwargs):
        import torch

        gone = [int(row) for i, row in enumerate(self.image) if i not in self.live]
        mask = kwargs["attention_mask"]
        if mask is None:
            mask = torch.full((self.n, self.n), -1e9).triu(1)[None, None]
        mask = mask.clone()
        mask[..., gone] = -1e9
        return args, {**kwargs, "attention_mask": mask}

    def _decide(self, _, __, out):
        received = out[1][0].double().mean(0).numpy()
        rows = self.image[self.live]
        question = np.arange(self.image[-1] + 1, int(self.row["prompt_len"]))
        chosen = atp_twin.choose(
            self.sidecar,
            len(self.kept),
            self_sum=received[np.ix_(rows, rows)].sum(0),
            cross=received[np.ix_(question, rows)].mean(0),
            live=self.live,
            grids=[(SIDE, SIDE)] * self.n_images,
        )
        self.live = chosen["kept"]
        self.kept.append(self.live)
        self.thresholds.append(chosen["thresholds"][:2])

    def logits(self):
        import torch

        with torch.no_grad():
            out = self.model(
                input_ids=self.row["input_ids"][None, : self.n],
                pixel_values=self.row["pixel_values"],
                use_cache=False,
            )
        return out.logits[0].numpy()


def check_sample(now, logits, sample, reference):
    """What AtpLlava did to one sample is what the reference did."""
    expected = reference.logits()
    for number, (index, live) in enumerate(now.alive):
        kept = index[sample][live[sample] > 0.5].numpy()
        assert (np.searchsorted(reference.image, kept) == reference.kept[number]).all()
        decision = now.decisions[number]
        thresholds = float(decision.theta_r[sample]), float(decision.theta_s[sample])
        assert thresholds == pytest.approx(reference.thresholds[number], abs=1e-5)
    there = now.rows.there[sample]
    rows = now.rows.index[sample][there].numpy()
    assert len(rows) == reference.n - len(reference.image) + len(reference.live)
    ours = logits[sample][there].numpy()
    error = ((ours - expected[rows]) ** 2).mean() / (expected[rows] ** 2).mean()
    assert error < LOGITS_NMSE


@pytest.mark.parametrize(
    ("seed", "fields"),
    [
        (0, {}),
        (1, {"score_norm": "minmax", "divisor": "rows_all", "activation": "relu"}),
        (2, {"score": "cross", "rule": "redundant"}),
        (3, {"score": "self", "rule": "spatial", "activation": "identity"}),
        (4, {"theta_r_bias": 40.0, "theta_s_bias": 40.0}),
        (5, {"theta_r_bias": 0.1, "theta_s_bias": 3.0}),
    ],
)
def test_pruning_is_hiding_rows_from_transformers_own_attention(folder, prompts, seed, fields):
    import torch

    llava, sidecar = make(folder, seed=seed, **fields)
    with torch.no_grad():
        hidden, now = run(llava, prompts)
        logits = llava.logits(hidden)
    for sample in range(3):
        row = {n: prompts[n][sample] for n in ("input_ids", "attention_mask", "prompt_len")}
        row["pixel_values"] = prompts["pixel_values"][prompts["image_of"][sample]][None]
        check_sample(now, logits, sample, Reference(folder, sidecar, row))


@pytest.mark.parametrize("seed", [0, 5])
def test_several_images_in_a_prompt(folder, prompts, seed):
    import torch

    llava, sidecar = make(folder, seed=seed, rule="redundant")
    ids = prompts["input_ids"][:1]
    first = int((ids[0] == 478).int().argmax())
    ids = torch.cat([ids[:, : first + N], ids[:, first:]], dim=1)  # the image's rows twice
    given = {
        "input_ids": ids,
        "attention_mask": torch.cat([torch.ones(1, N).long(), prompts["attention_mask"][:1]], 1),
        "prompt_len": prompts["prompt_len"][:1] + N,
    }
    with torch.no_grad():
        images = llava.image_features(prompts["pixel_values"]).flatten(0, 1)[None]
        hidden, now = llava(*given.values(), images, torch.zeros(1).long())
        logits = llava.logits(hidden)
    row = {name: value[0] for name, value in given.items()}
    reference = Reference(folder, sidecar, {**row, "pixel_values": prompts["pixel_values"]})
    check_sample(now, logits, 0, reference)
    assert {i // N for i in reference.live} == {0, 1}


def test_shared_openings_change_nothing(folder, prompts):
    import torch

    llava, _ = make(folder, seed=1)
    apart = {**prompts, "image_of": torch.arange(3)}
    apart["pixel_values"] = prompts["pixel_values"][prompts["image_of"]]
    with torch.no_grad():
        a, b = (run(llava, p, temperature=20.0)[1] for p in (prompts, apart))
    assert a.counts[1].tolist() == pytest.approx(b.counts[1].tolist(), rel=1e-5)


def test_keeping_everything_is_the_model_itself(folder, prompts):
    import torch

    from atp_cpp.train.losses import answer_loss, exact, mean_tokens

    llava, _ = make(folder, theta_r_bias=KEEP_ALL, theta_s_bias=KEEP_ALL)
    plain = load(folder)
    pixels = prompts["pixel_values"][prompts["image_of"]]
    given = {"pixel_values": pixels, **{n: prompts[n] for n in ("input_ids", "attention_mask")}}
    with torch.no_grad():
        expected = plain(**given).logits
        hidden, now = run(llava, prompts)
        logits = llava.logits(hidden)
        there = prompts["attention_mask"].bool()
        assert ((logits - expected)[there] ** 2).mean() < LOGITS_NMSE * (expected**2).mean()
        assert mean_tokens(now, CUTS, N_LAYER, N).tolist() == [N] * 3
        # greedy replies are exact, anything else is not
        labels = prompts["labels"].clone()
        greedy = expected.argmax(-1)
        answers = labels != -100
        labels[answers] = greedy.roll(1, 1)[answers]
        assert exact(llava, hidden, now, labels).tolist() == [True] * 3
        labels[1, answers[1].nonzero()[-1]] += 1
        assert exact(llava, hidden, now, labels).tolist() == [True, False, True]
        one = {name: prompts[name][:1] for name in prompts}
        hidden, now = run(llava, one)
        theirs = plain(**{name: value[:1] for name, value in given.items()}, labels=one["labels"])
        assert float(answer_loss(llava, hidden, now, one["labels"])) == pytest.approx(
            float(theirs.loss), rel=1e-4
        )


@pytest.mark.parametrize("straight", [False, True])
@pytest.mark.parametrize("temperature", [10.0, 100.0])
@pytest.mark.parametrize(
    "fields", [{}, {"theta_r_bias": 40.0, "theta_s_bias": 40.0}, {"score_norm": "minmax"}]
)
def test_gradients_are_finite_also_when_next_to_nothing_is_left(
    folder, prompts, fields, temperature, straight
):
    import torch

    from atp_cpp.train.losses import (
        answer_loss,
        mean_tokens,
        running_mean,
        sparsity_loss,
        target_loss,
    )

    llava, _ = make(folder, seed=1, **fields)
    hidden, now = run(llava, prompts, temperature=temperature, straight=straight)
    mean = mean_tokens(now, CUTS, N_LAYER, N)
    loss = answer_loss(llava, hidden, now, prompts["labels"])
    loss = loss + sparsity_loss(now, N) + target_loss(mean, running_mean(None, mean), 0.3 * N, N)
    loss.backward()
    for name, parameter in llava.heads.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    if not fields:
        assert all(p.grad.abs().sum() > 0 for p in llava.heads.parameters())
    counts = torch.stack(now.counts)
    assert (counts >= 0.999).all() and (counts[1] <= counts[0] + 1e-4).all()


def test_the_losses_are_their_formulas(folder, prompts):
    import torch

    from atp_cpp.train.losses import mean_tokens, running_mean, sparsity_loss, target_loss

    llava, _ = make(folder, seed=1)
    with torch.no_grad():
        _, now = run(llava, prompts, temperature=10.0)
    first, second = (count.double().numpy() for count in now.counts)
    expected = (2 * N + 2 * first + 1 * second) / 5
    mean = mean_tokens(now, CUTS, N_LAYER, N)
    assert mean.numpy() == pytest.approx(expected, rel=1e-6)
    sparsity = (1 * first.mean() + 2 * second.mean()) / N
    assert float(sparsity_loss(now, N)) == pytest.approx(sparsity, rel=1e-6)
    assert running_mean(None, mean) == pytest.approx(expected.mean(), rel=1e-6)
    assert running_mean(100.0, mean) == pytest.approx(70 + 0.3 * expected.mean(), rel=1e-6)
    counts = mean.clone().requires_grad_()
    for running, pull in ((3.0 + N, 1.0), (3.0, 0.0), (3.0 + 0.025 * N, 0.5), (3.0 - N, -1.0)):
        loss = target_loss(counts, running, 3.0, N)
        (slope,) = torch.autograd.grad(loss, counts)
        assert float(loss.detach()) == pytest.approx(abs(running - 3) / N, abs=1e-6)
        assert slope.numpy() == pytest.approx(pull / (N * len(mean)), abs=1e-7)


@pytest.mark.parametrize(("drop_below", "most"), [(1e-2, 1e-4), (1e-3, 1e-6), (1e-5, 1e-9)])
def test_rows_that_hardly_count_may_leave(folder, prompts, drop_below, most):
    import torch

    llava, _ = make(folder, seed=1)
    with torch.no_grad():
        for layer in llava.language.layers:  # else one column takes all the attention
            layer.self_attn.q_proj.weight *= 0.1
        whole, _ = run(llava, prompts, temperature=30.0, drop_below=0.0)
        some, now = run(llava, prompts, temperature=30.0, drop_below=drop_below)
        assert now.rows.index.shape[1] < prompts["input_ids"].shape[1]
        at = now.rows.index[..., None].expand(-1, -1, whole.shape[2])
        there = now.rows.there & (now.rows.owner < 0)
        a, b = llava.logits(whole.gather(1, at))[there], llava.logits(some)[there]
    assert float(((a - b) ** 2).mean() / (a**2).mean()) < most


def test_thresholds_keep_float32_under_autocast(folder, prompts):
    import torch

    llava, _ = make(folder, seed=1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, now = run(llava, prompts)
    thetas = torch.stack([d.theta_r for d in now.decisions])
    assert thetas.dtype == torch.float32
    assert not torch.equal(thetas, thetas.bfloat16().float())


def test_looking_drops_nothing_and_sees_every_layer(folder, prompts):
    import torch

    llava, _ = make(folder, seed=1)
    with torch.no_grad():
        hidden, now = run(llava, prompts, look=True)
        pruned, decided = run(llava, prompts)
    assert hidden.shape[:2] == prompts["input_ids"].shape
    assert len(now.looks) == N_LAYER and not now.decisions
    assert all(score.shape == prompts["input_ids"].shape for pair in now.looks for score in pair)
    # before the first cut a look sees what the module there scores
    first = decided.decisions[0].red
    s_self, s_cross = now.looks[CUTS[0] - 1]
    live = now.rows.live

    def relative(s):
        return s / (s + (s * live).sum(1, keepdim=True) / live.sum(1, keepdim=True))

    red = (relative(s_self) + relative(s_cross)) / 2
    assert torch.allclose(red[live > 0], first[live > 0], atol=1e-5)
    assert pruned.shape[1] < hidden.shape[1]
