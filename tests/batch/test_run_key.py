"""The configuration's hash: everything that changes captions changes it, and nothing else."""

import os
import random
from dataclasses import fields, replace

import pytest

from atp_cpp.batch.run_key import config_hash, file_fingerprint, places
from atp_cpp.errors import ModelError
from atp_cpp.options.plan import CutSpec, SamplingConfig, settle

PLAN = (CutSpec(2, "fastv", 0.5, seed=1), CutSpec(4, "grid", 0.25))
ATP = (CutSpec(3, "atp", budget=0.25),)


@pytest.fixture
def run(tmp_path):
    """Keyword arguments of one configuration."""
    files = {name: tmp_path / f"{name}.gguf" for name in ("model", "mmproj", "atp")}
    for name, path in files.items():
        path.write_bytes(b"GGUF" + random.Random(name).randbytes(100_000))
    return {**files, "plan": PLAN, "sampling": SamplingConfig()}


def test_it_is_sixteen_hex_digits_and_stays(run):
    assert config_hash(**run) == config_hash(**run)
    assert len(config_hash(**run)) == 16 and int(config_hash(**run), 16) >= 0
    assert config_hash(**run, flash_attn="auto", type_k="f16", type_v="f16") == config_hash(**run)


def another(value):
    """Another value of the same type; "" stays possible for all texts but these."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value + 0.01
    return (*value, "x") if isinstance(value, tuple) else "x"


OTHER_SAMPLING = {"grammar": 'root ::= "yes"', "json_schema": '{"type": "object"}'}


@pytest.mark.parametrize("name", [f.name for f in fields(SamplingConfig)])
def test_every_field_of_the_sampling_changes_it(run, name):
    value = OTHER_SAMPLING.get(name) or another(getattr(run["sampling"], name))
    sampling = replace(run["sampling"], **{name: value})
    assert config_hash(**{**run, "sampling": sampling}) != config_hash(**run)


@pytest.mark.parametrize(
    ("plan", "name", "value"),
    [(PLAN, "after", 3), (PLAN, "policy", "random"), (PLAN, "keep", 0.5000001), (PLAN, "seed", 2),
     (ATP, "after", 4), (ATP, "budget", 0.26), (ATP, "budget", None), (ATP, "budget", 25)],
)  # fmt: skip
def test_every_field_of_a_cut_changes_it(run, plan, name, value):
    changed = (replace(plan[0], **{name: value}), *plan[1:])
    assert config_hash(**{**run, "plan": changed}) != config_hash(**{**run, "plan": plan})


def test_the_fields_of_a_cut_are_all_tried():
    assert {f.name for f in fields(CutSpec)} == {
        "after",
        "policy",
        "keep",
        "seed",
        "budget",
        "needs",
    }


def half(tokens):
    return list(tokens["index"])[::2]


def test_a_function_and_what_it_needs(run):
    plans = [(CutSpec(3, half),), (CutSpec(3, half, needs="last_row"),), (CutSpec(3, "grid"),)]
    assert len({config_hash(**{**run, "plan": plan}) for plan in plans}) == 3


def test_all_of_a_budget_is_not_one_token(run):
    plans = [(CutSpec(3, "atp", budget=budget),) for budget in (1.0, 2, 0.25)]
    assert len({config_hash(**{**run, "plan": plan}) for plan in plans}) == 3


def test_other_plans(run):
    plans = [(), PLAN, PLAN[:1], PLAN[1:], PLAN[::-1]]
    assert len({config_hash(**{**run, "plan": plan}) for plan in plans}) == len(plans)
    fraction = settle((CutSpec(0.5, "grid", 0.25),), 8, range(8))
    count = settle((CutSpec(4, "grid", 0.25),), 8, range(8))
    hashes = {config_hash(**{**run, "plan": plan}) for plan in (fraction, count)}
    assert len(hashes) == 1  # the same cut, written in two ways


@pytest.mark.parametrize("option", ["flash_attn", "type_k", "type_v"])
def test_every_option_of_the_engine_changes_it(run, option):
    assert config_hash(**run, **{option: "f32"}) != config_hash(**run)


@pytest.mark.parametrize("name", ["model", "mmproj", "atp"])
def test_every_file_changes_it(run, name):
    run = {**run, "plan": ATP}
    before = config_hash(**run)
    data = bytearray(run[name].read_bytes())
    data[50_000] ^= 1
    run[name].write_bytes(data)
    assert config_hash(**run) != before


def test_a_sidecar_that_is_not_used_does_not_matter(run):
    assert config_hash(**run) == config_hash(**{**run, "atp": None})
    assert config_hash(**{**run, "plan": ATP}) != config_hash(**{**run, "plan": ATP, "atp": None})


def test_names_and_places_of_files_do_not_matter(run, tmp_path):
    run = {**run, "plan": ATP}
    moved = dict(run)
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("model", "mmproj", "atp"):
        moved[name] = folder / f"other-{name}.gguf"
        moved[name].write_bytes(run[name].read_bytes())
        os.utime(moved[name], (1, 1))
    assert config_hash(**moved) == config_hash(**run)
    assert config_hash(**{**run, "model": str(run["model"])}) == config_hash(**run)


def test_files_that_change_places_matter(run):
    swapped = {**run, "model": run["mmproj"], "mmproj": run["model"]}
    assert config_hash(**swapped) != config_hash(**run)


def test_a_file_that_is_missing(run, tmp_path):
    with pytest.raises(ModelError, match=r"gone\.gguf: cannot be read: No such file"):
        config_hash(**{**run, "model": tmp_path / "gone.gguf"})


# ---- large files


def large_file(path, size, *, changed=()):
    """A file of zeros with other bytes at some places; takes no room on the disk."""
    with path.open("wb") as stream:
        stream.truncate(size)
        for place in changed:
            stream.seek(place)
            stream.write(b"\1")
    return file_fingerprint(path)


def test_a_large_file_is_told_by_its_size_its_head_and_all_parts_of_it(tmp_path):
    size, path = 2**30, tmp_path / "large.gguf"
    tried = [[], [0], [2**24 - 1], *([place] for place in places(size)[::73])]
    fingerprints = {large_file(path, size, changed=changed) for changed in tried}
    assert len(fingerprints) == len(tried)
    assert large_file(path, size + 1) not in fingerprints
    assert large_file(path, size) in fingerprints


@pytest.mark.parametrize("size", [2**24 + 2**23 + 1, 2**30 + 1, 4_123_456_789, 2**40])
def test_pieces_lie_in_the_file_and_apart(size):
    starts = places(size)
    assert len(starts) == 512 and starts[0] >= 2**24
    ends = [start + 2**14 for start in starts]
    assert all(end <= start for end, start in zip(ends, [*starts[1:], size], strict=True))


@pytest.mark.parametrize(
    ("n_layer", "n_embd", "n_ff", "kv_share"),
    [(22, 2048, 5632, 0.125), (28, 3584, 18944, 1 / 7), (32, 4096, 11008, 1),
     (32, 4096, 14336, 0.25), (36, 2048, 11008, 0.125), (40, 5120, 13824, 1),
     (64, 5120, 27648, 0.2), (80, 8192, 28672, 0.125)],
)  # fmt: skip
def test_pieces_meet_every_kind_of_tensor(n_layer, n_embd, n_ff, kv_share):
    """So a model in which one kind was trained, in all layers, has another fingerprint."""
    wide, narrow, gate = (n_embd * n for n in (n_embd, int(n_embd * kv_share), n_ff))
    kinds = [wide, narrow, narrow, wide, gate, gate, gate]  # Q8_0, about a byte a weight
    embedding = 32_000 * n_embd
    met = set()
    for start in places(2 * embedding + n_layer * sum(kinds)):
        place = (start - embedding) % sum(kinds)
        for kind, size in enumerate(kinds):
            if 0 <= place < size and embedding <= start < embedding + n_layer * sum(kinds):
                met.add(kind)
            place -= size
    assert met == set(range(len(kinds)))


def test_all_files_of_a_split_model_count(tmp_path):
    parts = [tmp_path / f"m-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]
    for part in parts:
        part.write_bytes(b"GGUF")
    before = file_fingerprint(parts[0])
    parts[2].write_bytes(b"GGUF!")
    assert file_fingerprint(parts[0]) != before
    parts[1].unlink()
    with pytest.raises(ModelError, match=r"m-00002-of-00003\.gguf: cannot be read"):
        file_fingerprint(parts[0])
