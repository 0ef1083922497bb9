"""`python -m sparring`, which is what torchrun starts: `torchrun --nproc-per-node 8 -m sparring train ...`."""

from sparring.cli import main

if __name__ == "__main__":
    main(prog_name="sparring")
