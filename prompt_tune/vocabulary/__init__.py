"""The vocabulary file: its format, its rules, and other people's formats."""
