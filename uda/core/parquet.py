"""pyarrow, which reads and writes Parquet. It is an optional dependency."""

from types import ModuleType

from uda.core.errors import UserError


def parquet_modules() -> tuple[ModuleType, ModuleType]:
    """The modules `pyarrow` and `pyarrow.parquet`. Raises UserError if they are not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError('Parquet needs pyarrow; pip install "uda-toolkit[parquet]", or name a .csv file') from None
    return pyarrow, pyarrow.parquet
