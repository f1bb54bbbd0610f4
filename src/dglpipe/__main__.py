"""`python -m dglpipe`, for torchrun."""

from dglpipe.cli.main import main

if __name__ == "__main__":
    main()
