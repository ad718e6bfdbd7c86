"""Tables, as data frames and .csv files hold them, as arrays of numbers."""

from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyro_vae.errors import DataError

if TYPE_CHECKING:
    import pandas

LABEL = "label"
UNNAMED = "Unnamed: "
"""How pandas names a column whose name is missing."""


def read_csv(path: Path) -> dict[str, np.ndarray]:
    """The numbers of a .csv file, with or without a row of names; see `from_frame`.

    Raises:
        DataError: no table, or a cell that is no number; names its row and column.
    """
    import pandas  # takes half a second

    try:
        frame = pandas.read_csv(path)
        if all(_is_number(name) or str(name).startswith(UNNAMED) for name in frame.columns):
            frame = pandas.read_csv(path, header=None)
    except (ValueError, OSError) as reason:
        raise DataError(f"cannot be read as a table ({' '.join(str(reason).split())}); save it with commas") from reason
    return from_frame(frame)


def from_frame(frame: "pandas.DataFrame") -> dict[str, np.ndarray]:
    """The columns of a data frame: one that is called "label" is `label` [n], and all others side by side are `x`.

    Labels that are words are counted in alphabetical order. A cell that is missing is NaN in `x`.

    Raises:
        DataError: no column but the label, a label that is missing, or a column of words; names it.
    """
    fields = {}
    if LABEL in frame:
        missing = frame[LABEL].isna().to_numpy()
        if missing.any():
            raise DataError(f"row {missing.argmax()}, column {LABEL!r} is missing; fill it in or leave the row out")
        fields[LABEL] = _codes(frame[LABEL].to_numpy())
        frame = frame.drop(columns=LABEL)
    if not frame.shape[1]:
        raise DataError("holds no column but the label")
    if not len(frame):
        raise DataError("there are no data: 0 rows")
    for name, column in frame.items():
        _check_numbers(str(name), column)
    holes = bool(frame.isna().to_numpy().any())
    values = frame.to_numpy(float, na_value=np.nan) if holes else frame.to_numpy()
    return {"x": values.astype(float) if values.dtype == object else values, **fields}  # bools beside numbers


def _check_numbers(name: str, column: "pandas.Series") -> None:
    """Raise `DataError` for the first cell of a column that is no number."""
    if column.dtype.kind in "buif":
        return
    for row, (cell, missing) in enumerate(zip(column, column.isna(), strict=True)):
        if not (missing or isinstance(cell, Real) or _is_number(cell)):
            raise DataError(
                f"row {row}, column {name!r} holds {str(cell)!r}, which is no number; turn it into numbers, or drop it"
            )
    if column.dtype.kind != "O":
        raise DataError(f"column {name!r} holds elements of type {column.dtype}; turn it into numbers, or drop it")


def _codes(labels: np.ndarray) -> np.ndarray:
    return labels if labels.dtype.kind in "bui" else np.unique(labels.astype(str), return_inverse=True)[1]


def _is_number(text: object) -> bool:
    try:
        float(str(text))
    except ValueError:
        return False
    return True
