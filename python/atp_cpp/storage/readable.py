"""Numbers of bytes, as a person reads them."""

from __future__ import annotations


def readable_size(n_bytes: int) -> str:
    """1234567890 -> "1.23 GB"; powers of 1000, as disks and `ls` of hubs count."""
    size = float(n_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{n_bytes} bytes" if unit == "bytes" else f"{size:.2f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"
