"""`python -m wesar_sweep` is `wesar-sweep`."""

from wesar_sweep.cli import main

if __name__ == "__main__":
    main()
