"""Other formats into GGUF files: what ``atp-cpp convert`` does."""

from atp_cpp.convert.atp import Conversion, convert_atp

__all__ = ["Conversion", "convert_atp"]
