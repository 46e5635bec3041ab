"""``python -m atp_cpp`` is the program ``atp-cpp``."""

from atp_cpp.cli.program import main

if __name__ == "__main__":
    raise SystemExit(main())
