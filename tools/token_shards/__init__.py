"""Token shards: what tools/prepare_data.py writes and trainer/data/ reads."""


class DataFault(Exception):
    """What the user gave cannot be used; one line: where, what came, what was wanted. Exit code 3."""


class UsageFault(Exception):
    """The options do not fit together or name nothing. Exit code 2."""
