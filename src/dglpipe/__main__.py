"""Entry point of `python -m dglpipe`, the form that torchrun starts."""

from dglpipe.cli.main import main

if __name__ == "__main__":
    main()
