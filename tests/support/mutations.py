"""Random edits of a text, to see what becomes of damaged grammars and schemas."""


def mutated(text, rng, alphabet):
    """`text` with one to four random edits."""
    for _ in range(rng.randint(1, 4)):
        at, n = rng.randrange(len(text) + 1), rng.randint(0, 8)
        other = rng.randrange(len(text) + 1)
        text = rng.choice(
            [
                text[:at] + text[at + n :],
                text[:at] + rng.choice(alphabet) * rng.randint(1, 3) + text[at:],
                text[:at] + text[other : other + 20] + text[at:],
                text[:at] + str(rng.choice([0, 1, 2**31, 2**64, 1999, 2000, 2001])) + text[at:],
            ]
        ) or "x"  # fmt: skip
    return text
