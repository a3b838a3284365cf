"""Commands beside the stages: they read artifacts and write none.  Each module has `add_arguments(parser)` and `run(given) -> str`."""
