"""What prepare_data.py shows while it works."""

import sys
import time


class Progress:
    """One line on a terminal that redraws itself, a plain line now and then elsewhere."""

    def __init__(self, quiet):
        self._quiet, self._terminal = quiet, sys.stderr.isatty()
        self._begin = self._last = time.monotonic()

    def update(self, counts):
        now = time.monotonic()
        if self._quiet or now - self._last < (0.2 if self._terminal else 10):
            return
        self._last = now
        rate = counts.tokens / (now - self._begin)
        line = f"{counts.documents:,} documents, {counts.tokens:,} tokens, {rate:,.0f} tokens/s"
        print(f"\r{line}\x1b[K" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr, flush=True)

    def say(self, text):
        if not self._quiet:
            print(("\r\x1b[K" if self._terminal else "") + text, file=sys.stderr, flush=True)
