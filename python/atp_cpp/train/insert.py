"""ATP modules inside a transformers LLaVA, without a change of transformers' model code.

It uses three public interfaces: an attention function registered under the name ``atp`` (it gives
scores at the layers before a module and applies the masks after a module), a pre-hook on every
decoder layer (it drops the rows that no longer matter), and the model's own parts, called in order
(image features, language model, head).

A module's mask M multiplies attention: log M is added to a column's logits, a token always sees
itself, masks of successive modules multiply. Rows whose mask falls below `drop_below` leave the
sequence: with hard masks that is the pruning itself, with soft ones it makes training several times
faster and differs from masking by less than that value per token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from atp_cpp.train.module import AtpModule, Decision, spatial_score
from atp_cpp.train.packing import Packing, pack_samples
from atp_cpp.train.spec import AtpSpec

NAME = "atp"
_TINY = 1e-6  # log of a mask is taken of M + this


@dataclass
class Rows:
    """The rows of a batch that are still in the sequence, (B, n) each.

    Attributes:
        index: place in the full sequence.
        there: False on padding.
        owner: image of an image token, else -1.
        question: rows whose attention makes S_cross.
        spa: spatial score of image tokens, -inf elsewhere.
        mask: product of the masks so far; 1 on text.
    """

    index: Tensor
    there: Tensor
    owner: Tensor
    question: Tensor
    spa: Tensor
    mask: Tensor

    @property
    def live(self) -> Tensor:
        """(B, n): how alive each image token is, 0 on other rows."""
        return self.mask * (self.owner >= 0) * self.there

    def gather(self, at: Tensor) -> Rows:
        """The rows `at` (B, m), in that order."""
        names = ("index", "there", "owner", "question", "spa", "mask")
        return Rows(*(getattr(self, name).gather(1, at) for name in names))


@dataclass
class Pass:
    """What one forward pass carries from layer to layer."""

    rows: Rows
    packing: Packing | None  # until the first cut
    temperature: float | None
    straight: bool
    drop_below: float
    bias: Tensor | None = None  # (B, 1, n, n), once masks differ from plain causality
    rope: Any = None  # rotary tables of the present rows
    decisions: list[Decision] = field(default_factory=list)
    counts: list[Tensor] = field(default_factory=list)  # (B,) image tokens alive after each module
    alive: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (index, live) after each
    looks: list[tuple[Tensor, Tensor]] | None = None  # S_self, S_cross of every layer, if asked


class AtpLlava(nn.Module):
    """A LlavaForConditionalGeneration with ATP modules between its decoder layers.

    Args:
        model: the checkpoint; its language model's attention is set to ours.
        spec: where the modules stand and how they decide.
        grid: rows and columns of the image tokens of one image.
    """

    model: Any
    spa: Tensor

    def __init__(self, model: nn.Module, spec: AtpSpec, grid: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.spec, self.grid = model, spec, grid
        self.heads = nn.ModuleList(AtpModule(spec) for _ in spec.cuts)
        self.register_buffer("spa", spatial_score(*grid, spec), persistent=False)
        self.now: Pass | None = None
        AttentionInterface.register(NAME, self._dispatch)
        self.language.config._attn_implementation = NAME
        for number, layer in enumerate(self.language.layers):
            layer.self_attn.atp_owner = [self]  # in a list, so that torch does not see a submodule
            layer.register_forward_pre_hook(self._before(number), with_kwargs=True)

    @property
    def language(self) -> Any:
        """The decoder without its head."""
        return self.model.model.language_model

    # -- one pass ---------------------------------------------------------------------------------

    def image_features(self, pixels: Tensor) -> Tensor:
        """Pixels (U, 3, H, W) -> projected image tokens (U, N, width); encoder stays frozen."""
        with torch.no_grad():
            out = self.model.get_image_features(pixel_values=pixels, return_dict=True)
        parts = out.pooler_output if hasattr(out, "pooler_output") else out
        return torch.stack(list(parts))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        prompt_len: Tensor,
        image: Tensor,
        image_of: Tensor,
        *,
        temperature: float | None = None,
        straight: bool = False,
        drop_below: float = 0.01,
        look: bool = False,
    ) -> tuple[Tensor, Pass]:
        """Hidden rows of the last layer, and what the modules decided.

        Args:
            input_ids: (B, n), right-padded, image tokens as the processor repeats them.
            attention_mask: (B, n).
            prompt_len: (B,) rows before the answer; the question ends there.
            image: (U, N, width) projected image tokens; N of all the images a sample sees.
            image_of: (B,) which of the U a sample sees.
            temperature: None prunes by the hard rule, else T of the soft masks.
            straight: see AtpModule.forward.
            drop_below: rows with a smaller mask leave the sequence.
            look: nothing is dropped, and `now.looks` holds the scores of every layer.

        Returns:
            hidden: (B, m, width) of the rows that are left.
            now: the pass; `now.rows.index` says which rows these are.
        """
        is_image = input_ids == self.model.config.image_token_id
        embeds = self.model.get_input_embeddings()(input_ids)
        seen = image[image_of].to(embeds.dtype)
        embeds = embeds.masked_scatter(is_image[..., None], seen)
        packing = pack_samples(input_ids, is_image, image_of)
        rows = self._rows(input_ids, attention_mask, prompt_len, is_image)
        self.now = Pass(
            rows, packing, temperature, straight, drop_below, looks=[] if look else None
        )
        try:
            out = self.language(
                inputs_embeds=packing.pack(embeds),
                position_ids=packing.pack(rows.index),
                attention_mask=None,
                use_cache=False,
            )
            hidden = out.last_hidden_state
            return (packing.unpack(hidden, rows.index) if look else hidden), self.now
        finally:
            self.now = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden rows (..., width) -> logits (..., vocabulary)."""
        out: Tensor = self.model.get_output_embeddings()(hidden)
        return out

    def _rows(self, ids: Tensor, attention: Tensor, prompt_len: Tensor, is_image: Tensor) -> Rows:
        b, n = ids.shape
        index = torch.arange(n, device=ids.device).expand(b, n)
        cells = self.grid[0] * self.grid[1]
        nth = is_image.long().cumsum(1) - 1  # number of an image token in its sample
        if bool((is_image.sum(1) % cells).any()):
            counts = is_image.sum(1).tolist()
            raise ValueError(f"expected whole images of {cells} tokens a sample, got {counts}")
        owner = torch.where(is_image, nth // cells, -1)
        last = torch.where(is_image, index, -1).amax(1, keepdim=True)
        question = (index > last) & (index < prompt_len[:, None])
        spa = torch.where(is_image, self.spa[nth.clamp(min=0) % cells], -torch.inf)
        mask = torch.ones_like(index, dtype=torch.float32)
        return Rows(index, attention.bool(), owner, question, spa, mask)

    # -- inside the decoder -----------------------------------------------------------------------

    def _before(self, number: int) -> Any:
        """The pre-hook of a decoder layer: drops rows at a cut, hands on tables of those left."""

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            now = self.now
            if now is None:
                return None
            hidden = args[0]
            if number in self.spec.cuts and now.looks is None:
                rope = now.rope or kwargs["position_embeddings"]
                hidden = self._compact(now, hidden, rope)
            if now.rope is not None:
                kwargs = {**kwargs, "position_embeddings": now.rope, "position_ids": None}
            return (hidden, *args[1:]), kwargs

        return hook

    def _compact(self, now: Pass, hidden: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        rows = now.rows
        stays = rows.there & ((rows.owner < 0) | (rows.mask.detach() >= now.drop_below))
        order = (~stays).int().argsort(dim=1, stable=True)[:, : int(stays.sum(1).max())]
        rows = rows.gather(order)
        rows.there = stays.gather(1, order)
        if now.packing is not None:
            packing, now.packing = now.packing, None
            hidden, *tables = (packing.unpack(t, order) for t in (hidden, *rope))
        else:
            hidden, *tables = (_take(t, order) for t in (hidden, *rope))
        now.rope = tuple(tables)
        now.rows = rows
        now.bias = attention_bias(rows)
        return hidden

    @staticmethod
    def _dispatch(
        module: Any, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """The registered attention: q (B, H, n, d), k and v (B, H_kv, n, d) -> (B, n, H, d)."""
        owner: AtpLlava | None = getattr(module, "atp_owner", [None])[0]
        if owner is None or owner.now is None:
            return sdpa_attention_forward(module, q, k, v, attention_mask, **kwargs)
        return owner._attend(module, q, k, v, float(kwargs["scaling"])), None

    def _attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        now = self.now
        assert now is not None
        scored = now.looks is not None or module.layer_idx + 1 in self.spec.cuts
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        if now.bias is None:
            assert now.packing is not None
            now.bias = now.packing.bias(q.dtype)
        if not scored and now.packing is not None:  # no mask to learn here: the fast kernel does
            mask = now.bias.to(q.dtype)
            out = nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scaling)
            return out.transpose(1, 2)
        # spelled out in q's own type: with bfloat16 a float32 softmax would double the time
        logits = torch.matmul(q * scaling, k.transpose(2, 3)) + now.bias.to(q.dtype)
        probs = logits.softmax(-1, dtype=q.dtype)
        if now.looks is not None:
            now.looks.append(self._scores(now, probs))
        elif scored:
            self._decide(now, probs, self.spec.cuts.index(module.layer_idx + 1))
        return torch.matmul(probs, v).transpose(1, 2)

    def _scores(self, now: Pass, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Attention (B, H, rows, columns) -> S_self and S_cross, (B, n) each."""
        rows = now.rows
        live = rows.live
        asks = (rows.question & rows.there).to(live.dtype)
        if now.packing is not None:
            received = now.packing.received(probs, live, asks)
        else:  # sums over rows, means over heads
            weights = torch.stack([live, asks], dim=1)[:, None].to(probs.dtype)  # (B, 1, 2, n)
            received = torch.matmul(weights, probs).float().mean(1)
        seers = live.flip(1).cumsum(1).flip(1)  # live image rows at or after each column
        if self.spec.divisor == "rows_all":
            seers = live.sum(1, keepdim=True).expand_as(seers)
        s_self = received[:, 0] / seers.clamp(min=1e-6)
        return s_self, received[:, 1] / asks.sum(1, keepdim=True).clamp(min=1)

    def _decide(self, now: Pass, probs: Tensor, number: int) -> None:
        """Attention (B, H, rows, columns) -> the module's mask, multiplied into the rows'."""
        rows = now.rows
        live = rows.live
        s_self, s_cross = self._scores(now, probs)
        # a token half alive scores half: nothing where masks are hard, and while they are soft it
        # keeps those about to leave from being sorted among those that stay
        weight = live.detach().clamp(max=1)
        count = None
        if self.spec.fixed:
            images = rows.owner.amax(1) + 1
            count = images * round(self.spec.fixed[number] * self.grid[0] * self.grid[1])
        decision = self.heads[number](
            s_self * weight,
            s_cross * weight,
            rows.spa,
            live,
            rows.owner.masked_fill(~rows.there, -1),
            temperature=now.temperature,
            straight=now.straight,
            count=count,
        )
        rows.mask = rows.mask * decision.mask
        now.decisions.append(decision)
        now.counts.append(rows.live.sum(1))
        now.alive.append((rows.index, rows.live.detach()))


def _take(t: Tensor, at: Tensor) -> Tensor:
    """Rows `at` (B, m) of (B or 1, n, width) -> (B, m, width)."""
    wide = at[..., None].expand(-1, -1, t.shape[2])
    return t.expand(at.shape[0], -1, -1).gather(1, wide)


def attention_bias(rows: Rows) -> Tensor:
    """What is added to attention logits, (B, 1, n, n): causality, padding, log of the masks."""
    n = rows.index.shape[1]
    sees = torch.ones(n, n, dtype=torch.bool, device=rows.index.device).tril()
    sees = sees & rows.there[:, None, :]
    itself = torch.eye(n, dtype=torch.bool, device=rows.index.device)
    column = torch.log(rows.mask + _TINY)[:, None, :].expand(-1, n, -1)
    column = torch.where(itself, torch.zeros_like(column), column)
    return column.masked_fill(~(sees | itself), -1e4)[:, None]
