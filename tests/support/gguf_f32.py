"""GGUF files like others, with F32 tensors."""

import gguf
import numpy as np


def copy_keys(reader, writer, changes=None):
    """Every key of a file but its architecture, which the writer has; `changes` name new values."""
    for key in reader.fields.values():
        if not key.name.startswith("GGUF.") and key.name != "general.architecture":
            element = key.types[-1] if key.types[0] == gguf.GGUFValueType.ARRAY else None
            value = (changes or {}).get(key.name, key.contents())
            writer.add_key_value(key.name, value, key.types[0], sub_type=element)


def copy_as_f32(source, target, tensors=None):
    """The metadata of `source` with F32 tensors: pairs (name, array), or its own, dequantised."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    copy_keys(reader, writer)
    if tensors is None:
        tensors = ((t.name, gguf.quants.dequantize(t.data, t.tensor_type)) for t in reader.tensors)
    for name, values in tensors:
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
