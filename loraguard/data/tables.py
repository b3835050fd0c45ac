"""Labels from tables: rows of text by photo, and columns of 0/1 or -1/1."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .names import composed

_WORDS = {"1": 1, "0": 0, "-1": -1, "1.0": 1, "0.0": 0, "-1.0": -1, "true": 1, "false": 0}


class Table:
    """Columns of text, each value by a photo's name; the first column of a row is that name.

    Args:
        path: where it came from, for errors.
        header: names of all columns.
        rows: as long as the header, each.
        wanted: columns to keep; all by default.

    Attributes:
        names: of the photos, in the table's order.
        row_of: by name in composed form (:func:`~loraguard.data.names.composed`), the number of its row, from 0.

    Raises:
        ValueError: if a column is missing, a row has another length or two rows name the same photo.
    """

    def __init__(
        self, path: Path, header: Sequence[str], rows: Iterable[list[str]], wanted: Sequence[str] | None = None
    ) -> None:
        self.path, self.columns = path, tuple(header[1:] if wanted is None else wanted)
        check_columns(self.columns, header[1:], str(path))
        self._values: dict[str, list[str]] = {name: [] for name in self.columns}
        # Lists of text by column, and none by row: objects that refer to others are what makes large tables slow.
        places = [(header.index(name), self._values[name]) for name in self.columns]
        self.names: list[str] = []
        for number, row in enumerate(rows, 1):
            if len(row) != len(header):
                raise ValueError(
                    f"Row {number} of {path} has {len(row)} values where there are {len(header)} columns: "
                    f"{row[:3]!s:.120}."
                )
            self.names.append(row[0])
            for position, values in places:
                values.append(row[position])
        self.row_of = {composed(name): number for number, name in enumerate(self.names)}
        if len(self.row_of) < len(self.names):
            twice = next(name for number, name in enumerate(self.names) if self.row_of[composed(name)] != number)
            raise ValueError(f"{path} has more than one row for {twice!r:.120}.")

    def column(self, name: str) -> list[str]:
        """A column's values, as text."""
        return self._values[name]

    def labels(self, attributes: Sequence[str]) -> Tensor:
        """Columns as (rows, A) in {0, 1}; raises ValueError if one holds anything but 0/1 or -1/1."""
        columns = []
        for name in attributes:
            values = self.column(name)
            known = {text: _WORDS.get(text.strip().lower()) for text in set(values)}
            if (odd := next((text for text, value in known.items() if value is None), None)) is not None:
                raise ValueError(f"Column {name!r} of {self.path} holds {odd!r:.60}; labels are 0/1 or -1/1.")
            columns.append(binary(np.array([known[text] for text in values]), name, str(self.path)))
        return torch.stack(columns, 1)


def read_csv(path: Path, keys: Sequence[str], wanted: Sequence[str] | None = None) -> Table:
    """A table with a header, values separated by commas (or semicolons or tabs throughout), in UTF-8.

    Args:
        path: the file.
        keys: names under which the column of photos' names may go.
        wanted: columns to keep; all by default.

    Raises:
        ValueError: if it is no such table.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=first.count)  # a spreadsheet may write others than commas
            rows = (row for row in csv.reader(file, delimiter=delimiter) if row)
            header = [name.strip() for name in next(rows, [])]
            key = next((header.index(name) for name in keys if name in header), None)
            if key is None:
                raise ValueError(
                    f"{path} has no column {' or '.join(map(repr, keys))}; its columns are {some(header, 120)}."
                )
            return Table(path, _to_front(header, key), (_to_front(row, key) for row in rows), wanted)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no table in UTF-8 with values separated by commas: {error}.") from error


def _to_front(row: list[str], position: int) -> list[str]:
    return [*row[position : position + 1], *row[:position], *row[position + 1 :]]


def binary(values: np.ndarray[Any, Any], name: str, where: str) -> Tensor:
    """Values of 0/1 or -1/1 as (N,) float in {0, 1}; raises ValueError for others, and for a mixture of both kinds."""
    present = set(np.unique(values).tolist())
    if not (present <= {0, 1} or present <= {-1, 1}):
        raise ValueError(
            f"Column {name!r} of {where} holds {sorted(present)[:6]}; labels are 0/1 or -1/1, one kind in a column."
        )
    return torch.from_numpy((values > 0).astype(np.float32))


def check_columns(names: Sequence[str], columns: Sequence[str], where: str) -> None:
    """See that columns exist.

    Raises:
        ValueError: if one does not; the message has the nearest name and those that there are.

    Example:
        >>> check_columns(["smiling"], ["Male", "Smiling"], "list_attr_celeba.txt")
        Traceback (most recent call last):
        ...
        ValueError: There is no 'smiling' in list_attr_celeba.txt. Did you mean 'Smiling'? It has: Male, Smiling.
    """
    for name in names:
        if name not in columns:
            near = {column.lower(): column for column in columns}
            guess = difflib.get_close_matches(name.lower(), near, 1)
            hint = f" Did you mean {near[guess[0]]!r}?" if guess else ""
            raise ValueError(f"There is no {name!r:.60} in {where}.{hint} It has: {some(columns) or 'no columns'}.")


def some(names: Sequence[str], most: int = 360) -> str:
    """The first of many names, and how many more there are.

    Args:
        names: all of them.
        most: letters, about.

    Example:
        >>> some(["Bald", "Bangs", "Male"]), some(["Bald", "Bangs", "Male"], most=10)
        ('Bald, Bangs, Male', 'Bald, Bangs and 1 more')
    """
    shown: list[str] = []
    for name in names:
        if sum(map(len, shown)) + 2 * len(shown) >= most:
            return f"{', '.join(shown)} and {len(names) - len(shown)} more"
        shown.append(name[:60])
    return ", ".join(shown)


def as_identities(values: Sequence[Any] | np.ndarray[Any, Any]) -> Tensor:
    """Whoever is on the photos, names or numbers, as (N,) integers from 0."""
    return torch.from_numpy(np.unique(np.asarray(values), return_inverse=True)[1].astype(np.int64))
