"""Other formats into GGUF files: what ``atp-cpp convert`` does."""

from atp_cpp.convert.atp import Conversion, convert_atp
from atp_cpp.convert.run import ConvertedFile, convert_hf

__all__ = ["Conversion", "ConvertedFile", "convert_atp", "convert_hf"]
