"""A model in fewer bits: what is written, what is refused, what a failed write leaves behind."""

import math
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import gguf
import numpy as np
import pytest

from atp_cpp import _core as core
from atp_cpp.convert import quantise as convert_quantise
from support.gguf_f32 import copy_as_f32, copy_keys
from support.random_sidecar import random_sidecar
from support.rig import ARCHS, Rig, nmse, prompt
from support.tolerance import check

TYPES = ("f16", "bf16", "q8_0", "q4_k_m")
WIDE = {"n_layer": 4, "n_embd": 256, "head_dim": 64, "n_ff": 512}  # whole blocks of 256: k-quants


@pytest.fixture
def source(tiny_model):
    return tiny_model("llama", **WIDE)


def quantise(source, target, kind, **options):
    core.quantise(str(source), str(target), kind, **options)
    return gguf.GGUFReader(target)


def refused(reason, source, target, kind="f16", **options):
    with pytest.raises(core.ModelError, match=reason) as error:
        core.quantise(str(source), str(target), kind, **options)
    assert "\n" not in str(error.value)


def test_the_types():
    assert core.quantise_types() == list(TYPES)


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen2moe"])
@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_every_weight_is_rounded_as_gguf_py_rounds_it(tiny_model, tmp_path, arch, kind):
    """Bit for bit, through llama.cpp's quantiser and through gguf-py."""
    source = tiny_model(arch)
    before = {t.name: t for t in gguf.GGUFReader(source).tensors}
    after = quantise(source, tmp_path / "out.gguf", kind).tensors
    assert {t.name for t in after} == set(before)
    n_rounded = 0
    for t in after:
        if t.tensor_type == gguf.GGMLQuantizationType.F32:
            assert len([n for n in t.shape if n > 1]) < 2 or "ffn_gate_inp" in t.name
        n_rounded += t.tensor_type.name == kind.upper()
        expected = gguf.quants.quantize(before[t.name].data, t.tensor_type)
        np.testing.assert_array_equal(t.data.view(np.uint8), expected.view(np.uint8), t.name)
    assert n_rounded > 40


@pytest.mark.parametrize("kind", TYPES)
def test_metadata_stays(source, tmp_path, kind):
    keys = [
        {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
        for reader in (gguf.GGUFReader(source), quantise(source, tmp_path / "out.gguf", kind))
    ]
    file_types = {"f16": 1, "bf16": 32, "q8_0": 7, "q4_k_m": 15}
    assert keys[1].pop("general.file_type") == file_types[kind]
    assert keys[1].pop("general.quantization_version") == gguf.GGML_QUANT_VERSION
    changed = ("general.file_type", "general.quantization_version")
    assert keys[1] == {k: v for k, v in keys[0].items() if k not in changed}
    assert len(keys[1]) > 15


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kind", TYPES)
def test_the_size_is_known_before(tiny_model, tmp_path, arch, kind):
    source, target = tiny_model(arch), tmp_path / "out.gguf"
    expected = core.quantised_size(str(source), kind)
    quantise(source, target, kind)
    assert target.stat().st_size == expected < source.stat().st_size
    assert os.listdir(tmp_path) == ["out.gguf"]


def header_only(source, path):
    """The header of `source`, and a hole where its tensors are."""
    start = gguf.GGUFReader(source).data_offset
    with path.open("wb") as file:
        file.write(source.read_bytes()[:start])
        file.truncate(source.stat().st_size)
    return path


def test_the_size_needs_no_weights(source, tmp_path):
    hole = header_only(source, tmp_path / "hole.gguf")
    for kind in TYPES:
        assert core.quantised_size(str(hole), kind) == core.quantised_size(str(source), kind)


def test_sixteen_bit_sources(source, tmp_path):
    """From F16, too; and F16 to F16 changes no weight."""
    half = tmp_path / "half.gguf"
    quantise(source, half, "f16")
    same = quantise(half, tmp_path / "same.gguf", "f16")
    assert (tmp_path / "same.gguf").read_bytes() == half.read_bytes()
    assert len(same.tensors) > 30
    before = {t.name: t.data for t in same.tensors}
    for t in quantise(half, tmp_path / "q8.gguf", "q8_0").tensors:
        expected = gguf.quants.quantize(before[t.name].astype(np.float32), t.tensor_type)
        np.testing.assert_array_equal(t.data.view(np.uint8), expected.view(np.uint8), t.name)


def test_threads_change_nothing(source, tmp_path):
    quantise(source, tmp_path / "one.gguf", "q4_k_m", n_threads=1)
    quantise(source, tmp_path / "three.gguf", "q4_k_m", n_threads=3)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "three.gguf").read_bytes()


