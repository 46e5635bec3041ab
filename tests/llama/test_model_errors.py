"""Files and settings that cannot work: right class, one line, cause and remedy, and no abort."""

import os
import struct
import subprocess
import sys
import textwrap

import pytest

from atp_cpp import _core as core
from support.random_sidecar import random_sidecar


def load(*paths, **options):
    core.Engine(*map(str, paths), **({"n_ctx": 64, "n_threads": 1} | options))


def refused(reason, *paths, **options):
    """The ModelError has this reason, and is one line."""
    with pytest.raises(core.ModelError, match=reason) as error:
        load(*paths, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


CONTENTS = {
    "empty": (b"", "holds only 0 bytes; expected a GGUF file"),
    "three bytes": (b"GGU", "holds only 3 bytes; expected a GGUF file"),
    "text": (b"This is a text file.\n" * 50, "is not a GGUF file: it starts with other bytes"),
    "big-endian magic": (b"FUGG" + b"\0" * 100, "is not a GGUF file"),
    "magic alone": (b"GGUF", "is a damaged GGUF file"),
    "zeros": (b"GGUF" + b"\0" * 1000, "is a damaged GGUF file"),
    "ones": (b"GGUF" + b"\xff" * 1000, "is a damaged GGUF file"),
    "another version": (b"GGUF" + (99).to_bytes(4, "little") + b"\0" * 64, "is a damaged GGUF"),
    "no keys": (b"GGUF" + (3).to_bytes(4, "little") + b"\0" * 64, "names no general.architecture"),
}


@pytest.mark.parametrize(("content", "reason"), CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("role", ["model", "projector"])
def test_what_is_no_gguf(tmp_path, tiny_model, content, reason, role):
    path = tmp_path / "file.gguf"
    path.write_bytes(content)
    message = refused(reason, *((path,) if role == "model" else (tiny_model("llama"), path)))
    assert str(path) in message
    with pytest.raises(core.ModelError, match=reason):
        core.check_gguf(str(path))


def test_what_is_no_file(tmp_path):
    refused(r"no such file: .*missing.gguf \(expected a GGUF model\)", tmp_path / "missing.gguf")
    refused("is a folder; expected a GGUF file. Convert", tmp_path)
    refused("no such file", "")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        refused("is a pipe or a device; expected a GGUF file on disk", tmp_path / "pipe")


def test_the_two_files_swapped(tiny_model, tiny_mmproj):
    model, mmproj = tiny_model("llama"), tiny_mmproj("mlp")
    refused(r"is a vision projector \(mmproj\), not a text model: pass it as mmproj", mmproj)
    refused(r"is a text model \(architecture 'llama'\), not a vision projector", model, model)
    refused("is a vision projector", mmproj, model)
    assert (core.check_gguf(str(model)), core.check_gguf(str(mmproj))) == ("llama", "clip")


def test_an_architecture_nobody_knows(tmp_path, tiny_model):
    path = tmp_path / "other.gguf"
    path.write_bytes(tiny_model("llama").read_bytes().replace(b"llama", b"lhama"))
    refused("cannot load .* 'lhama'.*unknown model architecture", path)


def test_a_tensor_of_another_name(tmp_path, tiny_model):
    path = tmp_path / "other.gguf"
    content = tiny_model("llama").read_bytes()
    assert content.count(b"blk.3.ffn_up.weight") == 1
    path.write_bytes(content.replace(b"blk.3.ffn_up.weight", b"blk.3.ffn_pu.weight"))
    refused("tensor 'blk.3.ffn_up.weight' not found", path)


def test_a_sidecar_is_no_model(tmp_path, tiny_model, tiny_mmproj):
    path = random_sidecar().write_gguf(tmp_path / "atp.gguf")
    refused("is an adapter, not a model; an ATP sidecar goes with --atp", path)
    with pytest.raises(core.ModelError, match="is an adapter, not a model"):
        core.Engine(str(tiny_model("llama")), str(path))


def test_a_link_to_itself(tmp_path, tiny_model, tiny_mmproj):
    path = tmp_path / "loop.gguf"
    path.symlink_to(path)
    refused("cannot open .*loop.gguf: Too many levels of symbolic links", path)
    for mmproj, atp in ((path, ""), (tiny_mmproj("mlp"), path)):
        with pytest.raises(core.ModelError, match="Too many levels of symbolic links"):
            core.Engine(str(tiny_model("llama")), str(mmproj), str(atp))


@pytest.mark.parametrize("n_layer", [0, 513, 2**32 - 1])
def test_a_number_of_layers_that_llama_cpp_would_abort_on(tmp_path, tiny_model, n_layer):
    content = bytearray(tiny_model("llama", n_layer=1).read_bytes())
    value = content.index(b"llama.block_count") + len(b"llama.block_count") + 4
    content[value : value + 4] = n_layer.to_bytes(4, "little")
    path = tmp_path / "layers.gguf"
    path.write_bytes(content)
    with pytest.raises(core.ModelError, match=f"says it has {n_layer} layers; expected 1 to 512"):
        core.check_gguf(str(path))
    refused("The file is damaged; download it again", path)


def in_a_process(code, *arguments, timeout=120):
    """stdout of `code`, run in a process of its own, which must end by itself and well."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}{done.stderr[-3000:]}"
    return done.stdout


TRUNCATE = """
    import sys
    from pathlib import Path
    from atp_cpp import _core as core

    model, mmproj, work = map(Path, sys.argv[1:])
    for source, others in ((model, ()), (mmproj, (model,))):
        content = source.read_bytes()
        n = len(content)
        header = 40_000
        offsets = {*range(0, 64), *range(64, header, 487), *range(header, n, n // 40), n - 1}
        for size in sorted(offsets):
            work.write_bytes(content[:size])
            try:
                core.Engine(*map(str, (*others, work)), n_ctx=64, n_threads=1)
            except core.ModelError as error:
                assert str(work) in str(error) and "\\n" not in str(error), error
            else:
                raise SystemExit(f"{source.name} cut at {size} of {n} was taken")
        print(len(offsets))
"""


def test_files_cut_short_anywhere(tmp_path, tiny_model, tiny_mmproj):
    """In a process of its own: an abort there would be one here."""
    model, mmproj = tiny_model("llama", n_layer=2), tiny_mmproj("mlp")
    counts = in_a_process(TRUNCATE, model, mmproj, tmp_path / "cut.gguf").split()
    assert len(counts) == 2
    assert min(map(int, counts)) > 100


SCRIBBLE = """
    import random, sys
    from pathlib import Path
    from atp_cpp import _core as core

    model, work = map(Path, sys.argv[1:])
    content = model.read_bytes()
    random.seed(3)
    n_refused = 0
    for _ in range(120):
        wrong = bytearray(content)
        for _ in range(random.randint(1, 8)):
            wrong[random.randrange(len(content) - 1000)] = random.randrange(256)
        for _ in range(2):
            wrong[random.randrange(24)] ^= 1 << random.randrange(8)  # version and counts
        work.write_bytes(wrong)
        try:
            core.check_gguf(str(work))
        except core.ModelError:
            n_refused += 1
    print(n_refused)
"""


def test_bytes_that_are_no_text_can_be_shown(tmp_path):
    path = tmp_path / "key.gguf"
    content = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 3) + b"a\xff\n" + struct.pack("<I", 99)
    path.write_bytes(content)
    with pytest.raises(core.ModelError, match=r"key 'a\\xff; ' has invalid GGUF type 99"):
        core.check_gguf(str(path))


def test_headers_with_wrong_bytes(tmp_path, tiny_model):
    path = tiny_model("llama", n_layer=1)
    assert int(in_a_process(SCRIBBLE, path, tmp_path / "wrong.gguf")) > 60


SETTINGS = {
    "kv type": ({"type_k": "q5_9"}, "unknown KV cache type 'q5_9': expected f32, f16, bf16"),
    "kv type of v": ({"type_v": ""}, "unknown KV cache type ''"),
    "flash attention": ({"flash_attn": "yes"}, "flash attention setting 'yes': expected auto, on"),
    "quantised v": ({"type_v": "q8_0", "flash_attn": "off"}, "needs flash attention; use"),
    "context": ({"n_ctx": 0}, "n_ctx must be 2 to 1073741824, got 0"),
    "huge context": ({"n_ctx": 2**31 - 1}, "n_ctx must be 2 to 1073741824"),
    "ubatch": ({"n_ubatch": 0}, "n_ubatch must be 1 to"),
    "layers": ({"n_gpu_layers": -2}, "n_gpu_layers must be -1 to"),
    "threads": ({"n_threads": -1}, "n_threads must be 0 to 512, got -1"),
    "many threads": ({"n_threads": 100_000}, "n_threads must be 0 to 512, got 100000"),
}


@pytest.mark.parametrize(("options", "reason"), SETTINGS.values(), ids=SETTINGS)
def test_settings_that_cannot_be(tiny_model, options, reason):
    refused(reason, tiny_model("llama"), **options)


@pytest.mark.parametrize("n_seq_max", [0, 257])
def test_numbers_of_sequences_that_cannot_be(tiny_model, n_seq_max):
    params = core.ModelParams(str(tiny_model("llama")), n_seq_max=n_seq_max)
    with pytest.raises(core.ModelError, match=f"n_seq_max must be 1 to 256, got {n_seq_max}"):
        core.Decoder(params)


def test_a_kv_type_whose_blocks_do_not_fit_a_head(tiny_model):
    narrow = tiny_model("llama", head_dim=16)
    for options in ({"type_k": "q8_0"}, {"type_k": "q4_0", "type_v": "q4_0"}):
        refused("works in blocks of 32, and the heads of layer 0 are 16 wide", narrow, **options)


NASTY = """
    import sys
    import numpy as np
    from atp_cpp import _core as core

    decoder = core.Decoder(core.ModelParams(sys.argv[1], n_ctx=64, n_threads=1))
    seq = core.Sequence(decoder.n_embd_inp)
    seq.add_text([5, 6, 7])
    decoder.prefill(seq, n_predict=4)
    wrong = core.Sequence(4)
    wrong.add_image(np.zeros((16, 4), np.float32), grid=(4, 4))
    strange = core.Sequence(decoder.n_embd_inp)
    strange.add_text([-7])
    calls = [
        lambda: decoder.decode([]),
        lambda: decoder.decode([(0, 5, -2)]),
        lambda: decoder.decode([(0, 5, 0)]),
        lambda: decoder.decode([(7, 5, 3)]),
        lambda: decoder.decode([(0, 10**6, 3)]),
        lambda: decoder.prefill(wrong),
        lambda: decoder.prefill(strange),
        lambda: decoder.prefill(seq, n_predict=2**31 - 1),
        lambda: decoder.prefill(seq, n_predict=-(2**31)),
        lambda: decoder.prefill(seq, seq_id=2**31 - 1),
        lambda: decoder.self_test([99]),
    ]
    for i, call in enumerate(calls):
        try:
            call()
        except core.AtpError:
            print(i)
"""


def test_misuse_that_once_aborted_or_read_past_an_end(tiny_model):
    assert in_a_process(NASTY, tiny_model("llama")).split() == [str(i) for i in range(11)]
