"""The sidecar: trained ATP modules of one model, as fields, a folder and a GGUF file."""

from atp_cpp.sidecar.fingerprint import fingerprint_from_arrays, fingerprint_from_gguf
from atp_cpp.sidecar.rules import tensor_shapes
from atp_cpp.sidecar.sidecar import AtpSidecar

__all__ = ["AtpSidecar", "fingerprint_from_arrays", "fingerprint_from_gguf", "tensor_shapes"]
