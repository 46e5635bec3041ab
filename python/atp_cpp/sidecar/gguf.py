"""A sidecar as a GGUF file (docs/design/sidecar.md): the gguf package writes, the engine reads."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from atp_cpp._core import load_sidecar
from atp_cpp.errors import ModelError
from atp_cpp.sidecar.rules import tensor_shapes
from atp_cpp.sidecar.schema import VERSION, Floats, SidecarFields
from atp_cpp.storage.atomic import replacing


def write(sidecar: SidecarFields, path: Path) -> Path:
    """Writes a valid sidecar; an existing file is replaced once the new one is complete.

    Raises:
        ModelError: the gguf package is missing, or the file cannot be written.
    """
    gguf = _gguf()
    try:
        with replacing(path) as part, closing(gguf.GGUFWriter(part, sidecar.arch)) as writer:
            _add_metadata(writer, sidecar)
            shapes = tensor_shapes(sidecar.cuts, n_bins=sidecar.n_bins, n_hidden=sidecar.n_hidden)
            for tensor in shapes:
                writer.add_tensor(tensor, sidecar.tensors[tensor])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
    except OSError as error:
        raise ModelError(f"{path}: cannot be written: {error.strerror or error}") from error
    return path


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Field name -> value of the sidecar in a GGUF file, read as the engine does.

    Raises:
        ModelError: not a sidecar, damaged, or against a rule of docs/design/sidecar.md.
    """
    weights = load_sidecar(os.fspath(path))
    values = {
        f.name: getattr(weights, f.name)
        for f in fields(SidecarFields)
        if f.name not in ("cuts", "tensors")
    }
    tensors: dict[str, Floats] = {}
    for module in weights.modules:
        prefix = f"blk.{module.after - 1}.atp_"
        tensors[prefix + "proj.weight"] = module.proj_w
        tensors[prefix + "proj.bias"] = module.proj_b
        for theta in ("theta_r", "theta_s"):
            weight, bias = getattr(module, theta + "_w"), getattr(module, theta + "_b")
            tensors[f"{prefix}{theta}.weight"] = weight[None, :]
            tensors[f"{prefix}{theta}.bias"] = np.array([bias], np.float32)
    values["cuts"] = tuple(module.after for module in weights.modules)
    values["tensors"] = tensors
    return values


def _add_metadata(writer: Any, s: SidecarFields) -> None:
    writer.add_type("adapter")
    writer.add_name(s.name)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, s.base_name)
    writer.add_string("adapter.type", "atp")
    gguf = _gguf()
    key = "adapter.atp.{}".format
    writer.add_uint32(key("version"), VERSION)
    writer.add_array(key("cuts"), list(s.cuts))
    writer.add_uint32(key("base.n_layer"), s.n_layer)
    writer.add_uint32(key("base.n_embd"), s.n_embd)
    writer.add_uint32(key("base.n_head"), s.n_head)
    writer.add_string(key("base.fingerprint"), s.fingerprint)
    writer.add_array(key("grid"), list(s.grid))
    for name in ("score_norm", "divisor", "score", "rule", "activation"):
        writer.add_string(key(name), getattr(s, name))
    writer.add_array(key("strides"), list(s.strides))
    writer.add_float32(key("lambda_sample"), s.lambda_sample)
    writer.add_uint32(key("n_bins"), s.n_bins)
    writer.add_uint32(key("n_hidden"), s.n_hidden)
    writer.add_float32(key("training.budget"), s.budget)
    writer.add_string(key("training.mode"), s.mode)
    # add_string leaves out a text that is empty
    writer.add_key_value(key("training.data"), s.data, gguf.GGUFValueType.STRING)
    writer.add_array(key("training.kept"), list(s.kept))


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise ModelError(
            "writing a GGUF file needs the gguf package, which is not installed; "
            'pip install "atp_cpp[convert]"'
        ) from None
    return gguf
