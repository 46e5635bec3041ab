"""Names of the files in a Hugging Face checkpoint."""

from __future__ import annotations

# everything but weights: configuration, tokenizer, processor, chat templates, index of the weights;
# and the model card, from which the licence goes into the files
SMALL = (
    *("*.json", "*.jinja", "*.model", "tokenizer.model.*"),
    *("merges.txt", "vocab.txt", "README.md"),
)
