"""``python -m sciml_monarch <job>``: the same as the console script ``sciml-monarch``."""

from sciml_monarch.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
