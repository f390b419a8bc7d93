"""`python -m creditledger` is `creditledger`."""

from creditledger.cli import main

if __name__ == "__main__":
    main()