@pytest.mark.parametrize("kind", TYPES)
def test_logits_stay_near(source, tmp_path, kind):
    target = tmp_path / "out.gguf"
    weights = {t.tensor_type.name for t in quantise(source, target, kind).tensors}
    if kind == "q4_k_m":
        assert weights == {"F32", "Q4_K", "Q6_K"}
    logits = []
    for path in (source, target):
        rig = Rig(path, "llama", {"flash_attn": "off", "type_k": "f32", "type_v": "f32"})
        decoder = rig.plain()
        logits.append(decoder.prefill(prompt(rig, rig.staged(), 40, (6, 6), 20), all_logits=True))
    check(nmse(*logits), "cpu", kind, "quantised = F32")


def test_other_files_are_refused(source, tiny_model, tiny_mmproj, tmp_path):
    target = tmp_path / "out.gguf"
    refused(r"is a vision projector \(mmproj\), not a text model", tiny_mmproj("mlp"), target)
    sidecar = random_sidecar().write_gguf(tmp_path / "atp.gguf")
    refused("is an adapter, not a model", sidecar, target)
    refused("no such file", tmp_path / "missing.gguf", target)
    refused("is a folder; expected a GGUF", tmp_path, target)
    refused(r"in q8_0; expected a model in f32, f16 or bf16", quantised(tiny_model), target)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(source.read_bytes()[:-1000])
    refused("is cut short", cut, target)
    assert not target.exists()


def quantised(tiny_model):
    return tiny_model("llama", weight_type="q8_0")


def test_types_and_threads_that_there_are_not(source, tmp_path):
    target = tmp_path / "out.gguf"
    for wrong in ("q9", "", "F16", "f32"):
        refused(
            f"unknown type '{wrong}' .*expected one of {', '.join(TYPES)}", source, target, wrong
        )
        with pytest.raises(core.ModelError, match="unknown type"):
            core.quantised_size(str(source), wrong)
    for wrong in (-1, 513):
        refused("n_threads must be 0 to 512", source, target, n_threads=wrong)
    assert not target.exists()


def edited(source, path, add):
    """The file once more, after `add(writer)`."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "llama")
    copy_keys(reader, writer)
    add(writer)
    for t in reader.tensors:
        writer.add_tensor(t.name, t.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_files_that_llama_cpp_would_spoil(source, tmp_path):
    target = tmp_path / "out.gguf"
    part = tmp_path / "model-00001-of-00002.gguf"
    split = edited(source, part, lambda writer: writer.add_uint16("split.count", 2))
    refused("is one part of a split model", split, target)
    wide = tmp_path / "aligned.gguf"
    aligned = edited(source, wide, lambda writer: writer.add_custom_alignment(64))
    refused("is aligned to 64 bytes; llama.cpp quantises files aligned to 32", aligned, target)
    assert not target.exists()


def test_a_tensor_that_llama_cpp_would_abort_on(source, tmp_path):
    """Its quantiser counts rows over three dimensions; its loader knows no text model with four."""
    path = tmp_path / "four.gguf"
    tensors = [(t.name, t.data) for t in gguf.GGUFReader(source).tensors]
    copy_as_f32(source, path, [*tensors, ("extra.weight", np.ones((2, 2, 2, 32), np.float32))])
    refused("llama.cpp cannot load .*wrong number of tensors", path, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("value", "kind", "reason"),
    [(np.nan, "q8_0", "has invalid data"), (1e6, "f16", "quantized data validation failed")],
    ids=["not a number", "more than F16 holds"],
)
def test_weights_that_cannot_be_quantised(source, tmp_path, value, kind, reason):
    target, broken = tmp_path / "out.gguf", tmp_path / "broken.gguf"
    tensors = {t.name: np.array(t.data) for t in gguf.GGUFReader(source).tensors}
    tensors["blk.2.ffn_up.weight"][3, 3] = value
    copy_as_f32(source, broken, tensors.items())
    refused(f"cannot quantise .* of {core.quantised_size(str(broken), kind)} bytes: .*{reason}",
            broken, target, kind)  # fmt: skip
    assert not target.exists()


def test_targets_that_cannot_be_written(source, tmp_path):
    before = source.read_bytes()
    refused("source and target are the same file", source, source)
    (tmp_path / "link.gguf").symlink_to(source)
    refused("source and target are the same file", source, tmp_path / "link.gguf")
    refused("cannot write .*: it is there and no file", source, tmp_path)
    refused("No such file or directory", source, tmp_path / "missing" / "out.gguf")
    if os.path.exists("/dev/full"):
        refused("cannot write /dev/full: it is there and no file", source, "/dev/full")
        assert os.path.exists("/dev/full")
    assert source.read_bytes() == before


def test_a_target_that_is_there_is_replaced(source, tmp_path):
    target = tmp_path / "out.gguf"
    target.write_bytes(b"x" * 50_000_000)
    quantise(source, target, "q4_k_m")
    assert target.stat().st_size == core.quantised_size(str(source), "q4_k_m")


def test_space_is_asked_for_first(source, tmp_path):
    """A hole of four times the free space needs twice the free space in F16."""
    free = shutil.disk_usage(tmp_path).free
    path = write_hole(source, tmp_path / "huge.gguf", n_ff=4 * free // (3 * 4 * 256 * 256) * 256)
    refused(r"no space for .*: it needs \d+ bytes, \d+ are free", path, tmp_path / "out.gguf")
    assert os.listdir(tmp_path) == ["huge.gguf"]


def write_hole(source, path, n_ff):
    """The first layer of a llama, its feed-forward layer this wide; the weights are a hole."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "llama")
    copy_keys(reader, writer, {"llama.feed_forward_length": n_ff, "llama.block_count": 1})
    size = 0
    for t in reader.tensors:
        if t.name.startswith("blk.") and not t.name.startswith("blk.0."):
            continue
        shape = [n_ff if n == WIDE["n_ff"] and ".ffn_" in t.name else int(n) for n in t.shape]
        n_bytes = 4 * math.prod(shape)
        writer.add_tensor_info(t.name, shape[::-1], np.dtype(np.float32), n_bytes)
        size += n_bytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, path.stat().st_size + gguf.GGUF_DEFAULT_ALIGNMENT + size)
    return path


