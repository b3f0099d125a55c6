"""``python -m rome_fast``, which is also what torchrun can start: ``torchrun -m rome_fast``."""

from rome_fast.cli import main

if __name__ == "__main__":
    main()
