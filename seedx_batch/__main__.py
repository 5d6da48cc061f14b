"""Lets `python -m seedx_batch` be the `seedx-batch` command."""

from seedx_batch.cli import main

if __name__ == "__main__":
    main()
