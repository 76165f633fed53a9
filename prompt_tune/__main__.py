"""`python -m prompt_tune` is `prompt-tune`."""

from prompt_tune.cli import main

if __name__ == "__main__":
    main()
