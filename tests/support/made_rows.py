"""Rows for tests of the files that hold them, without a model."""

from atp_cpp.batch.output.rows import Row

CONFIG = "0123456789abcdef"


def made_row(custom_id="a.jpg", prompt="What?", **fields):
    """A good row whose caption tells whose it is."""
    filled = {
        "image": custom_id,
        "caption": f"{prompt} {custom_id}",
        "finish_reason": "stop",
        "status": "ok",
        "config_hash": CONFIG,
        **fields,
    }
    return Row(custom_id=custom_id, prompt=prompt, **filled)


def made_failure(custom_id="a.jpg", prompt="What?", finish_reason="error", **fields):
    """A row of status "error"."""
    filled = {"caption": "", "status": "error", "error": "no such file", **fields}
    return made_row(custom_id, prompt, finish_reason=finish_reason, **filled)


def write_lines(path, *rows):
    """A file of these rows; bytes are written as they are."""
    path.write_bytes(b"".join(row if isinstance(row, bytes) else row.as_line() for row in rows))
    return path


def lines(path):
    """The lines of a file, with their ends."""
    return path.read_bytes().splitlines(keepends=True)
