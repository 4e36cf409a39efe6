"""`python -m hydralign`, and with it `torchrun --nproc-per-node N -m hydralign COMMAND RECIPE.yaml`."""

import sys

from hydralign.cli import main

if __name__ == "__main__":
    sys.exit(main())
