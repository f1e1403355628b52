"""Parquet files as raw Arrow columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from arena_distill.data import raw
from arena_distill.data.raw import RawFile, damage
from arena_distill.data.summary import LoadSummary

MAX_BATCH_ROWS = 16384


class ParquetFile(RawFile):
    """A Parquet file; columns keep their Arrow types, but for dictionaries, which are decoded."""

    def __init__(self, path: Path, summary: LoadSummary) -> None:
        super().__init__(path)
        with damage(path, "damaged Parquet file"):
            file = pq.ParquetFile(path, memory_map=True)
            names = [str(name) for name in file.schema_arrow.names]
        self._name_columns(names, summary)

    def batches(self, wanted: list[str], summary: LoadSummary) -> Iterator[dict[str, pa.Array]]:
        """See ``RawFile.batches``."""
        names = [self.header[self.columns[name]] for name in wanted]
        with damage(self.path, "damaged Parquet file"):
            file = pq.ParquetFile(self.path, memory_map=True)
            batches = file.iter_batches(batch_size=_rows_a_batch(file.metadata), columns=names, use_threads=False)
        while True:
            with damage(self.path, "damaged Parquet file"):
                batch = next(batches, None)
                if batch is None:
                    return
                batch.validate()
                columns = {name: _decoded(batch.column(key)) for name, key in zip(wanted, names, strict=True)}
            if len(batch):
                yield columns


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _rows_a_batch(metadata: pq.FileMetaData) -> int:
    size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    return max(1, min(MAX_BATCH_ROWS, raw.BLOCK_BYTES * metadata.num_rows // max(size, 1)))