LIMITED = """
    import resource, sys
    from atp_cpp import _core as core

    source, target, limit = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    try:
        core.quantise(source, target, "f16")
    except core.ModelError as error:
        print(error)
    print("alive")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
@pytest.mark.parametrize("share", [0.001, 0.5, 0.9999], ids=["header", "middle", "last bytes"])
def test_a_write_that_fails(source, tmp_path, share):
    """In a process that may write no larger files, which the disk does not tell."""
    target = tmp_path / "out.gguf"
    size = core.quantised_size(str(source), "f16")
    out = in_a_process(LIMITED, source, target, int(size * share)).splitlines()
    assert out[1:] == ["alive"]
    assert f"cannot quantise {source} to {target} after " in out[0]
    assert "failed to quantize" in out[0]
    assert not target.exists()


FEW_THREADS = """
    import re, resource, sys
    from pathlib import Path
    from atp_cpp import _core as core

    size = re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
    limit = int(size) * 1024 + (300 << 20)  # the stacks of some threads
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        core.quantise(*sys.argv[1:], "q8_0", n_threads=256)
    except core.ModelError as error:
        print(error)
    core.quantise(*sys.argv[1:], "q8_0")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_threads_that_cannot_be_started(tiny_model, tmp_path):
    """llama.cpp would end the process."""
    source, target = tiny_model("llama", weight_type="f16", **WIDE), tmp_path / "out.gguf"
    said = in_a_process(FEW_THREADS, source, target)
    assert re.fullmatch(r"of 256 threads only \d+ can be started here; ask for fewer .*\n", said)
    assert target.stat().st_size == core.quantised_size(str(source), "q8_0")


def in_a_process(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}{done.stderr[-3000:]}"
    return done.stdout


def test_python_goes_on_meanwhile(source, tmp_path):
    """The lock is released: another thread counts while this one is in llama.cpp."""
    counts, done = [], threading.Event()

    def count():
        while not done.wait(0.001):
            counts.append(None)

    counter = threading.Thread(target=count)
    counter.start()
    before = len(counts)
    quantise(source, tmp_path / "out.gguf", "q4_k_m", n_threads=1)
    done.set()
    counter.join()
    assert len(counts) - before > 5


def test_paths_that_are_not_ascii(source, tmp_path):
    folder = tmp_path / "Bilder und 画像"
    folder.mkdir()
    copy = Path(shutil.copy(source, folder / "modèle.gguf"))
    quantise(copy, folder / "kleiner.gguf", "q8_0")
    assert (folder / "kleiner.gguf").stat().st_size == core.quantised_size(str(source), "q8_0")


def test_the_size_is_known_before_the_tensors_are_written(source, tmp_path):
    reader = gguf.GGUFReader(source)
    path = tmp_path / "raw.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    copy_keys(reader, writer)
    for t in reader.tensors:
        writer.add_tensor(t.name, t.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    head = path.stat().st_size
    n_bytes = source.stat().st_size
    with convert_quantise.hollow(writer, n_bytes) as whole:
        planned = [convert_quantise.quantised_size(whole, kind) for kind in TYPES]
        core.check_loadable(str(whole))
    with (
        pytest.raises(core.ModelError, match="is cut short"),
        convert_quantise.hollow(writer, n_bytes - 100) as cut,
    ):
        core.check_loadable(str(cut))
    assert path.stat().st_size == head, "as before"
    writer.write_tensors_to_file()
    writer.close()
    assert path.read_bytes() == source.read_bytes()
    assert planned == [convert_quantise.quantised_size(path, kind) for kind in TYPES]
    target = tmp_path / "out.gguf"
    convert_quantise.quantise(path, target, "q4_k_m")
    assert target.stat().st_size == planned[TYPES.index("q4_k_m")]
    assert set(convert_quantise.QUANTISED) <= set(TYPES)
