"""The rows of a Parquet file as dictionaries. Whatever a damaged file makes pyarrow raise becomes one DataFault: it has
no class of its own for much of it, and names neither file nor row."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

from token_shards import DataFault

ROWS = 1024
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # the others reserve memory by the gigabyte


def _refused(path: pathlib.Path, error: Exception, where: str = "") -> DataFault:
    return DataFault(f"{path}: {where}no Parquet file that can be read: {' '.join(str(error).split())[:160]}")


def _is_the_files(error: Exception) -> bool:
    """Of reading a damaged file, and not of the disk, nor of memory."""
    import pyarrow
    if isinstance(error, MemoryError):
        return False
    return not (isinstance(error, OSError) and error.errno is not None) and isinstance(
        error, (pyarrow.ArrowException, OSError, ValueError, OverflowError, TypeError, KeyError))


def _row(path: pathlib.Path, batch, number: int, at: int) -> dict:
    try:
        return batch.slice(at, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        raise DataFault(f"{path}: row {number}: byte {error.start} of a text is not UTF-8 ({error.reason}): mend the file, "
                        "or leave it out") from None
    except Exception as error:
        if not _is_the_files(error):
            raise
        raise _refused(path, error, f"row {number}: ") from None


def _batches(path: pathlib.Path, keys: list[str]) -> Iterator:
    import pyarrow.parquet
    with open(path, "rb") as opened:
        try:
            file = pyarrow.parquet.ParquetFile(opened)
            names = [name for name in file.schema_arrow.names if name in keys]
            yield from file.iter_batches(batch_size=ROWS, columns=names or None, use_threads=False)
        except Exception as error:
            if not _is_the_files(error):
                raise
            raise _refused(path, error) from None


def parquet_rows(path: pathlib.Path, keys: list[str]) -> Iterator[dict]:
    """With the columns that are among the keys, or all of them when none is."""
    number = 0
    for batch in _batches(path, keys):
        try:
            yield from batch.to_pylist()
        except Exception as error:
            if not _is_the_files(error):
                raise
            for at in range(batch.num_rows):  # which one it is
                _row(path, batch, number + at, at)
            raise _refused(path, error) from None
        number += batch.num_rows
