"""`python -m siegebench`."""

from siegebench.cli import main

if __name__ == "__main__":
    main()
