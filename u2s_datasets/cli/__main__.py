"""`python -m u2s_datasets.cli`, as accelerate launches it."""

from u2s_datasets.cli import app

if __name__ == "__main__":
    app()
