"""`python -m rapt` is the command line."""

from rapt.cli import main

if __name__ == "__main__":
    main()
