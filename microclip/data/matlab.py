"""Variables of MATLAB files, as the older datasets keep their labels; no code in them is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from microclip import runtime


def matlab_variable(path: Path, name: str) -> np.ndarray[Any, Any]:
    """Return a variable as an array of one dimension; a struct's fields are its dtype's names.

    Raises: MissingDataError if the file is gone or cut, or has no such variable.
    """
    from scipy.io import loadmat  # a second of imports

    if not path.is_file():
        raise runtime.MissingDataError(f"{path} is not there; get the dataset again")
    try:
        found = loadmat(path, squeeze_me=True, variable_names=[name])
    except Exception as error:  # scipy raises whatever the damage leads it to
        raise runtime.MissingDataError(
            f"{path} is damaged or no MATLAB file ({type(error).__name__}: "
            f"{' '.join(str(error).split())}); get the dataset again"
        ) from error
    if name not in found:
        raise runtime.MissingDataError(
            f"{path} holds no {name!r}, so it is damaged or another file; get the dataset again"
        )
    return np.atleast_1d(found[name]).ravel()
