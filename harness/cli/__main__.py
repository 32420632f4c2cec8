"""`python -m medbench.harness.cli`: the command line where no `medbench` script is installed."""

from medbench.harness.cli.main import main

if __name__ == "__main__":
    main()
